package forebay

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	forebayv1 "github.com/forebay/forebay/gen/go/forebay/v1"
)

const (
	defaultWindow = 256 // the server's default, too
	itemsAMessage = 64  // many in a message are cheaper than one; a message goes out as soon as the source pauses
)

// Outcome is what became of one item of a stream.
type Outcome struct {
	// Index is the item's place in the source, from 0.
	Index int
	// Result is what the model answered; nil if Err is set.
	Result *Result
	// Err is the item's own error, an *Error. The stream goes on.
	Err error
}

// StreamOption changes a stream.
type StreamOption func(*streamSettings)

type streamSettings struct {
	window   int
	order    forebayv1.ResultOrder
	timeout  time.Duration
	requests []RequestOption
}

// Window sets the most items in flight; the server may have a lower limit. The source is not read further ahead.
func Window(items int) StreamOption {
	return func(s *streamSettings) { s.window = max(items, 1) }
}

// AsCompleted gives outcomes as they complete. By default they come in the order of the source.
func AsCompleted() StreamOption {
	return func(s *streamSettings) { s.order = forebayv1.ResultOrder_RESULT_ORDER_AS_COMPLETED }
}

// ItemTimeout sets the time allowed for each item, from the moment when the server takes it up.
func ItemTimeout(timeout time.Duration) StreamOption {
	return func(s *streamSettings) { s.timeout = timeout }
}

// ItemOptions sets options of each request.
func ItemOptions(options ...RequestOption) StreamOption {
	return func(s *streamSettings) { s.requests = append(s.requests, options...) }
}

// Stream runs a request for each element of the source over one stream. The source is read in a goroutine of its own, at
// most a window ahead of the results. The error that ends the iteration is the stream's; errors of items are in their
// outcomes. To leave the loop early cancels what is in flight.
//
// The context's deadline is that of the whole stream; without one it lasts as long as it takes.
func (c *Client) Stream(ctx context.Context, model string, source iter.Seq[[]*Tensor], options ...StreamOption) iter.Seq2[Outcome, error] {
	s := streamSettings{window: defaultWindow, order: forebayv1.ResultOrder_RESULT_ORDER_AS_SENT}
	for _, option := range options {
		option(&s)
	}
	return func(yield func(Outcome, error) bool) {
		ctx, cancel := context.WithCancel(c.outgoing(ctx))
		stream, err := c.inference.StreamPredict(ctx)
		if err != nil {
			cancel()
			yield(Outcome{}, wrap(err))
			return
		}
		items := make(chan *forebayv1.StreamItem)
		room := make(chan struct{}, s.window)
		var running sync.WaitGroup
		running.Go(func() { read(ctx, model, source, &s, items, room) })
		running.Go(func() { send(ctx, stream, &s, items) })
		defer running.Wait()
		defer cancel()
		receive(stream, room, yield)
	}
}

type call = grpc.BidiStreamingClient[forebayv1.StreamPredictRequest, forebayv1.StreamPredictResponse]

// read makes items of the source while the window has room.
func read(
	ctx context.Context, model string, source iter.Seq[[]*Tensor], s *streamSettings,
	items chan<- *forebayv1.StreamItem, room chan<- struct{},
) {
	defer close(items)
	id := uint64(0)
	for inputs := range source {
		item := &forebayv1.StreamItem{Id: id, Request: requestOf(model, inputs, s.requests)}
		if s.timeout > 0 {
			item.Timeout = durationpb.New(s.timeout)
		}
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		select {
		case items <- item:
		case <-ctx.Done():
			return
		}
		id++
	}
}

// send puts the items that are there into messages. What goes wrong is told by the stream's end.
func send(ctx context.Context, stream call, s *streamSettings, items <-chan *forebayv1.StreamItem) {
	message := &forebayv1.StreamPredictRequest{
		Options: &forebayv1.StreamOptions{Order: s.order, MaxInFlight: int32(min(s.window, 1<<20))},
	}
	for {
		open := gather(ctx, message, items)
		if len(message.Items) > 0 && stream.Send(message) != nil {
			return
		}
		if !open {
			// An error here has its cause in what Recv tells.
			_ = stream.CloseSend()
			return
		}
		message = &forebayv1.StreamPredictRequest{}
	}
}

// gather waits for an item and takes those that follow it at once; whether there may be more.
func gather(ctx context.Context, message *forebayv1.StreamPredictRequest, items <-chan *forebayv1.StreamItem) bool {
	select {
	case item, ok := <-items:
		if !ok {
			return false
		}
		message.Items = append(message.Items, item)
	case <-ctx.Done():
		return false
	}
	for len(message.Items) < itemsAMessage {
		select {
		case item, ok := <-items:
			if !ok {
				return false
			}
			message.Items = append(message.Items, item)
		default:
			return true
		}
	}
	return true
}

// receive yields outcomes until the stream ends or nobody wants more.
func receive(stream call, room <-chan struct{}, yield func(Outcome, error) bool) {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			yield(Outcome{}, wrap(err))
			return
		}
		for _, result := range message.GetResults() {
			<-room
			outcome := Outcome{Index: int(result.GetId())}
			if response := result.GetResponse(); response != nil {
				outcome.Result = resultOf(response)
			} else {
				outcome.Err = fromProto(result.GetError())
			}
			if !yield(outcome, nil) {
				return
			}
		}
	}
}
