package imageservice

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What cannot be removed now is removed later, without a restart.
func TestTrashLater(t *testing.T) {
	s := openStore(t, nil)
	path := s.ingestPath()
	busy := filepath.Join(path, "busy")
	if err := os.MkdirAll(busy, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", busy, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(busy, unix.MNT_DETACH) })
	if err := s.remove(path); err == nil {
		t.Error("a directory with a mount in it was removed")
	}
	if s.trash.removeAll() {
		t.Error("nothing is left of what is there")
	}
	if err := unix.Unmount(busy, 0); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(time.Minute)
	for tick := time.NewTicker(10 * time.Millisecond); exists(path); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("it is still there")
		}
	}
}
