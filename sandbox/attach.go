package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/conmon"
)

// mostLag is how far an attached client may stay behind the container's output before it
// is given up: nobody is slowed down for it.
const mostLag = 8 << 20

// Attach connects s with the streams of the container's main process. It returns
// when the container or its output has ended, or the client has left, which disturbs
// the container in no way; ErrSlow when the client stayed too far behind. With stdin_once
// the end of the first input is the end of the container's, unless it has a
// terminal, which goes on.
func (c *Container) Attach(ctx context.Context, s Streams) error {
	if err := c.require("attach to", stateCreated, stateRunning); err != nil {
		return err
	}
	if err := c.attach(ctx, &s); err != nil {
		return fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	return nil
}

func (c *Container) attach(ctx context.Context, s *Streams) error {
	config := c.Status().Config
	if s.Stdin != nil && !config.GetStdin() {
		return fmt.Errorf("it was created without stdin: %w", ErrState)
	}
	if config.GetTty() {
		s.Stderr = nil
	}
	s.Terminal = false // it is the container's, behind pipes like any other output
	m := c.connected()
	if m == nil {
		return fmt.Errorf("its monitor is gone: %w", ErrState)
	}
	x, err := newExecStreams(s)
	if err != nil {
		return err
	}
	defer x.close()
	a, err := m.Attach(ctx, conmon.AttachRequest{
		Stdin: x.theirs[0], Stdout: x.theirs[1], Stderr: x.theirs[2],
		CloseStdin: config.GetStdinOnce() && !config.GetTty(),
	})
	if err != nil {
		return attachError(err)
	}
	if s.Resize != nil {
		go sizes(s.Resize, x.stop, func(size TerminalSize) {
			if err := m.Resize(ctx, size.Width, size.Height); err != nil {
				klog.V(4).InfoS("Resize a terminal", "container", c.id, "pod", c.box.id, "err", err)
			}
		})
	}
	x.lag(s, c.store.lag)
	if err := x.start(s); err != nil {
		return err
	}
	return c.attached(ctx, x, a)
}

// attachError gives the monitor's refusals their meaning here.
func attachError(err error) error {
	switch {
	case errors.Is(err, conmon.ErrUnsupported):
		return fmt.Errorf("%w: %w; a container that is created anew can be attached to", err, ErrUnsupported)
	case errors.Is(err, conmon.ErrState):
		return fmt.Errorf("it has exited, or its stdin was closed after the first session (stdin_once): %w: %w", err, ErrState)
	}
	return err
}

// attached waits for the end of a session.
func (c *Container) attached(ctx context.Context, x *execStreams, a *conmon.Attachment) error {
	ended := make(chan error, 1)
	go func() { ended <- errors.Join(x.flows[0].wait(ctx), x.flows[1].wait(ctx)) }()
	outputs, exited, detached := ended, c.exited, a.Done()
	if x.out == nil && x.err == nil {
		outputs = nil // input alone lasts as long as the client
	}
	var late <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-exited:
			// What the container wrote is in the pipes by now.
			for _, f := range x.flows {
				f.limit(0)
			}
			outputs, exited = ended, nil
		case err := <-outputs:
			if err = errors.Join(err, x.lost()); err != nil || exited == nil || detached == nil {
				return err
			}
			// Without its input nothing is left of the session, and the monitor says how it ended.
			if x.stdin != nil {
				_ = x.stdin.Close()
			}
			outputs, late = nil, time.After(drainTimeout)
		case <-detached:
			if errors.Is(a.Err(), conmon.ErrSlow) {
				return ErrSlow
			}
			detached = nil // or the connection was lost, which is not the client's
			if late != nil {
				return nil
			}
		case <-late: // input that nobody reads is under way
			return nil
		}
	}
}

// lag puts a buffer between the output and a client.
func (x *execStreams) lag(s *Streams, shared *pool) {
	for _, to := range []*io.WriteCloser{&s.Stdout, &s.Stderr} {
		if *to != nil {
			l := newLagging(*to, shared)
			x.lags = append(x.lags, l)
			*to = l
		}
	}
}

// lost is why a client did not get all of the output.
func (x *execStreams) lost() error {
	for _, l := range x.lags {
		l.mu.Lock()
		err := l.err
		l.mu.Unlock()
		if errors.Is(err, ErrSlow) {
			return err
		}
	}
	return nil
}

// lagging passes on what is written to it in its own time.
type lagging struct {
	to     io.WriteCloser
	shared *pool

	mu       sync.Mutex
	changed  *sync.Cond
	queue    []byte
	behind   int // bytes that the client has not taken
	borrowed int // of behind, from the shared memory
	closed   bool
	err      error
	done     chan struct{}
}

func newLagging(to io.WriteCloser, shared *pool) *lagging {
	l := &lagging{to: to, shared: shared, done: make(chan struct{})}
	l.changed = sync.NewCond(&l.mu)
	go l.pass()
	return l
}

// Write never waits for the client; it fails with ErrSlow when that is too far behind.
func (l *lagging) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return 0, os.ErrClosed
	case l.err == nil && (l.behind+len(p) > mostLag || !l.borrow(l.behind+len(p))):
		l.err = ErrSlow
	}
	if l.err != nil {
		return 0, l.err
	}
	l.queue = append(l.queue, p...)
	l.behind += len(p)
	l.changed.Signal()
	return len(p), nil
}

// Close waits until the client has taken everything, or is given up.
func (l *lagging) Close() error {
	l.mu.Lock()
	l.closed = true
	slow := errors.Is(l.err, ErrSlow)
	l.changed.Signal()
	l.mu.Unlock()
	if !slow { // the Write under way may last for ever
		<-l.done
	}
	return nil
}

func (l *lagging) pass() {
	defer close(l.done)
	var taken []byte
	for l.next(&taken) {
		_, err := l.to.Write(taken)
		l.mu.Lock()
		l.behind -= len(taken)
		l.borrow(l.behind)
		if l.err == nil {
			l.err = err
		}
		l.mu.Unlock()
	}
	_ = l.to.Close() // a client that has left needs no news of it
	l.mu.Lock()
	defer l.mu.Unlock()
	l.borrow(0)
	if l.err == nil {
		l.err = os.ErrClosed
	}
}

// borrow takes what a lag needs of the shared memory, or gives back what it
// does not need any more; false when there is too little. The caller holds mu.
func (l *lagging) borrow(behind int) bool {
	more := max(0, behind-ownLag) - l.borrowed
	if more <= 0 {
		l.shared.give(-more)
	} else if got := l.shared.take(more); got < more {
		l.shared.give(got)
		return false
	}
	l.borrowed += more
	return true
}

// next exchanges what was written for what has queued up; false at the end.
func (l *lagging) next(taken *[]byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 && !l.closed && l.err == nil {
		l.changed.Wait()
	}
	if l.err != nil || len(l.queue) == 0 {
		return false
	}
	*taken, l.queue = l.queue, (*taken)[:0]
	if cap(l.queue) > mostCopy {
		l.queue = nil // after a burst
	}
	return true
}
