package forebay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

// JobState is where a job is in its life.
type JobState = forebayv1.JobState

// The states of jobs.
const (
	Pending   = forebayv1.JobState_JOB_STATE_PENDING
	Running   = forebayv1.JobState_JOB_STATE_RUNNING
	Succeeded = forebayv1.JobState_JOB_STATE_SUCCEEDED
	Failed    = forebayv1.JobState_JOB_STATE_FAILED
	Cancelled = forebayv1.JobState_JOB_STATE_CANCELLED
	Expired   = forebayv1.JobState_JOB_STATE_EXPIRED
)

const pollWait = 20 * time.Second // that one call waits for a job, at most

// ErrJobCancelled is the outcome of a job that was cancelled.
var ErrJobCancelled = errors.New("forebay: the job was cancelled")

// Job is a durable inference.
type Job struct {
	ID            string
	State         JobState
	Model         string
	Version       int64
	Attempt       int
	RequestID     string
	CreateTime    time.Time
	StartTime     time.Time // zero before
	EndTime       time.Time // zero before
	ExpireTime    time.Time // zero: never
	PurgeTime     time.Time // zero before its end
	JobsAhead     int64
	EstimatedWait time.Duration
}

// Done is whether the state is final: one of those that are, or one that this client does not know, of a job that has an
// end.
func (j *Job) Done() bool {
	switch j.State {
	case Pending, Running:
		return false
	case Succeeded, Failed, Cancelled, Expired:
		return true
	}
	return !j.EndTime.IsZero()
}

// SubmitOption changes a submission.
type SubmitOption func(*forebayv1.SubmitRequest)

// JobKey sets the idempotency key. By default it is a random one, so that a repeated submission gives the same job.
func JobKey(key string) SubmitOption {
	return func(r *forebayv1.SubmitRequest) { r.RequestId = key }
}

// ExpireAfter sets how long the outcome is wanted at all.
func ExpireAfter(duration time.Duration) SubmitOption {
	return func(r *forebayv1.SubmitRequest) { r.ExpireAfter = durationpb.New(duration) }
}

// KeepFor sets how long the outcome is kept.
func KeepFor(duration time.Duration) SubmitOption {
	return func(r *forebayv1.SubmitRequest) { r.Ttl = durationpb.New(duration) }
}

// NotifyBy has the server tell a URL when the job has finished; the secret is one that the operator configured, by name.
func NotifyBy(url, secret string) SubmitOption {
	return func(r *forebayv1.SubmitRequest) { r.Webhook = &forebayv1.Webhook{Url: url, Secret: secret} }
}

// JobRequest sets options of the request that the job runs.
func JobRequest(options ...RequestOption) SubmitOption {
	return func(r *forebayv1.SubmitRequest) {
		for _, option := range options {
			option(r.Request)
		}
	}
}

// Submit stores a job; when it returns, the job is on the server's disk. While the server is UNAVAILABLE it is sent again,
// under the same key, up to the deadline.
func (c *Client) Submit(ctx context.Context, model string, inputs []*Tensor, options ...SubmitOption) (*Job, error) {
	message := &forebayv1.SubmitRequest{Request: requestOf(model, inputs, nil), RequestId: rand.Text()}
	for _, option := range options {
		option(message)
	}
	ctx, cancel := c.call(ctx)
	defer cancel()
	response, err := insist(ctx, func() (*forebayv1.SubmitResponse, error) { return c.jobs.Submit(ctx, message) })
	if err != nil {
		return nil, err
	}
	return jobOf(response.GetJob()), nil
}

// Look tells a job as it is.
func (c *Client) Look(ctx context.Context, id string) (*Job, error) {
	ctx, cancel := c.call(ctx)
	defer cancel()
	response, err := c.jobs.Result(ctx, &forebayv1.ResultRequest{Id: id})
	if err != nil {
		return nil, wrap(err)
	}
	return jobOf(response.GetJob()), nil
}

// Wait waits until a job has finished and gives its result; the context's deadline bounds the wait, and without one it
// lasts as long as it takes. A server that is away meanwhile (it restarts, say) is waited for, up to a minute.
//
// The job's own error is an *Error, or [ErrJobCancelled].
func (c *Client) Wait(ctx context.Context, id string) (*Result, error) {
	ctx = c.outgoing(ctx)
	patience, early := newPatience(jobOutage), newPauses()
	for {
		asked := time.Now()
		response, err := c.poll(ctx, id)
		var pause time.Duration
		var failure *Error
		switch {
		case err == nil && jobOf(response.GetJob()).Done():
			return outcomeOf(response)
		case err == nil:
			patience.restore()
			// Where too many calls wait already, the server answers at once: then it is asked less and less often.
			if time.Since(asked) >= pollWait/2 {
				early.reset()
			}
			pause = early.next(0)
		case ctx.Err() == nil && errors.As(err, &failure) && failure.away():
			var ok bool
			if pause, ok = patience.after(ctx, failure); !ok {
				return nil, err
			}
		default:
			return nil, err
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

func (c *Client) poll(ctx context.Context, id string) (*forebayv1.ResultResponse, error) {
	wait := pollWait
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline))
	}
	ctx, cancel := context.WithTimeout(ctx, wait+c.timeout)
	defer cancel()
	response, err := c.jobs.Result(ctx, &forebayv1.ResultRequest{Id: id, Wait: durationpb.New(max(wait, 0))})
	if err != nil {
		return nil, fromAttempt(ctx, err)
	}
	return response, nil
}

