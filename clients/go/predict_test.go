package forebay_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	forebay "github.com/forebay/forebay/clients/go"
	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

func TestPredict(t *testing.T) {
	client := dial(t, serve(t).address)

	t.Run("many callers get their own answers", func(t *testing.T) {
		var callers sync.WaitGroup
		for caller := range 32 {
			callers.Go(func() {
				value := float32(caller + 100)
				result, err := client.Predict(context.Background(), "echo", rows(t, value), forebay.ReportTimings())
				if err != nil {
					t.Error(err)
					return
				}
				if got := first(t, result); got != value {
					t.Errorf("caller %v got the answer of %v", value, got)
				}
				if result.Timings.GetBatchRows() < 1 {
					t.Error("no timings")
				}
			})
		}
		callers.Wait()
	})

	t.Run("a request may have many rows", func(t *testing.T) {
		result, err := client.Predict(context.Background(), "echo", rows(t, 1, 2, 3), forebay.RequestID("mine"))
		if err != nil {
			t.Fatal(err)
		}
		row, err := forebay.Row[float32](result.Output("y"), 2)
		if err != nil {
			t.Fatal(err)
		}
		if want := []float32{3, 3, 3, 3}; !slices.Equal(row, want) {
			t.Errorf("row 2 is %v", row)
		}
		if result.Model != "echo" || result.Version != 1 || result.RequestID != "mine" {
			t.Errorf("%q %d %q", result.Model, result.Version, result.RequestID)
		}
		if result.Output("z") != nil {
			t.Error("there is an output that the model does not have")
		}
	})
}

func TestErrors(t *testing.T) {
	client := dial(t, serve(t).address)
	background := context.Background()
	expired, cancel := context.WithDeadline(background, time.Now().Add(-time.Second))
	defer cancel()
	wrong, err := forebay.NewTensor("x", []int64{1, 3}, []float32{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		ctx    context.Context
		model  string
		inputs []*forebay.Tensor
		code   codes.Code
		reason string
	}{
		"unknown model":   {background, "other", rows(t, 1), codes.NotFound, "MODEL_NOT_FOUND"},
		"wrong shape":     {background, "echo", []*forebay.Tensor{wrong}, codes.InvalidArgument, "INVALID_TENSOR"},
		"rejected input":  {background, "echo", rows(t, 13), codes.InvalidArgument, "INPUT_REJECTED"},
		"failing engine":  {background, "echo", rows(t, 7), codes.Internal, "INTERNAL"},
		"expired context": {expired, "echo", rows(t, 1), codes.DeadlineExceeded, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.Predict(test.ctx, test.model, test.inputs)
			var failure *forebay.Error
			if !errors.As(err, &failure) {
				t.Fatalf("%T %v", err, err)
			}
			if failure.Code != test.code || failure.ReasonName != test.reason {
				t.Errorf("%v %q", failure.Code, failure.ReasonName)
			}
			if want := forebayv1.ErrorReason_value["ERROR_REASON_"+test.reason]; failure.Reason != forebay.Reason(want) {
				t.Errorf("reason %v", failure.Reason)
			}
			if status.Code(err) != test.code {
				t.Error("it is not the status that gRPC knows")
			}
			if failure.Temporary() {
				t.Error("it would be tried again")
			}
			if test.code == codes.Internal && len(failure.ErrorID) != 16 {
				t.Errorf("error id %q", failure.ErrorID)
			}
			if name == "wrong shape" && (len(failure.Violations) != 1 || failure.Violations[0].Field != "inputs[0].shape") {
				t.Errorf("violations %v", failure.Violations)
			}
		})
	}
}

func TestRefusalTellsWhenToComeBack(t *testing.T) {
	// One row at a time, 200 ms each, and two may wait.
	slow := serve(t, "--set", "models.0.batching.max_batch_size=1", "--set", "models.0.batching.max_queued_rows=2",
		"--set", "models.0.engine.options.base_ms=200")
	client := dial(t, slow.address, forebay.WithRetry(forebay.Retry{Attempts: 1}))
	var callers sync.WaitGroup
	refusals := make(chan *forebay.Error, 16)
	for range 16 {
		callers.Go(func() {
			_, err := client.Predict(context.Background(), "echo", rows(t, 1))
			var failure *forebay.Error
			if errors.As(err, &failure) {
				refusals <- failure
			}
		})
	}
	callers.Wait()
	close(refusals)
	count := 0
	for failure := range refusals {
		count++
		if failure.Code != codes.ResourceExhausted || failure.ReasonName != "QUEUE_FULL" {
			t.Errorf("%v", failure)
		}
		if !failure.Temporary() || failure.RetryDelay < 10*time.Millisecond || failure.RetryDelay > 30*time.Second {
			t.Errorf("come back after %v", failure.RetryDelay)
		}
	}
	if count < 10 {
		t.Errorf("%d refusals", count)
	}
}

func TestCallsSurviveARestart(t *testing.T) {
	first := serve(t)
	client := dial(t, first.address)
	if _, err := client.Predict(context.Background(), "echo", rows(t, 1)); err != nil {
		t.Fatal(err)
	}
	first.kill()
	_, err := client.Predict(context.Background(), "echo", rows(t, 1))
	var failure *forebay.Error
	if !errors.As(err, &failure) || failure.Code != codes.Unavailable || !failure.Temporary() {
		t.Fatalf("nobody answered, and the error is %v", err)
	}
	serve(t, "--listen", first.address)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		if _, err = client.Predict(ctx, "echo", rows(t, 1)); err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
