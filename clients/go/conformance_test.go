package forebay_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	forebay "github.com/forebay/forebay/clients/go"
	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

// golden is what tests/conformance/README.md describes.
type golden struct {
	Serve []string
	Cases []struct {
		Name, Method, ID string
		Plain            bool
		TimeoutMs        int
		Request          json.RawMessage
		Requests         []json.RawMessage
		Outcomes         []wanted
		wanted
	}
}

type wanted struct {
	Response json.RawMessage
	Error    *failure
}

type failure struct {
	Code, Reason string
	Fields       []string
}

// outcome is what came of a request: one of the two.
type outcome struct {
	response *forebayv1.PredictResponse
	failure  *failure
}

// caller is a client under test.
type caller interface {
	predict(ctx context.Context, request *forebayv1.PredictRequest) outcome
	stream(ctx context.Context, requests []*forebayv1.PredictRequest) ([]outcome, error)
	submit(ctx context.Context, request *forebayv1.PredictRequest) outcome
	result(ctx context.Context, id string) outcome
}

func TestConformance(t *testing.T) {
	data, err := os.ReadFile("../../tests/conformance/cases.json")
	if err != nil {
		t.Fatal(err)
	}
	var all golden
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	if binary() == "" {
		t.Skip("there is no server to test with: set FOREBAY, or run `make env`")
	}
	started, err := run(t.TempDir(), 4, append(all.Serve, "--jobs", filepath.Join(t.TempDir(), "jobs.db"))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(started.kill)
	client := dial(t, started.address)
	for name, caller := range map[string]caller{"client": ours{client}, "stubs": plain{client}} {
		for _, one := range all.Cases {
			if _, isOurs := caller.(ours); one.Plain && isOurs {
				continue
			}
			t.Run(name+"/"+one.Name, func(t *testing.T) {
				timeout := 30 * time.Second
				if one.TimeoutMs > 0 {
					timeout = time.Duration(one.TimeoutMs) * time.Millisecond
				}
				ctx := within(t, timeout)
				switch one.Method {
				case "Predict":
					check(t, one.wanted, caller.predict(ctx, read[forebayv1.PredictRequest](t, one.Request)))
				case "Submit":
					check(t, one.wanted, caller.submit(ctx, read[forebayv1.PredictRequest](t, one.Request)))
				case "Result":
					check(t, one.wanted, caller.result(ctx, one.ID))
				case "StreamPredict":
					var requests []*forebayv1.PredictRequest
					for _, request := range one.Requests {
						requests = append(requests, read[forebayv1.PredictRequest](t, request))
					}
					outcomes, err := caller.stream(ctx, requests)
					if err != nil || len(outcomes) != len(one.Outcomes) {
						t.Fatalf("%d outcomes, %v", len(outcomes), err)
					}
					for index, wanted := range one.Outcomes {
						check(t, wanted, outcomes[index])
					}
				default:
					t.Fatalf("method %q", one.Method)
				}
			})
		}
	}
}

func read[M any, P interface {
	*M
	proto.Message
}](t *testing.T, data []byte) P {
	t.Helper()
	message := P(new(M))
	if err := protojson.Unmarshal(data, message); err != nil {
		t.Fatal(err)
	}
	return message
}

func check(t *testing.T, wanted wanted, got outcome) {
	t.Helper()
	if wanted.Error == nil {
		if response := read[forebayv1.PredictResponse](t, wanted.Response); !proto.Equal(response, got.response) {
			t.Errorf("%v, %+v", got.response, got.failure)
		}
		return
	}
	if got.failure == nil {
		t.Fatalf("%v", got.response)
	}
	if wanted.Error.Reason == "" {
		got.failure.Reason = ""
	}
	if got.failure.Code != wanted.Error.Code || got.failure.Reason != wanted.Error.Reason ||
		!slices.Equal(got.failure.Fields, wanted.Error.Fields) {
		t.Errorf("%+v", *got.failure)
	}
}

var codeNames = map[codes.Code]string{
	codes.InvalidArgument: "INVALID_ARGUMENT", codes.NotFound: "NOT_FOUND", codes.Internal: "INTERNAL",
	codes.DeadlineExceeded: "DEADLINE_EXCEEDED", codes.ResourceExhausted: "RESOURCE_EXHAUSTED",
}

// ours is the client; what it gives is made a message again.
type ours struct{ client *forebay.Client }

func (c ours) options(request *forebayv1.PredictRequest) []forebay.RequestOption {
	options := []forebay.RequestOption{
		forebay.Version(request.GetVersion()), forebay.RequestID(request.GetRequestId()),
		forebay.Outputs(request.GetOutputs()...), forebay.WithPriority(request.GetPriority()),
	}
	for name, value := range request.GetParameters() {
		options = append(options, forebay.Parameter(name, value.GetIntValue()))
	}
	return options
}

func (c ours) outcome(result *forebay.Result, err error) outcome {
	var known *forebay.Error
	switch {
	case errors.As(err, &known):
		got := &failure{Code: codeNames[known.Code], Reason: known.ReasonName}
		for _, violation := range known.Violations {
			got.Fields = append(got.Fields, violation.Field)
		}
		return outcome{failure: got}
	case err != nil:
		return outcome{failure: &failure{Code: err.Error()}}
	}
	return outcome{response: &forebayv1.PredictResponse{
		Model: result.Model, Version: result.Version, Outputs: result.Outputs, RequestId: result.RequestID,
	}}
}

func (c ours) predict(ctx context.Context, request *forebayv1.PredictRequest) outcome {
	return c.outcome(c.client.Predict(ctx, request.GetModel(), request.GetInputs(), c.options(request)...))
}

func (c ours) stream(ctx context.Context, requests []*forebayv1.PredictRequest) ([]outcome, error) {
	// A stream of this client has one model and one set of options: one stream for each item then.
	var outcomes []outcome
	for _, request := range requests {
		var source iter.Seq[[]*forebay.Tensor] = func(yield func([]*forebay.Tensor) bool) { yield(request.GetInputs()) }
		for got, err := range c.client.Stream(ctx, request.GetModel(), source, forebay.ItemOptions(c.options(request)...)) {
			if err != nil {
				return nil, err
			}
			outcomes = append(outcomes, c.outcome(got.Result, got.Err))
		}
	}
	return outcomes, nil
}

func (c ours) submit(ctx context.Context, request *forebayv1.PredictRequest) outcome {
	job, err := c.client.Submit(ctx, request.GetModel(), request.GetInputs(), forebay.JobRequest(c.options(request)...))
	if err != nil {
		return c.outcome(nil, err)
	}
	return c.outcome(c.client.Wait(ctx, job.ID))
}

func (c ours) result(ctx context.Context, id string) outcome {
	_, err := c.client.Look(ctx, id)
	return c.outcome(nil, err)
}

// plain is what is generated, and no more.
type plain struct{ client *forebay.Client }

func (c plain) outcome(response *forebayv1.PredictResponse, err error) outcome {
	if err == nil {
		return outcome{response: response}
	}
	return c.failed(status.Convert(err).Proto())
}

func (c plain) failed(proto *rpcstatus.Status) outcome {
	from := status.FromProto(proto)
	got := &failure{Code: codeNames[from.Code()]}
	for _, detail := range from.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			got.Reason = detail.GetReason()
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				got.Fields = append(got.Fields, violation.GetField())
			}
		}
	}
	return outcome{failure: got}
}

