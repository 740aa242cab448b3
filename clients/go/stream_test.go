package forebay_test

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	forebay "github.com/forebay/forebay/clients/go"
)

func numbers(t *testing.T, from, to int) iter.Seq[[]*forebay.Tensor] {
	return func(yield func([]*forebay.Tensor) bool) {
		for number := from; number < to; number++ {
			if !yield(rows(t, float32(number))) {
				return
			}
		}
	}
}

func TestStream(t *testing.T) {
	client := dial(t, serve(t).address)
	background := context.Background()

	t.Run("outcomes come in the order of the source", func(t *testing.T) {
		next := 0
		for outcome, err := range client.Stream(background, "echo", numbers(t, 100, 1100), forebay.Window(64)) {
			if err != nil {
				t.Fatal(err)
			}
			if outcome.Err != nil || outcome.Index != next || first(t, outcome.Result) != float32(100+next) {
				t.Fatalf("item %d: %+v", next, outcome)
			}
			next++
		}
		if next != 1000 {
			t.Errorf("%d outcomes", next)
		}
	})

	t.Run("as completed, each comes once", func(t *testing.T) {
		seen := map[int]bool{}
		for outcome, err := range client.Stream(background, "echo", numbers(t, 100, 600), forebay.AsCompleted()) {
			if err != nil {
				t.Fatal(err)
			}
			if seen[outcome.Index] || first(t, outcome.Result) != float32(100+outcome.Index) {
				t.Fatalf("%+v", outcome)
			}
			seen[outcome.Index] = true
		}
		if len(seen) != 500 {
			t.Errorf("%d outcomes", len(seen))
		}
	})

	t.Run("an item's error leaves the others alone", func(t *testing.T) {
		failed := 0
		for outcome, err := range client.Stream(background, "echo", numbers(t, 0, 32)) {
			if err != nil {
				t.Fatal(err)
			}
			var failure *forebay.Error
			switch outcome.Index {
			case 7, 13:
				failed++
				if !errors.As(outcome.Err, &failure) || failure.ReasonName == "" || outcome.Result != nil {
					t.Errorf("%+v", outcome)
				}
			default:
				if outcome.Err != nil {
					t.Error(outcome.Err)
				}
			}
		}
		if failed != 2 {
			t.Errorf("%d items failed", failed)
		}
	})

	t.Run("the source is read a window ahead and no further", func(t *testing.T) {
		var read atomic.Int64
		source := func(yield func([]*forebay.Tensor) bool) {
			for yield(rows(t, 1)) {
				read.Add(1)
			}
		}
		taken := int64(0)
		for _, err := range client.Stream(background, "echo", source, forebay.Window(8)) {
			if err != nil {
				t.Fatal(err)
			}
			if taken++; taken == 20 {
				time.Sleep(50 * time.Millisecond)
				break
			}
		}
		// What was taken, what is in flight, and the one that waits for room.
		if got := read.Load(); got > taken+8+1 {
			t.Errorf("%d were read, %d taken", got, taken)
		}
	})

	t.Run("the stream's own error ends it", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(background, 50*time.Millisecond)
		defer cancel()
		waiting := func(yield func([]*forebay.Tensor) bool) {
			if yield(rows(t, 1)) {
				<-ctx.Done()
			}
		}
		var last error
		for _, err := range client.Stream(ctx, "echo", waiting) {
			last = err
		}
		var failure *forebay.Error
		if !errors.As(last, &failure) || failure.Code != codes.DeadlineExceeded {
			t.Errorf("%v", last)
		}
	})
}
