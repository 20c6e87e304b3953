package imageservice

import (
	"context"
	"sync"
)

// flights lets callers that want the same work at the same time share it. The
// work goes on while at least one of them waits.
type flights[T any] struct {
	mu     *sync.Mutex // guards all below
	flying map[string]*flight[T]
	all    *sync.WaitGroup
	closed *bool
}

type flight[T any] struct {
	cancel  context.CancelCauseFunc
	waiters int
	done    chan struct{} // closed when value and err are set
	value   T
	err     error
}

func newFlights[T any]() flights[T] {
	return flights[T]{
		mu:     &sync.Mutex{},
		flying: map[string]*flight[T]{},
		all:    &sync.WaitGroup{},
		closed: new(bool),
	}
}

// do runs work, or waits for the work of that key that runs already; joined
// tells which. The work's context ends when the last caller's does. A caller
// that leaves last waits until the work has cleaned up.
func (g *flights[T]) do(ctx context.Context, key string, work func(context.Context) (T, error)) (value T, joined bool, err error) {
	if err := context.Cause(ctx); err != nil {
		return value, false, err
	}
	g.mu.Lock()
	if *g.closed {
		g.mu.Unlock()
		return value, false, ErrClosed
	}
	f, joined := g.flying[key]
	if !joined {
		f = g.start(ctx, key, work)
	}
	f.waiters++
	g.mu.Unlock()

	select {
	case <-f.done:
		return f.value, joined, f.err
	case <-ctx.Done():
	}
	g.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	if last {
		g.forget(key, f)
		f.cancel(context.Cause(ctx))
	}
	g.mu.Unlock()
	if last {
		<-f.done
	}
	return value, joined, context.Cause(ctx)
}

// start runs work on its own. The caller holds mu.
func (g *flights[T]) start(ctx context.Context, key string, work func(context.Context) (T, error)) *flight[T] {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f := &flight[T]{cancel: cancel, done: make(chan struct{})}
	g.flying[key] = f
	g.all.Go(func() {
		f.value, f.err = work(ctx)
		g.mu.Lock()
		g.forget(key, f)
		g.mu.Unlock()
		close(f.done)
		cancel(nil)
	})
	return f
}

// forget makes sure that nobody joins f any more. The caller holds mu.
func (g *flights[T]) forget(key string, f *flight[T]) {
	if g.flying[key] == f {
		delete(g.flying, key)
	}
}

// waiting tells how many callers wait for the work of a key.
func (g *flights[T]) waiting(key string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f := g.flying[key]; f != nil {
		return f.waiters
	}
	return 0
}

// close cancels all work, waits for it and lets no more start.
func (g *flights[T]) close() {
	g.mu.Lock()
	*g.closed = true
	for _, f := range g.flying {
		f.cancel(ErrClosed)
	}
	g.mu.Unlock()
	g.all.Wait()
}
