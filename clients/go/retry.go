package forebay

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

const (
	firstPause   = 100 * time.Millisecond
	longestPause = 2 * time.Second
	jobOutage    = time.Minute // for which a server may be away at a stretch while its jobs are waited for
)

// Retry is how a client repeats predictions that were shed or met nobody, beyond what gRPC does within tenths of a second.
//
// All callers of an overloaded server who send everything thrice make it worse. So a client has a budget: each call adds a
// fraction of a repetition to it, and each repetition takes one from it. When it is empty, errors are final.
type Retry struct {
	// Attempts is the most times that a request is sent, the first included; 1: never again.
	Attempts int
	// Ratio is how many repetitions there may be for each call, over time; from 0 to 1.
	Ratio float64
	// Reserve is how many repetitions may be saved up. The client begins with as many.
	Reserve float64
}

// DefaultRetry is how a client repeats unless [WithRetry] says otherwise: a request is sent at most four times, and over
// time one repetition is made for ten calls.
func DefaultRetry() Retry { return Retry{Attempts: 4, Ratio: 0.1, Reserve: 10} }

func (r Retry) check() error {
	if r.Attempts < 1 {
		return fmt.Errorf("forebay: a request is sent at least once, not %d times", r.Attempts)
	}
	if !(r.Ratio >= 0 && r.Ratio <= 1 && r.Reserve >= 0 && r.Reserve <= math.MaxFloat64) {
		return fmt.Errorf("forebay: the ratio is from 0 to 1 and the reserve not below 0, not %v and %v", r.Ratio, r.Reserve)
	}
	return nil
}

// budget is the repetitions that may still be made.
type budget struct {
	ratio, reserve float64

	mutex sync.Mutex
	left  float64
}

func newBudget(r Retry) *budget { return &budget{ratio: r.Ratio, reserve: r.Reserve, left: r.Reserve} }

// call counts a call.
func (b *budget) call() {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.left = min(b.left+b.ratio, b.reserve)
}

// take is whether one more repetition may be made; it is taken then.
func (b *budget) take() bool {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// pauses are the pauses between tries, longer and longer, half of each by chance.
type pauses struct {
	chance  func() float64 // numbers in [0, 1)
	longest time.Duration
}

func newPauses() pauses { return pauses{chance: rand.Float64, longest: firstPause} }

// next is the next one; at least what the server asked for.
func (p *pauses) next(least time.Duration) time.Duration {
	pause := time.Duration(float64(p.longest) * (0.5 + p.chance()/2))
	p.longest = min(2*p.longest, longestPause)
	return max(pause, least)
}

// reset begins with short ones again: something worked.
func (p *pauses) reset() { p.longest = firstPause }

// patience is how long an outage is borne: for so long at a stretch, and not beyond the deadline.
type patience struct {
	pauses pauses
	outage time.Duration
	since  time.Time // since when nobody has answered; zero: the last call was answered
}

func newPatience(outage time.Duration) patience { return patience{pauses: newPauses(), outage: outage} }

// after is the pause after a call that failed so; false if there is no time for another one.
func (p *patience) after(ctx context.Context, failure *Error) (time.Duration, bool) {
	now := time.Now()
	if p.since.IsZero() {
		p.since = now
	}
	pause := p.pauses.next(failure.RetryDelay)
	again := now.Add(pause)
	deadline, ok := ctx.Deadline()
	if !again.Before(p.since.Add(p.outage)) || (ok && !again.Before(deadline)) {
		return 0, false
	}
	return pause, true
}

// restore forgets the outage: the server answered.
func (p *patience) restore() {
	p.since = time.Time{}
	p.pauses.reset()
}

// retried makes a call that may be made twice, as often as the policy, the budget and the context's deadline allow. What
// the last attempt met is the error.
func retried[T any](ctx context.Context, r Retry, b *budget, between pauses, call func() (T, *Error)) (T, error) {
	b.call()
	for left := r.Attempts - 1; ; left-- {
		result, failure := call()
		if failure == nil {
			return result, nil
		}
		if left == 0 || !failure.Temporary() {
			return result, failure
		}
		pause := between.next(failure.RetryDelay)
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= pause || !b.take() {
			return result, failure
		}
		if err := sleep(ctx, pause); err != nil {
			return result, err
		}
	}
}

// insist makes a call that does no harm if it is made twice, again and again while the server is UNAVAILABLE, up to the
// context's deadline.
func insist[T any](ctx context.Context, call func() (T, error)) (T, error) {
	between := newPauses()
	for {
		result, err := call()
		if err == nil {
			return result, nil
		}
		failure := fromAttempt(ctx, err)
		if failure.Code != codes.Unavailable {
			return result, failure
		}
		pause := between.next(failure.RetryDelay)
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) <= pause {
			return result, failure
		}
		if err := sleep(ctx, pause); err != nil {
			return result, err
		}
	}
}

// sleep waits; an *Error if the context ends before.
func sleep(ctx context.Context, duration time.Duration) error {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return wrap(ctx.Err())
	}
}
