package forebay_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	forebay "github.com/forebay/forebay/clients/go"
)

// attempts counts what is really sent, gRPC's own repetitions included.
type attempts struct{ atomic.Int64 }

func (*attempts) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (*attempts) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (*attempts) HandleConn(context.Context, stats.ConnStats)                       {}

func (a *attempts) HandleRPC(_ context.Context, event stats.RPCStats) {
	if begin, ok := event.(*stats.Begin); ok && !begin.IsTransparentRetryAttempt {
		a.Add(1)
	}
}

func (a *attempts) option() forebay.Option {
	return forebay.WithDialOptions(grpc.WithStatsHandler(a))
}

func TestWhatWasShedIsSentAgain(t *testing.T) {
	// One row at a time, and two may wait; the server says when to come back.
	slow := serve(t, "--set", "models.0.batching.max_batch_size=1", "--set", "models.0.batching.max_queued_rows=2",
		"--set", "models.0.engine.options.base_ms=200")
	for name, test := range map[string]struct {
		retry forebay.Retry
		all   bool
	}{
		"with a policy": {forebay.Retry{Attempts: 100, Ratio: 1, Reserve: 1000}, true},
		"without one":   {forebay.Retry{Attempts: 1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			client := dial(t, slow.address, forebay.WithRetry(test.retry))
			ctx := within(t, 60*time.Second)
			var callers sync.WaitGroup
			var answered atomic.Int64
			for caller := range 16 {
				callers.Go(func() {
					result, err := client.Predict(ctx, "echo", rows(t, float32(100+caller)))
					var failure *forebay.Error
					switch {
					case err == nil && first(t, result) == float32(100+caller):
						answered.Add(1)
					case test.all || !errors.As(err, &failure) || failure.ReasonName != "QUEUE_FULL":
						t.Errorf("caller %d: %v %v", caller, result, err)
					}
				})
			}
			callers.Wait()
			if (answered.Load() == 16) != test.all {
				t.Errorf("%d of 16 were answered", answered.Load())
			}
		})
	}
}

func TestTheServersTimeIsKept(t *testing.T) {
	const delay = 300 * time.Millisecond
	for name, refuse := range map[string]func(ctx context.Context) error{
		"in the status": func(context.Context) error {
			return failed(t, codes.ResourceExhausted, "QUEUE_FULL", delay).Err()
		},
		"in a trailer alone": func(ctx context.Context) error {
			_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", "300"))
			return status.Error(codes.ResourceExhausted, "a proxy's")
		},
	} {
		t.Run(name, func(t *testing.T) {
			var instants [2]time.Time
			server := newFake(t, &fake{refuse: func(ctx context.Context, call int) error {
				instants[call] = time.Now()
				if call == 0 {
					return refuse(ctx)
				}
				return nil
			}})
			result, err := dial(t, server.address).Predict(within(t, 20*time.Second), "m", rows(t, 5))
			if err != nil || first(t, result) != 5 {
				t.Fatalf("%v %v", result, err)
			}
			if waited := instants[1].Sub(instants[0]); waited < delay {
				t.Errorf("it came back after %v", waited)
			}
		})
	}
}

func TestAllAttemptsShareOneDeadline(t *testing.T) {
	var left []time.Duration
	server := newFake(t, &fake{refuse: func(ctx context.Context, _ int) error {
		deadline, _ := ctx.Deadline()
		left = append(left, time.Until(deadline))
		return failed(t, codes.ResourceExhausted, "QUEUE_FULL", 100*time.Millisecond).Err()
	}})
	_, err := dial(t, server.address).Predict(within(t, 20*time.Second), "m", rows(t, 5))
	var failure *forebay.Error
	if !errors.As(err, &failure) || failure.ReasonName != "QUEUE_FULL" || len(left) != forebay.DefaultRetry().Attempts {
		t.Fatalf("%v after %d attempts", err, len(left))
	}
	for index := 1; index < len(left); index++ {
		if left[index] > left[index-1]-50*time.Millisecond {
			t.Errorf("an attempt had %v, the one before it %v", left[index], left[index-1])
		}
	}
}

func TestTheBudgetEndsRepetitions(t *testing.T) {
	server := newFake(t, &fake{refuse: func(context.Context, int) error {
		return failed(t, codes.ResourceExhausted, "QUEUE_FULL", time.Millisecond).Err()
	}})
	client := dial(t, server.address, forebay.WithRetry(forebay.Retry{Attempts: 4, Ratio: 0.1, Reserve: 5}))
	for range 20 {
		if _, err := client.Predict(within(t, 20*time.Second), "m", rows(t, 5)); err == nil {
			t.Fatal("it was answered")
		}
	}
	// Five are saved up, and twenty calls earn less than two more.
	if calls := server.count(); calls < 20+5 || calls > 20+6 {
		t.Errorf("%d calls arrived", calls)
	}
}

func TestAMessageOverTheLimitIsNeverSentAgain(t *testing.T) {
	strict := serve(t, "--set", "limits.max_receive_mib=0.5", "--set", "models.0.engine.options.shape=?")
	short := serve(t, "--set", "limits.max_send_mib=0.5", "--set", "models.0.engine.options.shape=?")
	other := newFake(t, &fake{}, grpc.MaxRecvMsgSize(1<<19)) // gRPC's own words for it
	for name, test := range map[string]struct {
		address string
		options []forebay.Option
		sent    int64
	}{
		"for the server to read":     {strict.address, nil, 1},
		"for the server to send":     {short.address, nil, 1},
		"for another server to read": {other.address, nil, 1},
		"for this client to send":    {other.address, []forebay.Option{forebay.WithMaxMessageBytes(1 << 19)}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var sent attempts
			client := dial(t, test.address, append(test.options, sent.option())...)
			_, err := client.Predict(within(t, 20*time.Second), "echo", mebibyte(t))
			var failure *forebay.Error
			if !errors.As(err, &failure) || failure.Code != codes.ResourceExhausted || failure.Temporary() {
				t.Errorf("%v", err)
			}
			if got := sent.Load(); got != test.sent {
				t.Errorf("%d attempts", got)
			}
		})
	}
}

func TestWhatMetNobodyIsSentAgain(t *testing.T) {
	// gRPC gives up after tenths of a second: longer pauses are the client's own.
	server := newFake(t, &fake{refuse: func(_ context.Context, call int) error {
		if call < 5 {
			return failed(t, codes.Unavailable, "MODEL_LOADING", 0).Err()
		}
		return nil
	}})
	var sent attempts
	client := dial(t, server.address, sent.option())
	if _, err := client.Predict(within(t, 20*time.Second), "m", rows(t, 5)); err != nil {
		t.Fatal(err)
	}
	if got := sent.Load(); got != 6 {
		t.Errorf("%d attempts", got)
	}
}
