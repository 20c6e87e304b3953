package sandbox

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"
)

func TestExecRoomIsShared(t *testing.T) {
	shared := newPool(1000)
	one := &execRoom{left: 5000, own: 100, shared: shared}
	two := &execRoom{left: 5000, own: 100, shared: shared}
	for _, c := range []struct {
		room       *execRoom
		take, want int
	}{
		{one, 50, 50},   // its own
		{one, 850, 850}, // 50 of its own, 800 shared
		{two, 500, 300}, // 100, and what is left
		{two, 500, 0},   // nothing is
		{one, 1, 0},
	} {
		if got := c.room.take(c.take); got != c.want {
			t.Errorf("take %d: %d, want %d", c.take, got, c.want)
		}
	}
	one.release()
	if got := two.take(900); got != 800 {
		t.Errorf("after a release: %d", got)
	}
	two.release()
	two.release()
	if left := shared.left.Load(); left != 1000 {
		t.Errorf("%d are left", left)
	}
	three := &execRoom{left: 10, own: 100, shared: shared}
	if got := three.take(100); got != 10 {
		t.Errorf("beyond its limit: %d", got)
	}
}

func TestExecsAreBounded(t *testing.T) {
	s := &Store{}
	one, two := &Container{id: "one", store: s}, &Container{id: "two", store: s}
	var leave []func()
	for range maxExecsOfOne {
		l, err := one.enterExec()
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	if _, err := one.enterExec(); !errors.Is(err, ErrTooMany) {
		t.Error("of one container:", err)
	}
	l, err := two.enterExec()
	if err != nil {
		t.Fatal("another container:", err)
	}
	leave = append(leave, l)
	s.execs.Add(maxExecs)
	if _, err := two.enterExec(); !errors.Is(err, ErrTooMany) {
		t.Error("of all:", err)
	}
	s.execs.Add(-maxExecs)
	for _, l := range leave {
		l()
	}
	if s.execs.Load() != 0 || one.execs.Load() != 0 || two.execs.Load() != 0 {
		t.Errorf("%d, %d, %d are left", s.execs.Load(), one.execs.Load(), two.execs.Load())
	}
}

func TestWaitingVerbsAreBounded(t *testing.T) {
	l := newVerbLock()
	if err := l.lock(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error)
	const extra = 3
	for range maxWaiting + extra {
		go func() { errs <- l.lock(ctx, "next") }()
	}
	for range extra {
		if err := <-errs; !errors.Is(err, ErrTooMany) {
			t.Error(err)
		}
	}
	cancel()
	for range maxWaiting {
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	l.unlock()
	if err := l.lock(t.Context(), "last"); err != nil {
		t.Error(err)
	}
}

// stuck is a client that takes nothing until it is released.
type stuck struct {
	release chan struct{}
	got     bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.release
	return s.got.Write(p)
}

func (s *stuck) Close() error { return nil }

func TestLagIsShared(t *testing.T) {
	const size = 1 << 20
	shared := newPool(size)
	one, two := &stuck{release: make(chan struct{})}, &stuck{release: make(chan struct{})}
	first, second := newLagging(one, shared), newLagging(two, shared)
	piece := make([]byte, ownLag)
	want := ownLag + size
	for written := 0; written < want; written += len(piece) {
		if _, err := first.Write(piece); err != nil {
			t.Fatalf("after %d: %v", written, err)
		}
	}
	if _, err := second.Write(piece); err != nil {
		t.Errorf("its own: %v", err)
	}
	if _, err := second.Write(piece); !errors.Is(err, ErrSlow) {
		t.Errorf("beyond, when nothing is left: %v", err)
	}
	close(one.release)
	close(two.release)
	if err := errors.Join(first.Close(), second.Close()); err != nil {
		t.Error(err)
	}
	for _, l := range []*lagging{first, second} {
		select {
		case <-l.done:
		case <-time.After(time.Minute):
			t.Fatal("it does not end")
		}
		if _, err := l.Write(piece); err == nil {
			t.Error("written after the end")
		}
	}
	if one.got.Len() != want || shared.left.Load() != size {
		t.Errorf("%d of %d came, %d are left", one.got.Len(), want, shared.left.Load())
	}
}
