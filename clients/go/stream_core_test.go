package forebay

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

// begun is a core whose first call has begun, with items.
func begun(outage time.Duration, items int) *core {
	c := newCore(&streamSettings{window: 4, windowBytes: 1 << 20, outage: outage})
	c.patience.pauses.chance = func() float64 { return 0 }
	c.begin()
	give(c, items)
	return c
}

func give(c *core, items int) {
	for range items {
		c.take(&forebayv1.StreamItem{Request: &forebayv1.PredictRequest{}})
	}
}

// giveOf takes items whose inputs have so many bytes.
func giveOf(c *core, sizes ...int) {
	for _, size := range sizes {
		tensor := &Tensor{Data: make([]byte, size)}
		c.take(&forebayv1.StreamItem{Request: &forebayv1.PredictRequest{Inputs: []*Tensor{tensor}}})
	}
}

// deliver gives out what answers come to.
func deliver(c *core, ids ...uint64) {
	outcomes, _ := c.receive(answers(ids...))
	for _, outcome := range outcomes {
		c.deliver(outcome)
	}
}

// sent is everything that waits to be sent, by id.
func sent(c *core) (found []uint64) {
	for {
		message, _ := c.next()
		if message == nil {
			return found
		}
		for _, item := range message.GetItems() {
			found = append(found, item.GetId())
		}
	}
}

func answers(ids ...uint64) *forebayv1.StreamPredictResponse {
	response := &forebayv1.StreamPredictResponse{}
	for _, id := range ids {
		response.Results = append(response.Results, &forebayv1.StreamResult{
			Id: id, Outcome: &forebayv1.StreamResult_Response{Response: &forebayv1.PredictResponse{}},
		})
	}
	return response
}

func indices(outcomes []Outcome) (found []int) {
	for _, outcome := range outcomes {
		found = append(found, outcome.Index)
	}
	return found
}

func TestTheWindowIsClosedByItemsAndByBytes(t *testing.T) {
	c := begun(0, 3)
	if !c.room() {
		t.Error("three of four items leave no room")
	}
	give(c, 1)
	sent(c)
	outcomes, _ := c.receive(answers(0))
	if c.room() {
		t.Error("room is made by an answer that nobody has")
	}
	c.deliver(outcomes[0])
	if !c.room() {
		t.Error("three of four items leave no room")
	}

	c = newCore(&streamSettings{window: 100, windowBytes: 1000})
	c.begin()
	giveOf(c, 400, 599)
	if !c.room() {
		t.Error("999 of 1000 bytes leave no room")
	}
	giveOf(c, 500) // one item goes beyond it
	if c.room() {
		t.Error("1499 of 1000 bytes leave room")
	}
	sent(c)
	deliver(c, 0)
	if c.room() {
		t.Error("1099 of 1000 bytes leave room")
	}
	deliver(c, 1)
	if !c.room() {
		t.Error("500 of 1000 bytes leave no room")
	}
	giveOf(c, 5000, 0)
	sent(c)
	deliver(c, 3, 2)
	if !c.room() || c.heldBytes != 0 || len(c.sizes) != 1 {
		t.Errorf("%d bytes of %d items are held", c.heldBytes, len(c.sizes))
	}
}

func TestMessagesHoldWhatWaitsUpToTheirLimits(t *testing.T) {
	c := begun(0, itemsPerMessage+1)
	first, _ := c.next()
	second, more := c.next()
	if len(first.GetItems()) != itemsPerMessage || first.GetOptions().GetMaxInFlight() != 4 {
		t.Errorf("%d items, %v", len(first.GetItems()), first.GetOptions())
	}
	if len(second.GetItems()) != 1 || second.GetOptions() != nil || !more {
		t.Errorf("%d items, %v, %v", len(second.GetItems()), second.GetOptions(), more)
	}

	c = begun(0, 0)
	giveOf(c, bytesPerMessage/2, bytesPerMessage/2, 1, 3*bytesPerMessage, 1)
	var sizes []int
	for message, _ := c.next(); message != nil; message, _ = c.next() {
		sizes = append(sizes, len(message.GetItems()))
	}
	if !slices.Equal(sizes, []int{2, 1, 1, 1}) {
		t.Errorf("messages of %v", sizes)
	}
}

func TestOnlyWhatHasNoAnswerIsSentAgain(t *testing.T) {
	c := begun(10*time.Second, 4)
	if got := sent(c); !slices.Equal(got, []uint64{0, 1, 2, 3}) {
		t.Fatalf("%v", got)
	}
	outcomes, failure := c.receive(answers(1, 0))
	if !slices.Equal(indices(outcomes), []int{1, 0}) || failure != nil {
		t.Errorf("%v %v", outcomes, failure)
	}
	pause, again, cause := c.end(context.Background(), unavailable("gone"))
	if pause != 50*time.Millisecond || !again || cause != nil {
		t.Fatalf("%v %v %v", pause, again, cause)
	}
	give(c, 1) // the source is read while nobody is connected
	if got := sent(c); got != nil {
		t.Errorf("%v are sent on a call that is over", got)
	}
	c.begin()
	message, _ := c.next()
	if message.GetOptions() == nil || len(message.GetItems()) != 3 || message.GetItems()[0].GetId() != 2 {
		t.Errorf("%v", message)
	}
	c.exhaust()
	if _, more := c.next(); more {
		t.Error("more is to come of a source that has no more")
	}
	if outcomes, _ := c.receive(answers(2, 3, 4)); len(outcomes) != 3 {
		t.Errorf("%v", outcomes)
	}
	if _, again, cause := c.end(context.Background(), nil); again || cause != nil {
		t.Errorf("%v %v", again, cause)
	}
}

