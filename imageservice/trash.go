package imageservice

import (
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	trashFirst = time.Second // until the first repetition
	trashMost  = 10 * time.Second
)

// trash is what could not be removed from ingest/ and is tried again: a shortage
// of descriptors, or a mount in it, passes.
type trash struct {
	mu     sync.Mutex
	left   []string
	closed bool
	quit   chan struct{}
}

func newTrash() *trash { return &trash{quit: make(chan struct{})} }

// remove removes a path in ingest/. What it cannot remove now it tries again in the
// background, until Close: whatever a start finds there is removed.
func (s *Store) remove(path string) error {
	err := os.RemoveAll(path)
	if err == nil {
		return nil
	}
	klog.ErrorS(err, "What a pull or a removal has left is removed later", "path", path)
	t := s.trash
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left = append(t.left, path); len(t.left) == 1 && !t.closed {
		s.background.Go(t.empty)
	}
	return err
}

// empty ends when nothing is left.
func (t *trash) empty() {
	for pause := trashFirst; ; pause = min(2*pause, trashMost) {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-t.quit:
			timer.Stop()
			return
		}
		if t.removeAll() {
			return
		}
	}
}

// removeAll tells whether nothing is left.
func (t *trash) removeAll() bool {
	t.mu.Lock()
	paths := t.left
	t.mu.Unlock()
	var failed []string
	for _, path := range paths {
		if os.RemoveAll(path) != nil {
			failed = append(failed, path)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.left = append(failed, t.left[len(paths):]...)
	return len(t.left) == 0
}

func (t *trash) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	close(t.quit)
}
