package sandbox

import (
	"context"
	"sync"
	"time"
)

const (
	choreFirst = time.Second // until the first repetition
	choreMost  = 10 * time.Second
)

// chores are clean-ups that have failed and are tried again: a shortage of
// descriptors, memory or disk that was in their way passes.
type chores struct {
	mu    sync.Mutex
	left  undoing
	added chan struct{} // holds a token while left may not be empty
}

func newChores() chores { return chores{added: make(chan struct{}, 1)} }

func (c *chores) add(f ...func(context.Context) error) {
	if len(f) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = append(c.left, f...)
	select {
	case c.added <- struct{}{}:
	default:
	}
}

// do tries all, whose first failures are in the log, and tells whether nothing is left.
func (c *chores) do(ctx context.Context) bool {
	c.mu.Lock()
	todo := c.left
	c.left = nil
	c.mu.Unlock()
	var failed undoing
	for _, f := range todo {
		if f(ctx) != nil {
			failed = append(failed, f)
		}
	}
	c.add(failed...)
	return len(failed) == 0
}

// work does the chores, less and less often while they fail, until ctx ends:
// the next start finds what is left.
func (c *chores) work(ctx context.Context) {
	pause := choreFirst
	for {
		select {
		case <-c.added:
		case <-ctx.Done():
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if c.do(ctx) {
			pause = choreFirst
		} else {
			pause = min(2*pause, choreMost)
		}
	}
}
