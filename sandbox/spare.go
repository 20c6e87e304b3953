package sandbox

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/conmon"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

const (
	// spareDir is the state directory of the spare monitor until it gets a container.
	spareDir = "spare"
	// sparePause without a new container lets a burst of them pass: each would only
	// wait for the spare of the one before.
	sparePause = 20 * time.Millisecond
)

// spare is a monitor that waits for a container, started while nobody waits for it. At
// most one: the first container of a daemon and those of a burst have theirs started beside
// their root file system. It ends by itself with the daemon, as it has no container.
type spare struct {
	store *Store

	mu      sync.Mutex
	pending *conmon.Pending // nil: there is none
	timer   *time.Timer     // nil: none was asked for, or the store is closed
	closed  bool
}

// open takes away what the last daemon's spare has left: that monitor has ended with it.
func (s *spare) open(store *Store) error {
	s.store = store
	if err := os.RemoveAll(store.state(spareDir)); err != nil {
		return fmt.Errorf("remove the spare monitor's directory: %w", err)
	}
	return nil
}

// take makes dir the state directory of a container, with the spare monitor in it if there is one.
func (s *spare) take(dir string) (*conmon.Pending, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.later()
	p := s.pending
	s.pending = nil
	if p == nil {
		return nil, os.Mkdir(dir, 0o700)
	}
	if p.Alive() {
		err := os.Rename(s.store.state(spareDir), dir)
		if err == nil {
			p.Moved(dir)
			return p, nil
		}
		klog.ErrorS(err, "Take the spare monitor")
	}
	return nil, errors.Join(s.drop(p), os.Mkdir(dir, 0o700))
}

// later makes a spare once no container has been created for a while.
func (s *spare) later() {
	switch {
	case s.closed:
	case s.timer == nil:
		s.timer = time.AfterFunc(sparePause, s.make)
	default:
		s.timer.Reset(sparePause)
	}
}

func (s *spare) make() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.pending != nil {
		return
	}
	var err error
	if s.pending, err = s.start(); err != nil {
		klog.V(2).InfoS("There is no spare monitor: the next container starts its own", "err", err)
	}
}

func (s *spare) start() (*conmon.Pending, error) {
	dir := s.store.state(spareDir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	fault.Point("spare.directory.made")
	p, err := s.store.spawnMonitor(dir)
	if err == nil {
		err = p.Place(s.store.monitors.tasks)
		if err != nil {
			err = errors.Join(err, p.Abandon())
		}
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	fault.Point("spare.made")
	return p, nil
}

// drop ends a monitor that is not needed.
func (s *spare) drop(p *conmon.Pending) error {
	if err := errors.Join(p.Abandon(), os.Remove(s.store.state(spareDir))); err != nil {
		return fmt.Errorf("end the spare monitor: %w", err)
	}
	return nil
}

func (s *spare) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	p := s.pending
	s.pending = nil
	if p == nil {
		return nil
	}
	return s.drop(p)
}

func (s *Store) spawnMonitor(dir string) (*conmon.Pending, error) {
	return s.binary.Spawn(dir, s.monitors.dir, s.host.ClampOOMScoreAdj(monitorOOMScoreAdj))
}
