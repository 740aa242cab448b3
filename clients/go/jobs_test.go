package forebay_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	forebay "github.com/forebay/forebay/clients/go"
)

// keeper is a server that keeps jobs in a folder, and runs each for a while.
func keeper(t *testing.T, folder string, more ...string) *server {
	t.Helper()
	arguments := []string{"--jobs", filepath.Join(folder, "jobs.db"), "--set", "models.0.engine.options.base_ms=100"}
	return serve(t, append(arguments, more...)...)
}

func within(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

func TestJobs(t *testing.T) {
	client := dial(t, keeper(t, t.TempDir()).address)
	ctx := within(t, 30*time.Second)

	t.Run("a job is handed over, waited for and looked at", func(t *testing.T) {
		job, err := client.Submit(ctx, "echo", rows(t, 5), forebay.JobRequest(forebay.Outputs("y")),
			forebay.ExpireAfter(time.Hour), forebay.KeepFor(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if len(job.ID) != 32 || len(job.RequestID) == 0 || job.Model != "echo" || job.CreateTime.IsZero() {
			t.Errorf("%+v", job)
		}
		if got := job.ExpireTime.Sub(job.CreateTime); got != time.Hour {
			t.Errorf("it expires after %v", got)
		}
		result, err := client.Wait(ctx, job.ID)
		if err != nil {
			t.Fatal(err)
		}
		if first(t, result) != 5 {
			t.Errorf("%v", result)
		}
		job, err = client.Look(ctx, job.ID)
		if err != nil {
			t.Fatal(err)
		}
		if !job.Done() || job.State != forebay.Succeeded || job.Version != 1 || job.Attempt != 1 || job.PurgeTime.IsZero() {
			t.Errorf("%+v", job)
		}
	})

	t.Run("a key stands for one job", func(t *testing.T) {
		job, err := client.Submit(ctx, "echo", rows(t, 1), forebay.JobKey("one"))
		if err != nil {
			t.Fatal(err)
		}
		again, err := client.Submit(ctx, "echo", rows(t, 1), forebay.JobKey("one"))
		if err != nil || again.ID != job.ID {
			t.Errorf("%v %v", again, err)
		}
		_, err = client.Submit(ctx, "echo", rows(t, 2), forebay.JobKey("one"))
		var failure *forebay.Error
		if !errors.As(err, &failure) || failure.Code != codes.AlreadyExists || failure.ReasonName != "JOB_KEY_REUSED" {
			t.Errorf("%v", err)
		}
	})

	t.Run("a watch tells each change and ends with the job", func(t *testing.T) {
		job, err := client.Submit(ctx, "echo", rows(t, 1))
		if err != nil {
			t.Fatal(err)
		}
		var last *forebay.Job
		for change, err := range client.Watch(ctx, job.ID) {
			if err != nil {
				t.Fatal(err)
			}
			if last != nil && last.State > change.State {
				t.Errorf("%v after %v", change.State, last.State)
			}
			last = change
		}
		if last == nil || last.State != forebay.Succeeded {
			t.Errorf("%+v", last)
		}
	})

	t.Run("a watch may be left early", func(t *testing.T) {
		job, err := client.Submit(ctx, "echo", rows(t, 1))
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range client.Watch(ctx, job.ID) {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
	})

	t.Run("a job's own error is the outcome", func(t *testing.T) {
		job, err := client.Submit(ctx, "echo", rows(t, 13))
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Wait(ctx, job.ID)
		var failure *forebay.Error
		if !errors.As(err, &failure) || failure.ReasonName != "INPUT_REJECTED" {
			t.Errorf("%v", err)
		}
	})

	t.Run("a job that is cancelled has no result", func(t *testing.T) {
		var jobs []*forebay.Job // the first ones keep the engine busy
		for range 40 {
			job, err := client.Submit(ctx, "echo", rows(t, 1, 1, 1, 1, 1, 1, 1, 1))
			if err != nil {
				t.Fatal(err)
			}
			jobs = append(jobs, job)
		}
		cancelled, err := client.Cancel(ctx, jobs[len(jobs)-1].ID)
		if err != nil {
			t.Fatal(err)
		}
		if cancelled.State != forebay.Cancelled {
			t.Fatalf("%v", cancelled.State)
		}
		if _, err := client.Wait(ctx, cancelled.ID); !errors.Is(err, forebay.ErrJobCancelled) {
			t.Errorf("%v", err)
		}
	})

	t.Run("a wait ends with its context", func(t *testing.T) {
		job, err := client.Submit(ctx, "echo", rows(t, 1))
		if err != nil {
			t.Fatal(err)
		}
		short := within(t, time.Millisecond)
		_, err = client.Wait(short, job.ID)
		var failure *forebay.Error
		if !errors.As(err, &failure) || failure.Code != codes.DeadlineExceeded {
			t.Errorf("%v", err)
		}
	})

	t.Run("an unknown job is not found", func(t *testing.T) {
		_, waited := client.Wait(ctx, "0123")
		_, looked := client.Look(ctx, "0123")
		_, cancelled := client.Cancel(ctx, "0123")
		var watched error
		for _, err := range client.Watch(ctx, "0123") {
			watched = err
		}
		for _, err := range []error{waited, looked, cancelled, watched} {
			var failure *forebay.Error
			if !errors.As(err, &failure) || failure.ReasonName != "JOB_NOT_FOUND" || failure.Temporary() {
				t.Errorf("%v", err)
			}
		}
	})

	t.Run("jobs are listed over all pages", func(t *testing.T) {
		seen := map[string]bool{}
		for job, err := range client.Jobs(ctx, "echo") {
			if err != nil {
				t.Fatal(err)
			}
			if seen[job.ID] {
				t.Errorf("%s twice", job.ID)
			}
			seen[job.ID] = true
		}
		if len(seen) < 45 {
			t.Errorf("%d jobs", len(seen))
		}
		for job, err := range client.Jobs(ctx, "", forebay.Failed) {
			if err != nil || job.State != forebay.Failed {
				t.Errorf("%v %v", job, err)
			}
		}
	})
}

func TestJobsSurviveTheirServer(t *testing.T) {
	folder := t.TempDir()
	before := keeper(t, folder, "--set", "models.0.engine.options.base_ms=400")
	client := dial(t, before.address)
	ctx := within(t, 60*time.Second)
	job, err := client.Submit(ctx, "echo", rows(t, 5))
	if err != nil {
		t.Fatal(err)
	}
	states := make(chan forebay.JobState, 16)
	go func() {
		defer close(states)
		for change, err := range client.Watch(ctx, job.ID) {
			if err != nil {
				t.Error(err)
				return
			}
			states <- change.State
		}
	}()
	<-states
	before.kill()
	keeper(t, folder, "--listen", before.address)
	result, err := client.Wait(ctx, job.ID)
	if err != nil {
		t.Fatal(err)
	}
	if first(t, result) != 5 {
		t.Errorf("%v", result)
	}
	last := forebay.Pending
	for state := range states {
		last = state
	}
	if last != forebay.Succeeded {
		t.Errorf("the watch ended with %v", last)
	}
}