func outcomeOf(response *forebayv1.ResultResponse) (*Result, error) {
	job := response.GetJob()
	if job.GetState() == Cancelled {
		return nil, ErrJobCancelled
	}
	if answer := response.GetResponse(); answer != nil {
		return resultOf(answer), nil
	}
	if failure := response.GetError(); failure != nil {
		return nil, fromProto(failure)
	}
	return nil, badResponse(fmt.Sprintf("job %s is %s, and the server sent no outcome", job.GetId(), job.GetState()))
}

// Watch tells a job now and at each change, until it has finished. A watch that breaks off because its server goes away is
// taken up again for up to a minute, so that a change may be told twice.
func (c *Client) Watch(ctx context.Context, id string) iter.Seq2[*Job, error] {
	return func(yield func(*Job, error) bool) {
		ctx, cancel := context.WithCancel(c.outgoing(ctx))
		defer cancel()
		patience := newPatience(jobOutage)
		for {
			failure := c.watch(ctx, id, &patience, yield)
			if failure == nil {
				return
			}
			pause, ok := time.Duration(0), false
			if ctx.Err() == nil && failure.away() {
				pause, ok = patience.after(ctx, failure)
			}
			if !ok {
				yield(nil, failure)
				return
			}
			if err := sleep(ctx, pause); err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// watch follows one call; nil once nothing more is to be told.
func (c *Client) watch(ctx context.Context, id string, patience *patience, yield func(*Job, error) bool) *Error {
	stream, err := c.jobs.WatchJob(ctx, &forebayv1.WatchJobRequest{Id: id})
	for err == nil {
		var message *forebayv1.WatchJobResponse
		if message, err = stream.Recv(); err != nil {
			break
		}
		patience.restore()
		job := jobOf(message.GetJob())
		if !yield(job, nil) || job.Done() {
			return nil
		}
	}
	if errors.Is(err, io.EOF) {
		return unavailable("the server ended the call before the job had ended")
	}
	return fromAttempt(ctx, err)
}

// Cancel cancels a job that has not finished, and tells it as it is then.
func (c *Client) Cancel(ctx context.Context, id string) (*Job, error) {
	ctx, cancel := c.call(ctx)
	defer cancel()
	response, err := insist(ctx, func() (*forebayv1.CancelJobResponse, error) {
		return c.jobs.CancelJob(ctx, &forebayv1.CancelJobRequest{Id: id})
	})
	if err != nil {
		return nil, err
	}
	return jobOf(response.GetJob()), nil
}

// Jobs lists the tenant's jobs, the newest first: those of a model, or of all if it is empty, in one of the states, or in
// any if there are none.
func (c *Client) Jobs(ctx context.Context, model string, states ...JobState) iter.Seq2[*Job, error] {
	return func(yield func(*Job, error) bool) {
		for token := ""; ; {
			page, err := c.page(ctx, &forebayv1.ListJobsRequest{States: states, Model: model, PageToken: token})
			if err != nil {
				yield(nil, err)
				return
			}
			for _, job := range page.GetJobs() {
				if !yield(jobOf(job), nil) {
					return
				}
			}
			if token = page.GetNextPageToken(); token == "" {
				return
			}
		}
	}
}

func (c *Client) page(ctx context.Context, request *forebayv1.ListJobsRequest) (*forebayv1.ListJobsResponse, error) {
	ctx, cancel := c.call(ctx)
	defer cancel()
	page, err := c.jobs.ListJobs(ctx, request)
	return page, wrap(err)
}

func jobOf(job *forebayv1.Job) *Job {
	return &Job{
		ID:            job.GetId(),
		State:         job.GetState(),
		Model:         job.GetModel(),
		Version:       job.GetVersion(),
		Attempt:       int(job.GetAttempt()),
		RequestID:     job.GetRequestId(),
		CreateTime:    timeOf(job.GetCreateTime()),
		StartTime:     timeOf(job.GetStartTime()),
		EndTime:       timeOf(job.GetEndTime()),
		ExpireTime:    timeOf(job.GetExpireTime()),
		PurgeTime:     timeOf(job.GetPurgeTime()),
		JobsAhead:     job.GetJobsAhead(),
		EstimatedWait: job.GetEstimatedWait().AsDuration(),
	}
}

func timeOf(timestamp *timestamppb.Timestamp) time.Time {
	if timestamp == nil {
		return time.Time{}
	}
	return timestamp.AsTime()
}
