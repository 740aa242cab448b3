package forebay_test

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	forebay "github.com/forebay/forebay/clients/go"
	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
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
		// What was taken, and what is in flight.
		if got := read.Load(); got > taken+8 {
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

// collect takes a whole stream: the outcomes, and the stream's own error with the index that it has.
func collect(stream iter.Seq2[forebay.Outcome, error]) (outcomes []forebay.Outcome, last forebay.Outcome, err error) {
	for outcome, failure := range stream {
		if failure != nil {
			last, err = outcome, failure
			continue
		}
		outcomes = append(outcomes, outcome)
	}
	return outcomes, last, err
}

func TestAStreamConnectsAgain(t *testing.T) {
	answerOne := func(stream itemStream) error {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		return stream.Send(&forebayv1.StreamPredictResponse{
			Results: []*forebayv1.StreamResult{echoed(message.GetItems()[0])},
		})
	}
	for name, breakOff := range map[string]func(stream itemStream) error{
		"after a server that went away": func(stream itemStream) error {
			return errors.Join(answerOne(stream), status.Error(codes.Unavailable, "gone"))
		},
		"after one that ended it early": answerOne,
		"after one that drains": func(stream itemStream) error {
			message, err := stream.Recv()
			if err != nil {
				return err
			}
			response := &forebayv1.StreamPredictResponse{Drain: &forebayv1.DrainNotice{}}
			refusal := failed(t, codes.Unavailable, "DRAINING", 0).Proto()
			for index, item := range message.GetItems() {
				result := &forebayv1.StreamResult{
					Id: item.GetId(), Outcome: &forebayv1.StreamResult_Error{Error: refusal},
				}
				if index == 0 {
					result = echoed(item)
				}
				response.Results = append(response.Results, result)
			}
			if err := stream.Send(response); err != nil {
				return err
			}
			for err == nil { // the caller closes its side
				_, err = stream.Recv()
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := newFake(t, &fake{stream: func(call int, stream itemStream) error {
				if call == 0 {
					return breakOff(stream)
				}
				return echo(stream)
			}})
			client := dial(t, server.address)
			outcomes, _, err := collect(client.Stream(within(t, 20*time.Second), "m", numbers(t, 0, 100), forebay.Window(16)))
			if err != nil || len(outcomes) != 100 {
				t.Fatalf("%d outcomes, %v", len(outcomes), err)
			}
			for index, outcome := range outcomes {
				if outcome.Index != index || outcome.Err != nil || first(t, outcome.Result) != float32(index) {
					t.Fatalf("%+v in place %d", outcome, index)
				}
			}
			streams := server.ids()
			if len(streams) != 2 || streams[1][0] != 1 || len(streams[1]) != 99 || !slices.IsSorted(streams[1]) {
				t.Errorf("sent were %v", streams)
			}
		})
	}
}

func TestAStreamThatIsOver(t *testing.T) {
	refusing := func(code codes.Code) func(int, itemStream) error {
		return func(_ int, stream itemStream) error {
			if _, err := stream.Recv(); err != nil {
				return err
			}
			return status.Error(code, "no")
		}
	}
	foreign := func(_ int, stream itemStream) error {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		return stream.Send(&forebayv1.StreamPredictResponse{Results: []*forebayv1.StreamResult{{Id: 4711}}})
	}
	for name, test := range map[string]struct {
		stream  func(call int, stream itemStream) error
		outage  time.Duration
		code    codes.Code
		several bool
	}{
		"after an outage":                    {refusing(codes.Unavailable), 300 * time.Millisecond, codes.Unavailable, true},
		"at once, if it need not bear any":   {refusing(codes.Unavailable), 0, codes.Unavailable, false},
		"at once, if the server can't count": {foreign, time.Minute, codes.Internal, false},
		"at once, if the server can't do it": {
			refusing(codes.Unimplemented), time.Minute, codes.Unimplemented, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := newFake(t, &fake{stream: test.stream})
			client := dial(t, server.address)
			source := func(yield func([]*forebay.Tensor) bool) {
				for yield(rows(t, 1)) {
				}
			}
			outcomes, last, err := collect(client.Stream(
				within(t, 20*time.Second), "m", source, forebay.Window(4), forebay.Outage(test.outage)))
			var failure *forebay.Error
			if !errors.As(err, &failure) || failure.Code != test.code {
				t.Errorf("%v", err)
			}
			// Each item that was read has failed, once and in order, and the error says where the rest begins.
			if len(outcomes) < 1 || len(outcomes) > 4 || last.Index != len(outcomes) {
				t.Errorf("%d items, and the rest begins at %d", len(outcomes), last.Index)
			}
			for index, outcome := range outcomes {
				if outcome.Index != index || status.Code(outcome.Err) != test.code || outcome.Result != nil {
					t.Errorf("%+v in place %d", outcome, index)
				}
			}
			if calls := server.count(); (calls > 1) != test.several {
				t.Errorf("%d calls", calls)
			}
		})
	}
}