func TestADrainingServerIsLeft(t *testing.T) {
	refused := func(id uint64) *forebayv1.StreamResult {
		detailed, err := status.New(codes.Unavailable, "draining").WithDetails(
			&errdetails.ErrorInfo{Reason: "DRAINING", Domain: domain},
		)
		if err != nil {
			t.Fatal(err)
		}
		return &forebayv1.StreamResult{Id: id, Outcome: &forebayv1.StreamResult_Error{Error: detailed.Proto()}}
	}
	c := begun(10*time.Second, 3)
	sent(c)
	notice := answers(0)
	notice.Drain = &forebayv1.DrainNotice{}
	c.receive(notice)
	give(c, 1)
	if message, more := c.next(); message != nil || more {
		t.Errorf("%v %v: the caller's side is not closed", message, more)
	}
	outcomes, failure := c.receive(&forebayv1.StreamPredictResponse{Results: []*forebayv1.StreamResult{refused(1), refused(2)}})
	if len(outcomes) != 0 || failure != nil {
		t.Errorf("a refusal has become an outcome: %v %v", outcomes, failure)
	}
	if _, again, _ := c.end(context.Background(), nil); !again {
		t.Fatal("nobody else is asked")
	}
	c.begin()
	if got := sent(c); !slices.Equal(got, []uint64{1, 2, 3}) {
		t.Errorf("%v", got)
	}

	c = begun(0, 3) // one that does not connect again
	sent(c)
	c.receive(notice)
	if c.take(&forebayv1.StreamItem{}) {
		t.Error("more is taken")
	}
	outcomes, _ = c.receive(&forebayv1.StreamPredictResponse{Results: []*forebayv1.StreamResult{refused(1)}})
	if len(outcomes) != 1 || outcomes[0].Err == nil {
		t.Errorf("%v", outcomes)
	}
	_, again, cause := c.end(context.Background(), nil)
	if again || cause == nil || cause.ReasonName != "DRAINING" || len(c.left()) != 1 {
		t.Errorf("%v %v %v", again, cause, c.left())
	}
}

func TestTheEndOfAStream(t *testing.T) {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for _, test := range []struct {
		name      string
		outage    time.Duration
		answered  bool
		exhausted bool
		ctx       context.Context
		failure   *Error
		again     bool
		cause     codes.Code
	}{
		{"with OK after all is answered", 0, true, true, context.Background(), nil, false, codes.OK},
		{"with an error after all is answered", 0, true, true, context.Background(), unavailable("gone"), false, codes.OK},
		{"with OK too early", 0, false, true, context.Background(), nil, false, codes.Unavailable},
		{"with OK too early, connects again", time.Second, false, true, context.Background(), nil, true, codes.OK},
		{"a server that is not there is not the end", time.Second, true, false, context.Background(), unavailable("gone"), true, codes.OK},
		{"whatever else ends one call would end the next", time.Second, false, false, context.Background(), badResponse("x"), false, codes.Internal},
		{"the context, after all is answered", time.Second, true, true, over, unavailable("gone"), false, codes.OK},
		{"the context, while more may come", time.Second, true, false, over, nil, false, codes.Canceled},
		{"the context, while an answer is missing", time.Second, false, true, over, unavailable("gone"), false, codes.Canceled},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := begun(test.outage, 1)
			sent(c)
			if test.answered {
				c.receive(answers(0))
			}
			if test.exhausted {
				c.exhaust()
			}
			_, again, cause := c.end(test.ctx, test.failure)
			code := codes.OK
			if cause != nil {
				code = cause.Code
			}
			if again != test.again || code != test.cause {
				t.Errorf("%v %v", again, cause)
			}
			if again == c.closed && !test.exhausted {
				t.Error("it takes what it does not want, or does not take what it wants")
			}
		})
	}
}

func TestNobodyOwesAnAnswerToAnIdleStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := begun(time.Second, 0)
		for range 3 {
			time.Sleep(time.Minute)
			if _, again, _ := c.end(context.Background(), unavailable("gone")); !again {
				t.Fatal("a stream that asked nothing has failed")
			}
			c.begin()
		}
		give(c, 1)
		for tries := 0; ; tries++ {
			pause, again, cause := c.end(context.Background(), unavailable("gone"))
			if !again {
				if cause == nil || tries == 0 {
					t.Errorf("%v after %d tries", cause, tries)
				}
				return
			}
			time.Sleep(pause)
			c.begin()
		}
	})
}

func TestAServerThatAnswersWhatWasNotAskedIsLeft(t *testing.T) {
	c := begun(time.Second, 2)
	sent(c)
	outcomes, failure := c.receive(answers(0, 0, 1))
	if !slices.Equal(indices(outcomes), []int{0}) || failure == nil || failure.Code != codes.Internal {
		t.Errorf("%v %v", outcomes, failure)
	}
	give(c, 1)
	outcomes, failure = c.receive(answers(2)) // which is not sent yet
	if len(outcomes) != 0 || failure == nil || failure.Code != codes.Internal {
		t.Errorf("%v %v", outcomes, failure)
	}
	outcomes, failure = c.receive(&forebayv1.StreamPredictResponse{Results: []*forebayv1.StreamResult{{Id: 1}}})
	if failure != nil || len(outcomes) != 1 || status.Code(outcomes[0].Err) != codes.Internal {
		t.Errorf("%v %v", outcomes, failure)
	}
}
