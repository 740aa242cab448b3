package forebay_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	forebay "github.com/forebay/forebay/clients/go"
)

var address = sync.OnceValue(func() string {
	folder, err := os.MkdirTemp("", "forebay")
	if err != nil {
		panic(err)
	}
	started, err := start(folder, "--jobs", filepath.Join(folder, "jobs.db"))
	if err != nil {
		panic(err)
	}
	atEnd = func() { started.kill(); _ = os.RemoveAll(folder) }
	return started.address
})

var atEnd = func() {}

func TestMain(m *testing.M) {
	code := m.Run()
	atEnd()
	os.Exit(code)
}

func Example() {
	client, err := forebay.Dial(address()) // "localhost:8500"
	if err != nil {
		panic(err)
	}
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	x, err := forebay.NewTensor("x", []int64{2, 4}, []float32{1, 2, 3, 4, 5, 6, 8, 9})
	if err != nil {
		panic(err)
	}
	result, err := client.Predict(ctx, "echo", []*forebay.Tensor{x}, forebay.RequestID("order-17"))
	if err != nil {
		panic(err)
	}
	row, err := forebay.Row[float32](result.Output("y"), 1)
	fmt.Println(result.Model, result.Version, result.RequestID, row, err)
	// Output: echo 1 order-17 [5 6 8 9] <nil>
}

func ExampleError() {
	client, err := forebay.Dial(address())
	if err != nil {
		panic(err)
	}
	defer func() { _ = client.Close() }()
	x, err := forebay.NewTensor("x", []int64{1, 3}, []float32{1, 2, 3})
	if err != nil {
		panic(err)
	}
	_, err = client.Predict(context.Background(), "echo", []*forebay.Tensor{x})
	var failure *forebay.Error
	if errors.As(err, &failure) {
		fmt.Println(failure.Code, failure.ReasonName, failure.Temporary(), failure.Violations[0].Field)
	}
	// Output: InvalidArgument INVALID_TENSOR false inputs[0].shape
}

func ExampleClient_Stream() {
	client, err := forebay.Dial(address())
	if err != nil {
		panic(err)
	}
	defer func() { _ = client.Close() }()
	var source iter.Seq[[]*forebay.Tensor] = func(yield func([]*forebay.Tensor) bool) {
		for _, value := range []float32{1, 13, 3} {
			x, err := forebay.NewTensor("x", []int64{1, 4}, []float32{value, value, value, value})
			if err != nil || !yield([]*forebay.Tensor{x}) {
				return
			}
		}
	}
	for outcome, err := range client.Stream(context.Background(), "echo", source, forebay.Window(64)) {
		if err != nil {
			panic(err)
		}
		if outcome.Err != nil {
			fmt.Println(outcome.Index, outcome.Err)
			continue
		}
		values, _ := forebay.Values[float32](outcome.Result.Output("y"))
		fmt.Println(outcome.Index, values[0])
	}
	// Output:
	// 0 1
	// 1 forebay: InvalidArgument (INPUT_REJECTED): the synthetic engine refuses this row
	// 2 3
}

func ExampleClient_Submit() {
	client, err := forebay.Dial(address())
	if err != nil {
		panic(err)
	}
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	x, err := forebay.NewTensor("x", []int64{1, 4}, []float32{1, 2, 3, 4})
	if err != nil {
		panic(err)
	}
	job, err := client.Submit(ctx, "echo", []*forebay.Tensor{x}, forebay.JobKey("invoice-4711"))
	if err != nil {
		panic(err)
	}
	result, err := client.Wait(ctx, job.ID)
	if err != nil {
		panic(err)
	}
	values, err := forebay.Values[float32](result.Output("y"))
	fmt.Println(values, err)
	// Output: [1 2 3 4] <nil>
}
