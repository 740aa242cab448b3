package forebay

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// attempt is one that a test has written down: how long it takes and what it meets, nil for an answer.
type attempt struct {
	takes time.Duration
	meets *Error
}

// world runs attempts one after the other, in time that only waiting moves. It notes when each began.
type world struct {
	script []attempt
	begun  []time.Duration
}

const answer = "answer"

// run repeats as a client does, with the shortest pauses: 50 ms, 100, 200 and so on.
func (w *world) run(t *testing.T, limit time.Duration, r Retry, b *budget) (string, error) {
	t.Helper()
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	shortest := pauses{chance: func() float64 { return 0 }, longest: firstPause}
	return retried(ctx, r, b, shortest, func() (string, *Error) {
		next := w.script[len(w.begun)]
		w.begun = append(w.begun, time.Since(start))
		time.Sleep(next.takes)
		if next.meets != nil {
			return "", next.meets
		}
		return answer, nil
	})
}

func shed(delay time.Duration) *Error {
	return &Error{Code: codes.ResourceExhausted, ReasonName: "QUEUE_FULL", RetryDelay: delay}
}

func inBubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

func TestRetries(t *testing.T) {
	ms := func(milliseconds ...int) []time.Duration {
		var found []time.Duration
		for _, each := range milliseconds {
			found = append(found, time.Duration(each)*time.Millisecond)
		}
		return found
	}

	inBubble(t, "what was shed is sent again after the server's time, and not before our own", func(t *testing.T) {
		w := &world{script: []attempt{
			{100 * time.Millisecond, shed(300 * time.Millisecond)},
			{100 * time.Millisecond, shed(10 * time.Millisecond)},
			{100 * time.Millisecond, nil},
		}}
		got, err := w.run(t, 10*time.Second, DefaultRetry(), newBudget(DefaultRetry()))
		if got != answer || err != nil || !slices.Equal(w.begun, ms(0, 400, 600)) {
			t.Errorf("%q %v %v", got, err, w.begun)
		}
	})

	for _, test := range []struct {
		name    string
		failure *Error
		again   bool
	}{
		{"shed", shed(300 * time.Millisecond), true},
		{"nobody there", unavailable("gone"), true},
		{"draining", draining(), true},
		{"overload that does not say when", &Error{Code: codes.ResourceExhausted}, false},
		{"too large", &Error{Code: codes.ResourceExhausted, Message: "grpc: received message larger than max (2 vs. 1)"}, false},
		{"too large, and a time", &Error{
			Code: codes.ResourceExhausted, Message: "trying to send message larger than max (2 vs. 1)", RetryDelay: time.Second,
		}, false},
		{"too large, as the server says", &Error{Code: codes.ResourceExhausted, ReasonName: "BYTES_LIMIT"}, false},
		{"late", &Error{Code: codes.DeadlineExceeded}, false},
		{"wrong", &Error{Code: codes.InvalidArgument}, false},
		{"a fault", &Error{Code: codes.Internal}, false},
	} {
		inBubble(t, "only what may succeed soon is sent again: "+test.name, func(t *testing.T) {
			w := &world{script: []attempt{{0, test.failure}, {0, nil}}}
			_, err := w.run(t, 10*time.Second, DefaultRetry(), newBudget(DefaultRetry()))
			if again := len(w.begun) == 2; again != test.again || (err == nil) != test.again {
				t.Errorf("%d attempts, %v", len(w.begun), err)
			}
		})
	}

	inBubble(t, "the attempts are counted, and the last error is the one", func(t *testing.T) {
		last := unavailable("last")
		w := &world{script: []attempt{{0, shed(time.Second)}, {0, shed(time.Second)}, {0, last}}}
		_, err := w.run(t, 10*time.Second, Retry{Attempts: 3, Ratio: 1, Reserve: 10}, newBudget(DefaultRetry()))
		if !errors.Is(err, last) || len(w.begun) != 3 {
			t.Errorf("%v after %d", err, len(w.begun))
		}
	})

	inBubble(t, "nobody waits beyond the deadline", func(t *testing.T) {
		start := time.Now()
		w := &world{script: []attempt{{100 * time.Millisecond, shed(900 * time.Millisecond)}}}
		_, err := w.run(t, time.Second, DefaultRetry(), newBudget(DefaultRetry()))
		if took := time.Since(start); err == nil || took != 100*time.Millisecond {
			t.Errorf("%v after %v", err, took)
		}
	})

	inBubble(t, "a context that ends during a pause ends the call", func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		_, err := retried(ctx, DefaultRetry(), newBudget(DefaultRetry()), newPauses(), func() (string, *Error) {
			return "", shed(time.Minute)
		})
		if took := time.Since(start); status.Code(err) != codes.Canceled || took != time.Second {
			t.Errorf("%v after %v", err, took)
		}
	})

	inBubble(t, "the budget bounds repetitions over time, whoever makes them", func(t *testing.T) {
		r := Retry{Attempts: 4, Ratio: 0.1, Reserve: 2}
		b := newBudget(r)
		repeated := 0
		for range 100 {
			w := &world{script: []attempt{{0, shed(time.Millisecond)}, {0, nil}}}
			if _, err := w.run(t, 10*time.Second, r, b); err == nil {
				repeated++
			}
		}
		if repeated != 2+9 {
			t.Errorf("%d repetitions", repeated)
		}
		b = newBudget(r)
		for range 100 {
			b.call()
		}
		if b.left != 2 {
			t.Errorf("%v are saved up", b.left)
		}
	})

	inBubble(t, "what does no harm is repeated while the server is away", func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		got, err := insist(ctx, func() (string, error) {
			if time.Since(start) < 30*time.Second {
				return "", status.Error(codes.Unavailable, "away")
			}
			return answer, nil
		})
		if got != answer || err != nil {
			t.Errorf("%q %v", got, err)
		}
		ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		start = time.Now()
		_, err = insist(ctx, func() (string, error) { return "", status.Error(codes.Unavailable, "away") })
		if took := time.Since(start); status.Code(err) != codes.Unavailable || took > time.Minute || took < 57*time.Second {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestAnOutageIsBorneForItsTimeAtAStretch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatience(time.Second)
		p.pauses.chance = func() float64 { return 0 }
		bear := func() (found []time.Duration) {
			for {
				pause, ok := p.after(context.Background(), unavailable("gone"))
				if !ok {
					return found
				}
				found = append(found, pause)
				time.Sleep(pause)
				if len(found) == 3 {
					return found
				}
			}
		}
		want := []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond}
		if got := bear(); !slices.Equal(got, want) {
			t.Errorf("%v", got)
		}
		p.restore() // an answer in between begins the time anew
		if got := bear(); !slices.Equal(got, want) {
			t.Errorf("%v", got)
		}
		if got := bear(); !slices.Equal(got, []time.Duration{400 * time.Millisecond}) {
			t.Errorf("%v", got)
		}
	})
}