func (c plain) predict(ctx context.Context, request *forebayv1.PredictRequest) outcome {
	return c.outcome(forebayv1.NewInferenceServiceClient(c.client.Conn()).Predict(ctx, request))
}

func (c plain) stream(ctx context.Context, requests []*forebayv1.PredictRequest) ([]outcome, error) {
	stream, err := forebayv1.NewInferenceServiceClient(c.client.Conn()).StreamPredict(ctx)
	if err != nil {
		return nil, err
	}
	message := &forebayv1.StreamPredictRequest{
		Options: &forebayv1.StreamOptions{Order: forebayv1.ResultOrder_RESULT_ORDER_AS_SENT},
	}
	for id, request := range requests {
		message.Items = append(message.Items, &forebayv1.StreamItem{Id: uint64(id), Request: request})
	}
	if err := errors.Join(stream.Send(message), stream.CloseSend()); err != nil {
		return nil, err
	}
	var outcomes []outcome
	for {
		got, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return outcomes, nil
			}
			return nil, err
		}
		for _, result := range got.GetResults() {
			if failed := result.GetError(); failed != nil {
				outcomes = append(outcomes, c.failed(failed))
			} else {
				outcomes = append(outcomes, outcome{response: result.GetResponse()})
			}
		}
	}
}

func (c plain) submit(ctx context.Context, request *forebayv1.PredictRequest) outcome {
	jobs := forebayv1.NewJobServiceClient(c.client.Conn())
	submitted, err := jobs.Submit(ctx, &forebayv1.SubmitRequest{Request: request})
	if err != nil {
		return c.outcome(nil, err)
	}
	wait := durationpb.New(20 * time.Second)
	result, err := jobs.Result(ctx, &forebayv1.ResultRequest{Id: submitted.GetJob().GetId(), Wait: wait})
	if err == nil && result.GetError() != nil {
		return c.failed(result.GetError())
	}
	return c.outcome(result.GetResponse(), err)
}

func (c plain) result(ctx context.Context, id string) outcome {
	result, err := forebayv1.NewJobServiceClient(c.client.Conn()).Result(ctx, &forebayv1.ResultRequest{Id: id})
	return c.outcome(result.GetResponse(), err)
}
