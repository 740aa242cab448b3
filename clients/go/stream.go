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
	defaultWindow      = 256      // items; the server's default, too
	defaultWindowBytes = 64 << 20 // a hundred images of 3 x 224 x 224 FP32, four messages of the largest size
	defaultOutage      = 10 * time.Second
)

// Outcome is what became of one item of a stream.
type Outcome struct {
	// Index is the item's place in the source, from 0.
	Index int
	// Result is what the model answered; nil if Err is set.
	Result *Result
	// Err is the item's error, an *Error. The stream goes on, unless it is the stream's own.
	Err error
}

// StreamOption changes a stream.
type StreamOption func(*streamSettings)

type streamSettings struct {
	window      int
	windowBytes int
	outage      time.Duration
	order       forebayv1.ResultOrder
	timeout     time.Duration
	requests    []RequestOption
}

// Window sets the most items that were read from the source and whose outcomes were not given out; 256 by default. The server
// may have a lower limit.
func Window(items int) StreamOption {
	return func(s *streamSettings) { s.window = max(items, 1) }
}

// WindowBytes sets with how many bytes of inputs among the items of the window no more are read from the source, so that one
// item at most goes beyond it; 64 MiB by default.
func WindowBytes(bytes int) StreamOption {
	return func(s *streamSettings) { s.windowBytes = max(bytes, 1) }
}

// Outage sets for how long at a stretch no server need answer; 10 s by default. Until then the stream connects again and
// sends what has no answer once more, each item with its whole timeout. 0: it does not.
func Outage(duration time.Duration) StreamOption {
	return func(s *streamSettings) { s.outage = max(duration, 0) }
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
// most a window ahead of the results, in items ([Window]) and in bytes ([WindowBytes]). Errors of items are in their
// outcomes. To leave the loop early cancels what is in flight. When the loop has ended the source is no longer read, so one
// that may wait should end with the context.
//
// If the server goes away or drains, the stream connects again, elsewhere if there is an elsewhere, and sends only what has
// no answer; each item that was read has one outcome. Only after an [Outage] without any answer, or if something else ends
// the stream, such as the context, do the items without an answer fail; then the stream's error ends the iteration, with
// an outcome whose Index is how many items were read.
//
// The context's deadline is that of the whole stream; without one it lasts as long as it takes.
func (c *Client) Stream(ctx context.Context, model string, source iter.Seq[[]*Tensor], options ...StreamOption) iter.Seq2[Outcome, error] {
	s := streamSettings{
		window: defaultWindow, windowBytes: defaultWindowBytes, outage: defaultOutage,
		order: forebayv1.ResultOrder_RESULT_ORDER_AS_SENT,
	}
	for _, option := range options {
		option(&s)
	}
	return func(yield func(Outcome, error) bool) {
		caller := ctx
		ctx, cancel := context.WithCancel(c.outgoing(ctx))
		stream := &stream{
			inference: c.inference,
			core:      newCore(&s),
			room:      make(chan struct{}, 1),
			news:      make(chan struct{}, 1),
		}
		var reading sync.WaitGroup
		reading.Go(func() {
			// A source that ends after the context may end for that, and have more.
			if stream.read(ctx, model, source, &s) && caller.Err() == nil {
				stream.exhaust()
			}
		})
		defer reading.Wait()
		defer cancel()
		stream.run(ctx, yield)
	}
}

// stream acts for a core. Three goroutines share it: one reads the source; one, per call, sends; the caller's receives.
type stream struct {
	inference forebayv1.InferenceServiceClient
	room      chan struct{} // has one if the window may have room again
	news      chan struct{} // has one if the core may have something new for the sender

	mutex sync.Mutex
	core  *core
}

// read makes items of the source while the window has room; whether it came to the source's end.
func (s *stream) read(ctx context.Context, model string, source iter.Seq[[]*Tensor], settings *streamSettings) bool {
	if !s.waitForRoom(ctx) {
		return false
	}
	for inputs := range source {
		item := &forebayv1.StreamItem{Request: requestOf(model, inputs, settings.requests)}
		if settings.timeout > 0 {
			item.Timeout = durationpb.New(settings.timeout)
		}
		if !s.take(item) || !s.waitForRoom(ctx) {
			return false
		}
	}
	return true
}

// waitForRoom waits until the window lets another item in; false: nobody wants it any more.
func (s *stream) waitForRoom(ctx context.Context) bool {
	for ctx.Err() == nil {
		s.mutex.Lock()
		room := s.core.room()
		s.mutex.Unlock()
		if room {
			return true
		}
		select {
		case <-s.room:
		case <-ctx.Done():
		}
	}
	return false
}

// deliver makes room for another item in the place of one whose outcome is given out.
func (s *stream) deliver(outcome Outcome) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.core.deliver(outcome)
	wake(s.room)
}

func (s *stream) exhaust() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	defer wake(s.news)
	s.core.exhaust()
}

func (s *stream) take(item *forebayv1.StreamItem) bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	defer wake(s.news)
	return s.core.take(item)
}

// wake has whoever waits for a channel of one element look again.
func wake(channel chan<- struct{}) {
	select {
	case channel <- struct{}{}:
	default: // it will look anyhow
	}
}

// run makes calls until the stream is over or nobody wants more.
func (s *stream) run(ctx context.Context, yield func(Outcome, error) bool) {
	for {
		failure, wanted := s.call(ctx, yield)
		if !wanted {
			return
		}
		s.mutex.Lock()
		pause, again, cause := s.core.end(ctx, failure)
		left, taken := s.core.left(), s.core.taken
		s.mutex.Unlock()
		if again {
			// If the context ends meanwhile, the next call tells.
			_ = sleep(ctx, pause)
			continue
		}
		if cause == nil {
			return
		}
		for _, item := range left {
			if !yield(Outcome{Index: int(item.GetId()), Err: cause}, nil) {
				return
			}
		}
		yield(Outcome{Index: int(taken)}, cause)
		return
	}
}

// call makes one call and gives out what it answers. It returns what the call ended with, nil for OK, and whether more is
// wanted.
func (s *stream) call(ctx context.Context, yield func(Outcome, error) bool) (failure *Error, wanted bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	call, err := s.inference.StreamPredict(ctx)
	if err != nil {
		return fromAttempt(ctx, err), true
	}
	s.mutex.Lock()
	s.core.begin()
	s.mutex.Unlock()
	var sending sync.WaitGroup
	sending.Go(func() { s.send(ctx, call) })
	defer sending.Wait()
	defer cancel()
	for {
		message, err := call.Recv()
		if errors.Is(err, io.EOF) {
			return nil, true
		}
		if err != nil {
			return fromAttempt(ctx, err), true
		}
		s.mutex.Lock()
		outcomes, failure := s.core.receive(message)
		wake(s.news)
		s.mutex.Unlock()
		for _, outcome := range outcomes {
			s.deliver(outcome)
			if !yield(outcome, nil) {
				return nil, false
			}
		}
		if failure != nil {
			return failure, true
		}
	}
}

// send sends on a call what the core has for it. What goes wrong is told by the call's end.
func (s *stream) send(ctx context.Context, call grpc.BidiStreamingClient[forebayv1.StreamPredictRequest, forebayv1.StreamPredictResponse]) {
	for {
		s.mutex.Lock()
		message, more := s.core.next()
		s.mutex.Unlock()
		switch {
		case message != nil:
			if call.Send(message) != nil {
				return
			}
		case !more:
			_ = call.CloseSend()
			return
		default:
			select {
			case <-s.news:
			case <-ctx.Done():
				return
			}
		}
	}
}
