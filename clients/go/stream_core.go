package forebay

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

const (
	itemsPerMessage = 64      // many in a message are cheaper than one; a message goes out as soon as the source pauses
	bytesPerMessage = 1 << 20 // of inputs, unless one item alone has more: servers refuse messages of 16 MiB
)

// core is what a stream decides: what goes into the next message, what each item came to, when to connect again. It has
// no goroutine, channel or lock; [Client.Stream] acts on it and keeps calls to it from overlapping.
//
// The life of an item: taken from the source, sent, answered, delivered to the caller. Items between taken and delivered
// are held: never more than the window, and no more are taken while their inputs have as many bytes as it may, so that one
// item at most goes beyond that. Each item that was taken has one outcome, a result or an error.
//
// If the server goes away or drains, another call is made, and what was sent and not answered is sent again on it; what
// was answered is not. Only if nobody has answered anything for the time of an outage, though items wait for an answer, is
// the stream over.
type core struct {
	options     *forebayv1.StreamOptions
	patience    patience
	window      int // items
	windowBytes int

	unanswered map[uint64]*forebayv1.StreamItem
	sizes      map[uint64]int // bytes of the inputs of each item that is held
	heldBytes  int
	taken      uint64 // items, so far
	exhausted  bool   // the source has no more
	closed     bool   // no more is taken

	// Of the present call.
	sending bool                    // it takes items
	begun   bool                    // the options were sent on it
	drained bool                    // its server takes no new items
	pending []*forebayv1.StreamItem // to be sent on it, in order
}

func newCore(s *streamSettings) *core {
	return &core{
		options:     &forebayv1.StreamOptions{Order: s.order, MaxInFlight: int32(min(s.window, 1<<20))},
		patience:    newPatience(s.outage),
		window:      s.window,
		windowBytes: s.windowBytes,
		unanswered:  map[uint64]*forebayv1.StreamItem{},
		sizes:       map[uint64]int{},
	}
}

// reconnects is whether another call may follow one that was lost.
func (c *core) reconnects() bool { return c.patience.outage > 0 }

// begin begins a call: everything that has no answer is to be sent on it.
func (c *core) begin() {
	c.sending, c.begun, c.drained = true, false, false
	c.pending = c.left()
}

// left is what has no answer, in the order of the source.
func (c *core) left() []*forebayv1.StreamItem {
	return slices.SortedFunc(maps.Values(c.unanswered), func(a, b *forebayv1.StreamItem) int {
		return cmp.Compare(a.GetId(), b.GetId())
	})
}

// room is whether the window lets the source be read.
func (c *core) room() bool { return len(c.sizes) < c.window && c.heldBytes < c.windowBytes }

// take takes an item from the source; false if it is too late for it.
func (c *core) take(item *forebayv1.StreamItem) bool {
	if c.closed {
		return false
	}
	item.Id = c.taken
	c.taken++
	c.unanswered[item.Id] = item
	c.sizes[item.Id] = dataOf(item)
	c.heldBytes += c.sizes[item.Id]
	if c.sending {
		c.pending = append(c.pending, item)
	}
	return true
}

// deliver tells that an outcome is given out, which makes room.
func (c *core) deliver(outcome Outcome) {
	id := uint64(outcome.Index)
	c.heldBytes -= c.sizes[id]
	delete(c.sizes, id)
}

// exhaust tells that the source has no more.
func (c *core) exhaust() {
	if !c.closed {
		c.closed, c.exhausted = true, true
	}
}

// next is what to send on the present call now; nil if there is nothing, and then whether there may be later.
func (c *core) next() (message *forebayv1.StreamPredictRequest, more bool) {
	if !c.sending || len(c.pending) == 0 {
		return nil, c.sending && !c.closed
	}
	count, bytes := 0, 0
	for _, item := range c.pending[:min(len(c.pending), itemsPerMessage)] {
		bytes += c.sizes[item.GetId()]
		if count > 0 && bytes > bytesPerMessage {
			break
		}
		count++
	}
	message = &forebayv1.StreamPredictRequest{Items: c.pending[:count:count]}
	c.pending = c.pending[count:]
	if !c.begun {
		c.begun = true
		message.Options = c.options
	}
	return message, true
}

