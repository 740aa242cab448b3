package forebay_test

import (
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	forebay "github.com/forebay/forebay/clients/go"
)

func TestNoCallFailsWhenAReplicaIsKilled(t *testing.T) {
	replicas := []*server{
		serve(t, "--set", "models.0.engine.options.shape=?", "--set", "models.0.engine.options.base_ms=20"),
		serve(t, "--set", "models.0.engine.options.shape=?", "--set", "models.0.engine.options.base_ms=20"),
	}
	both := manual.NewBuilderWithScheme("both")
	both.InitialState(resolver.State{Addresses: []resolver.Address{
		{Addr: replicas[0].address}, {Addr: replicas[1].address},
	}})
	client := dial(t, "both:///replicas", forebay.WithDialOptions(grpc.WithResolvers(both)))
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
			_ = replicas[0].command.Process.Signal(syscall.SIGKILL)
		}
		numbers <- number
	}
	close(numbers)
	callers.Wait()
}