func TestASlowSourceIsNotHeldUpForCompany(t *testing.T) {
	client := dial(t, newFake(t, &fake{}).address)
	arrived := make(chan struct{}, 1)
	arrived <- struct{}{}
	ctx := within(t, 20*time.Second)
	source := func(yield func([]*forebay.Tensor) bool) {
		for number := range 5 {
			select {
			case <-arrived: // each item needs the result of the one before
			case <-ctx.Done():
				return
			}
			if !yield(rows(t, float32(number))) {
				return
			}
		}
	}
	count := 0
	for outcome, err := range client.Stream(ctx, "m", source) {
		if err != nil || outcome.Index != count {
			t.Fatalf("%+v %v", outcome, err)
		}
		count++
		arrived <- struct{}{}
	}
	if count != 5 {
		t.Errorf("%d outcomes", count)
	}
}

// large is a source of inputs of 600 KB each, that counts what was read of it.
func large(t *testing.T, items int, read *atomic.Int64) iter.Seq[[]*forebay.Tensor] {
	tensor, err := forebay.NewTensor("x", []int64{1, 150_000}, make([]float32, 150_000))
	if err != nil {
		t.Fatal(err)
	}
	return func(yield func([]*forebay.Tensor) bool) {
		for range items {
			read.Add(1)
			if !yield([]*forebay.Tensor{tensor}) {
				return
			}
		}
	}
}

func TestLargeItemsCloseTheWindowByTheirBytes(t *testing.T) {
	var read atomic.Int64
	ctx := within(t, 60*time.Second)
	client := dial(t, newFake(t, &fake{stream: func(_ int, stream itemStream) error {
		for read.Load() < 4 && ctx.Err() == nil { // three, and one that goes beyond
			time.Sleep(time.Millisecond)
		}
		return echo(stream)
	}}).address)
	count := 0
	for outcome, err := range client.Stream(ctx, "m", large(t, 12, &read), forebay.WindowBytes(2_000_000)) {
		if err != nil || outcome.Err != nil {
			t.Fatal(err, outcome.Err)
		}
		count++
		if got := int(read.Load()); got > count+4 {
			t.Errorf("%d were read, %d given out", got, count)
		}
	}
	if count != 12 {
		t.Errorf("%d outcomes", count)
	}
}

func TestLargeItemsGoInMessagesOfTheirOwn(t *testing.T) {
	// Many items of 600 KB in one message would be over its limit of 16 MiB.
	client := dial(t, newFake(t, &fake{}, grpc.MaxRecvMsgSize(16<<20)).address)
	var read atomic.Int64
	outcomes, _, err := collect(client.Stream(within(t, 60*time.Second), "m", large(t, 32, &read)))
	if err != nil || len(outcomes) != 32 {
		t.Errorf("%d outcomes, %v", len(outcomes), err)
	}
}
