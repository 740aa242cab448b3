package forebay_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

// fake is a server over a real socket that does what a test says, and keeps what it was sent.
type fake struct {
	forebayv1.UnimplementedInferenceServiceServer
	address string
	// refuse is what the call of a number, from 0, meets; nil, or an error that is nil: its inputs are the answer.
	refuse func(ctx context.Context, call int) error
	// stream answers the stream of a number, from 0; nil: as an echo does.
	stream func(call int, stream itemStream) error

	mutex sync.Mutex
	calls int
	seen  [][]uint64 // the ids of the items of each stream
}

type itemStream = grpc.BidiStreamingServer[forebayv1.StreamPredictRequest, forebayv1.StreamPredictResponse]

func newFake(t *testing.T, server *fake, options ...grpc.ServerOption) *fake {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server.address = listener.Addr().String()
	running := grpc.NewServer(options...)
	forebayv1.RegisterInferenceServiceServer(running, server)
	go func() { _ = running.Serve(listener) }()
	t.Cleanup(running.Stop)
	return server
}

// called gives each call its number.
func (f *fake) called() int {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.calls++
	return f.calls - 1
}

func (f *fake) count() int {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return f.calls
}

// ids are those of the items of each stream so far.
func (f *fake) ids() [][]uint64 {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return append([][]uint64(nil), f.seen...)
}

func (f *fake) Predict(ctx context.Context, request *forebayv1.PredictRequest) (*forebayv1.PredictResponse, error) {
	call := f.called()
	if f.refuse != nil {
		if err := f.refuse(ctx, call); err != nil {
			return nil, err
		}
	}
	return answer(request), nil
}

func (f *fake) StreamPredict(stream itemStream) error {
	call := f.called()
	f.mutex.Lock()
	f.seen = append(f.seen, nil)
	f.mutex.Unlock()
	kept := &keeping{itemStream: stream, server: f, call: call}
	if f.stream != nil {
		return f.stream(call, kept)
	}
	return echo(kept)
}

// keeping notes what it receives.
type keeping struct {
	itemStream
	server *fake
	call   int
}

func (k *keeping) Recv() (*forebayv1.StreamPredictRequest, error) {
	message, err := k.itemStream.Recv()
	k.server.mutex.Lock()
	defer k.server.mutex.Unlock()
	for _, item := range message.GetItems() {
		k.server.seen[k.call] = append(k.server.seen[k.call], item.GetId())
	}
	return message, err
}

// echo answers every item with its inputs as outputs y.
func echo(stream itemStream) error {
	for {
		message, err := stream.Recv()
		if err != nil {
			return nil // the caller has closed its side, or is gone
		}
		response := &forebayv1.StreamPredictResponse{}
		for _, item := range message.GetItems() {
			response.Results = append(response.Results, echoed(item))
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

func echoed(item *forebayv1.StreamItem) *forebayv1.StreamResult {
	return &forebayv1.StreamResult{
		Id: item.GetId(), Outcome: &forebayv1.StreamResult_Response{Response: answer(item.GetRequest())},
	}
}

func answer(request *forebayv1.PredictRequest) *forebayv1.PredictResponse {
	response := &forebayv1.PredictResponse{Model: request.GetModel(), Version: 1}
	for _, input := range request.GetInputs() {
		response.Outputs = append(response.Outputs, &forebayv1.Tensor{
			Name: "y", DataType: input.GetDataType(), Shape: input.GetShape(), Data: input.GetData(),
		})
	}
	return response
}

// failed is a status with a reason, and a time to come back if there is one.
func failed(t *testing.T, code codes.Code, reason string, delay time.Duration) *status.Status {
	t.Helper()
	made, err := status.New(code, "as the test wants it").WithDetails(
		&errdetails.ErrorInfo{Reason: reason, Domain: "forebay"},
	)
	if err == nil && delay > 0 {
		made, err = made.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})
	}
	if err != nil {
		t.Fatal(err)
	}
	return made
}