func TestAPolicyOutOfRangeIsRefused(t *testing.T) {
	for _, r := range []Retry{
		{Attempts: 0, Ratio: 0.1, Reserve: 1},
		{Attempts: 1, Ratio: -0.1, Reserve: 1},
		{Attempts: 1, Ratio: 2, Reserve: 1},
		{Attempts: 1, Ratio: 0.1, Reserve: -1},
		{Attempts: 1, Ratio: 0.1, Reserve: math.Inf(1)},
		{Attempts: 1, Ratio: math.NaN(), Reserve: 1},
	} {
		if _, err := Dial("localhost:1", WithRetry(r)); err == nil {
			t.Errorf("%+v passes", r)
		}
	}
}

func TestATrailerMayTellWhenToComeBack(t *testing.T) {
	full := status.Error(codes.ResourceExhausted, "full")
	for text, want := range map[string]time.Duration{
		"250": 250 * time.Millisecond, "-1": 0, "soon": 0, "99999999999": 0, "": 0,
	} {
		got := fromCall(context.Background(), full, metadata.Pairs(pushbackKey, text))
		if got.RetryDelay != want || got.Temporary() != (want > 0) {
			t.Errorf("%q: %v", text, got.RetryDelay)
		}
	}
	if fromCall(context.Background(), nil, nil) != nil {
		t.Error("no error has become one")
	}
}

func TestHealthIsCheckedWhereThereMayBeSeveral(t *testing.T) {
	for target, want := range map[string]bool{
		"dns:///forebay.prod.svc:8500": true, "dns:forebay:8500": true, "both:///replicas": true, "xds:///forebay": true,
		"localhost:8500": false, "127.0.0.1:8500": false, "[::1]:8500": false,
		"unix:/run/forebay.sock": false, "unix:///run/forebay.sock": false, "passthrough:///10.0.0.1:8500": false,
	} {
		if got := maybeSeveral(target); got != want {
			t.Errorf("%s: %v", target, got)
		}
	}
}
