package forebay_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	forebay "github.com/forebay/forebay/clients/go"
	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

// newer is a server of a later version: what it says has parts that this client does not know.
type newer struct {
	forebayv1.UnimplementedInferenceServiceServer
	forebayv1.UnimplementedJobServiceServer
	looks  atomic.Int64
	failed *status.Status
}

var unknown = []byte("\xa2\x38\x03new") // field 900, a text

func (n *newer) Predict(_ context.Context, request *forebayv1.PredictRequest) (*forebayv1.PredictResponse, error) {
	if request.GetModel() == "spotted" {
		return nil, n.failed.Err()
	}
	response := answer(request)
	response.ProtoReflect().SetUnknown(unknown)
	return response, nil
}

func (n *newer) StreamPredict(stream itemStream) error {
	message, err := stream.Recv()
	if err != nil {
		return err
	}
	odd := &forebayv1.StreamResult{Id: message.GetItems()[0].GetId()}
	odd.ProtoReflect().SetUnknown(unknown)
	if err := stream.Send(&forebayv1.StreamPredictResponse{Results: []*forebayv1.StreamResult{odd}}); err != nil {
		return err
	}
	_, _ = stream.Recv() // the caller closes its side
	return nil
}

// Result tells of a job "paused" that it is in a state of its own before it succeeds, and of another one that it has ended
// in such a state.
func (n *newer) Result(_ context.Context, request *forebayv1.ResultRequest) (*forebayv1.ResultResponse, error) {
	job := &forebayv1.Job{Id: request.GetId(), State: 77}
	if request.GetId() != "paused" {
		job.EndTime = timestamppb.Now()
		return &forebayv1.ResultResponse{Job: job}, nil
	}
	if n.looks.Add(1) < 3 {
		return &forebayv1.ResultResponse{Job: job}, nil
	}
	job.State = forebay.Succeeded
	return &forebayv1.ResultResponse{
		Job: job, Outcome: &forebayv1.ResultResponse_Response{Response: &forebayv1.PredictResponse{Model: "m"}},
	}, nil
}

func TestANewerServerIsUnderstood(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, running := &newer{failed: failed(t, codes.Unavailable, "SUN_SPOTS", 0)}, grpc.NewServer()
	forebayv1.RegisterInferenceServiceServer(running, server)
	forebayv1.RegisterJobServiceServer(running, server)
	go func() { _ = running.Serve(listener) }()
	t.Cleanup(running.Stop)
	client := dial(t, listener.Addr().String(), forebay.WithRetry(forebay.Retry{Attempts: 1}))
	ctx := within(t, 30*time.Second)
	var failure *forebay.Error

	result, err := client.Predict(ctx, "m", rows(t, 5))
	if err != nil || first(t, result) != 5 {
		t.Errorf("a field that is unknown: %v", err)
	}
	_, err = client.Predict(ctx, "spotted", rows(t, 1))
	if !errors.As(err, &failure) || failure.Code != codes.Unavailable || failure.ReasonName != "SUN_SPOTS" ||
		failure.Reason != forebayv1.ErrorReason_ERROR_REASON_UNSPECIFIED || !failure.Temporary() {
		t.Errorf("a reason that is unknown: %v", err)
	}
	outcomes, _, err := collect(client.Stream(ctx, "m", numbers(t, 0, 1)))
	if err != nil || len(outcomes) != 1 || status.Code(outcomes[0].Err) != codes.Internal {
		t.Errorf("an outcome that is unknown: %v %v", outcomes, err)
	}
	result, err = client.Wait(ctx, "paused")
	if err != nil || result.Model != "m" || server.looks.Load() != 3 {
		t.Errorf("a state that is unknown is no end: %v %v", result, err)
	}
	job, err := client.Look(ctx, "folded")
	if err != nil || !job.Done() {
		t.Errorf("a state that is unknown, of a job that has an end: %+v %v", job, err)
	}
	if _, err = client.Wait(ctx, "folded"); !errors.As(err, &failure) || failure.Code != codes.Internal {
		t.Errorf("an end without an outcome: %v", err)
	}
}

func TestAnOlderServerDoesNotSupportIt(t *testing.T) {
	client := dial(t, newFake(t, &fake{}).address)
	_, err := client.Submit(within(t, 5*time.Second), "m", rows(t, 1))
	var failure *forebay.Error
	if !errors.As(err, &failure) || failure.Code != codes.Unimplemented || failure.Temporary() {
		t.Errorf("%v", err)
	}
}

func TestUnknownFieldsSurvive(t *testing.T) {
	older, err := proto.Marshal(&forebayv1.PredictRequest{Model: "m"})
	if err != nil {
		t.Fatal(err)
	}
	newer := append(older, unknown...)
	var message forebayv1.PredictRequest
	if err := proto.Unmarshal(newer, &message); err != nil {
		t.Fatal(err)
	}
	again, err := proto.Marshal(&message)
	if err != nil || string(again) != string(newer) {
		t.Errorf("%q %v", again, err)
	}
}
