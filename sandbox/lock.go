package sandbox

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

// verbLock lets one verb at a time work on a pod. Waiting for it ends with
// the context, and says which verb is in the way and for how long.
type verbLock struct {
	free   chan struct{}
	holder atomic.Pointer[holder]
	// waiting counts those who wait: clients come again for what is stuck.
	waiting atomic.Int32
}

type holder struct {
	verb  string
	since time.Time
}

func newVerbLock() *verbLock {
	l := &verbLock{free: make(chan struct{}, 1)}
	l.free <- struct{}{}
	return l
}

// busy tells whether a verb is at work.
func (l *verbLock) busy() bool { return len(l.free) == 0 }

// lock waits until no other verb is at work.
func (l *verbLock) lock(ctx context.Context, verb string) error {
	select {
	case <-l.free:
	default:
		defer l.waiting.Add(-1)
		if n := l.waiting.Add(1); n > maxWaiting {
			return fmt.Errorf("%s: %d others wait for this pod: %w", verb, n-1, ErrTooMany)
		}
		select {
		case <-l.free:
		case <-ctx.Done():
			if h := l.holder.Load(); h != nil {
				return fmt.Errorf("%s waits for %s, under way for %s: %w", verb, h.verb, time.Since(h.since).Round(time.Millisecond), ctx.Err())
			}
			return ctx.Err()
		}
	}
	l.holder.Store(&holder{verb, time.Now()})
	return nil
}

func (l *verbLock) unlock() {
	l.holder.Store(nil)
	l.free <- struct{}{}
}

// flight is an operation that several callers may wait for. It runs on its
// own, so that a client's time-out neither ends nor repeats it: the client's
// retry joins it.
type flight[T any] struct {
	id    string // of what it makes
	done  chan struct{}
	value T
	err   error
	stage atomic.Pointer[holder]
}

func newFlight[T any](id string) *flight[T] {
	return &flight[T]{id: id, done: make(chan struct{})}
}

func (f *flight[T]) underWay() bool {
	select {
	case <-f.done:
		return false
	default:
		return true
	}
}

// enter names the stage that the operation is in now.
func (f *flight[T]) enter(stage string) {
	now := time.Now()
	if last := f.stage.Swap(&holder{stage, now}); last != nil {
		klog.V(5).InfoS("Stage is done", "stage", last.verb, "took", now.Sub(last.since))
	}
}

func (f *flight[T]) finish(value T, err error) {
	f.value, f.err = value, err
	close(f.done)
}

// wait returns the outcome, or an error that names the stage when ctx ends first.
func (f *flight[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		var none T
		if h := f.stage.Load(); h != nil {
			return none, fmt.Errorf("still at %q after %s, it goes on and a retry joins it: %w", h.verb, time.Since(h.since).Round(time.Millisecond), ctx.Err())
		}
		return none, ctx.Err()
	}
}