func dataOf(item *forebayv1.StreamItem) int {
	bytes := 0
	for _, input := range item.GetRequest().GetInputs() {
		bytes += len(input.GetData())
	}
	return bytes
}

// receive is what a message of the server comes to. An error, which comes after those outcomes, is a fault of the server
// with which the stream ends.
func (c *core) receive(response *forebayv1.StreamPredictResponse) ([]Outcome, *Error) {
	outcomes := make([]Outcome, 0, len(response.GetResults()))
	for _, result := range response.GetResults() {
		if !c.inFlight(result.GetId()) {
			return outcomes, badResponse(fmt.Sprintf("the server answered item %d, which is not in flight", result.GetId()))
		}
		outcome := outcomeOfItem(result)
		if c.reconnects() && isRefusal(outcome.Err) {
			continue // for the next call
		}
		delete(c.unanswered, result.GetId())
		outcomes = append(outcomes, outcome)
	}
	if len(outcomes) > 0 {
		c.patience.restore()
	}
	if response.GetDrain() != nil {
		c.drained, c.sending = true, false // what is pending goes with the next call, or fails at the end
		c.pending = nil
		c.closed = c.closed || !c.reconnects()
	}
	return outcomes, nil
}

// inFlight is whether an item has been sent on the present call and not been answered.
func (c *core) inFlight(id uint64) bool {
	_, found := c.unanswered[id]
	return found && (len(c.pending) == 0 || id < c.pending[0].GetId())
}

// end is the end of the present call with this error, or with OK if it is nil. Either another call is to be made after a
// pause; or the stream is over, and what was not answered failed with the cause, which is nil if all was.
func (c *core) end(ctx context.Context, failure *Error) (pause time.Duration, again bool, cause *Error) {
	c.sending, c.pending = false, nil
	switch {
	case len(c.unanswered) == 0 && c.exhausted:
		return 0, false, nil
	case ctx.Err() != nil:
		cause = fromError(ctx.Err())
	case c.drained:
		cause = draining()
	case failure == nil:
		cause = unavailable("the server ended the stream before all was answered")
	default:
		cause = failure
	}
	if c.reconnects() && cause.Code == codes.Unavailable {
		if len(c.unanswered) == 0 {
			return c.patience.pauses.next(0), true, nil // nobody owes an answer, so that this is no outage
		}
		if pause, again = c.patience.after(ctx, cause); again {
			return pause, true, nil
		}
	}
	c.closed = true
	return 0, false, cause
}

func outcomeOfItem(result *forebayv1.StreamResult) Outcome {
	outcome := Outcome{Index: int(result.GetId())}
	switch kind := result.GetOutcome().(type) {
	case *forebayv1.StreamResult_Response:
		outcome.Result = resultOf(kind.Response)
	case *forebayv1.StreamResult_Error:
		outcome.Err = fromProto(kind.Error)
	default:
		outcome.Err = badResponse("the server sent a result without an outcome")
	}
	return outcome
}

// isRefusal is whether the server did not take an item, because it drains.
func isRefusal(err error) bool {
	failure, ok := err.(*Error)
	return ok && failure.Code == codes.Unavailable && failure.Reason == forebayv1.ErrorReason_ERROR_REASON_DRAINING
}

func draining() *Error {
	failure := unavailable("the server is shutting down and did not take this")
	failure.Reason, failure.ReasonName = forebayv1.ErrorReason_ERROR_REASON_DRAINING, "DRAINING"
	return failure
}

// badResponse is an answer that is not as the contract says.
func badResponse(message string) *Error { return fromStatus(status.New(codes.Internal, message)) }
