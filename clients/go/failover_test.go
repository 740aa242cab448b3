package forebay_test

import (
	"context"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	forebay "github.com/forebay/forebay/clients/go"
	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

// replicas starts two servers, and a client that knows both.
func replicas(t *testing.T) ([]*server, *forebay.Client) {
	t.Helper()
	var found []*server
	both := manual.NewBuilderWithScheme("both")
	var state resolver.State
	for range 2 {
		one := serve(t, "--set", "models.0.engine.options.shape=?", "--set", "models.0.engine.options.base_ms=20")
		found = append(found, one)
		state.Addresses = append(state.Addresses, resolver.Address{Addr: one.address})
	}
	both.InitialState(state)
	return found, dial(t, "both:///replicas", forebay.WithDialOptions(grpc.WithResolvers(both)))
}

// leaving are the ways in which a replica goes away.
var leaving = map[string]syscall.Signal{"killed": syscall.SIGKILL, "drained": syscall.SIGTERM}

func TestNoCallFailsWhenAReplicaGoesAway(t *testing.T) {
	for how, signal := range leaving {
		t.Run(how, func(t *testing.T) {
			servers, client := replicas(t)
			ctx := within(t, 60*time.Second)
			elements := make([]float32, 1<<18) // 1 MiB
			elements[0], elements[1] = 100, 101
			tensor, err := forebay.NewTensor("x", []int64{1, 1 << 18}, elements)
			if err != nil {
				t.Fatal(err)
			}
			numbers := make(chan int)
			var callers sync.WaitGroup
			for range 8 {
				callers.Go(func() {
					for number := range numbers {
						result, err := client.Predict(ctx, "echo", []*forebay.Tensor{tensor})
						if err != nil {
							t.Errorf("call %d: %v", number, err)
							continue
						}
						if first(t, result) != 100 {
							t.Errorf("call %d: another's answer", number)
						}
					}
				})
			}
			for number := range 120 {
				if number == 40 {
					_ = servers[0].command.Process.Signal(signal)
				}
				numbers <- number
			}
			close(numbers)
			callers.Wait()
		})
	}
}

func TestAStreamGoesOnWhenItsReplicaGoesAway(t *testing.T) {
	for how, signal := range leaving {
		t.Run(how, func(t *testing.T) {
			servers, client := replicas(t)
			ctx := within(t, 60*time.Second)
			next := 0
			for outcome, err := range client.Stream(ctx, "echo", numbers(t, 100, 500), forebay.Window(32)) {
				if err != nil || outcome.Err != nil || outcome.Index != next || first(t, outcome.Result) != float32(100+next) {
					t.Fatalf("item %d: %+v %v", next, outcome, err)
				}
				if next++; next == 50 {
					_ = busy(t, servers).command.Process.Signal(signal)
				}
			}
			if next != 400 {
				t.Errorf("%d outcomes", next)
			}
		})
	}
}

// busy is the server that has answered something.
func busy(t *testing.T, servers []*server) *server {
	t.Helper()
	for _, one := range servers {
		models := forebayv1.NewModelServiceClient(dial(t, one.address).Conn())
		response, err := models.GetStatistics(context.Background(), &forebayv1.GetStatisticsRequest{Model: "echo"})
		if err != nil {
			t.Fatal(err)
		}
		if len(response.GetStatistics()[0].GetOutcomes()) > 0 {
			return one
		}
	}
	t.Fatal("nobody has answered anything")
	return nil
}

func TestAStreamGoesOnWhenItsServerIsRestarted(t *testing.T) {
	before := serve(t)
	client := dial(t, before.address)
	next := 0
	source := numbers(t, 100, 400)
	for outcome, err := range client.Stream(within(t, 60*time.Second), "echo", source, forebay.Outage(50*time.Second)) {
		if err != nil || outcome.Err != nil || outcome.Index != next || first(t, outcome.Result) != float32(100+next) {
			t.Fatalf("item %d: %+v %v", next, outcome, err)
		}
		if next++; next == 50 {
			before.kill()
			serve(t, "--listen", before.address)
		}
	}
	if next != 300 {
		t.Errorf("%d outcomes", next)
	}
}
