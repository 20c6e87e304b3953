package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDiskUsage compares with du: files, holes, hard links, links, nodes.
func TestDiskUsage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "upper")
	for i := range 40 {
		sub := filepath.Join(dir, strings.Repeat("d/", i%5), strconv.Itoa(i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, "f"), make([]byte, i*1000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Truncate(filepath.Join(dir, "0/f"), 1<<40),
		os.Link(filepath.Join(dir, "10/f"), filepath.Join(dir, "0/hard")),
		os.Symlink("/", filepath.Join(dir, "0/root")),
		os.Symlink(strings.Repeat("x", 4000), filepath.Join(dir, "0/long")),
		unix.Mkfifo(filepath.Join(dir, "0/fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	unix.Sync() // both look at allocated blocks
	bytes, inodes, err := diskUsage(context.Background(), dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	if want := du(t, dir, "--block-size=1"); bytes != want {
		t.Errorf("%d bytes, du says %d", bytes, want)
	}
	if want := du(t, dir, "--inodes"); inodes != want {
		t.Errorf("%d inodes, du says %d", inodes, want)
	}
	if _, _, err := diskUsage(context.Background(), dir, 20); !errors.Is(err, errTooMany) {
		t.Errorf("with a limit of 20: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := diskUsage(ctx, dir, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func du(t *testing.T, dir, unit string) uint64 {
	t.Helper()
	out, err := exec.Command("du", "-s", unit, dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestDiskUsageDeep nests directories deeper than a path can name.
func TestDiskUsageDeep(t *testing.T) {
	top := t.TempDir()
	fd, err := unix.Open(top, unix.O_PATH|unix.O_DIRECTORY, 0)
	const depth = 600 // beyond 4096 bytes several times
	name := strings.Repeat("n", 30)
	for i := 0; err == nil && i < depth; i++ {
		var next int
		if err = unix.Mkdirat(fd, name, 0o755); err == nil {
			next, err = unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY, 0)
			_ = unix.Close(fd)
			fd = next
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	_, inodes, err := diskUsage(context.Background(), top, 0)
	if err != nil || inodes != depth+1 {
		t.Errorf("%d inodes, want %d; %v", inodes, depth+1, err)
	}
	if n := len(openFiles(t)); n > 100 {
		t.Errorf("%d descriptors are open", n)
	}
}

func openFiles(t *testing.T) []os.DirEntry {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return fds
}

// TestDiskUsageRaces changes the tree while it is counted, with links out of it.
func TestDiskUsageRaces(t *testing.T) {
	dir := t.TempDir()
	var stop atomic.Bool
	done := make(chan error)
	go func() {
		for i := 0; !stop.Load(); i++ {
			a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
			for _, err := range []error{
				os.MkdirAll(filepath.Join(a, "x/y/z"), 0o755),
				os.Rename(a, b),
				os.Symlink("/usr", a),
				os.Remove(a),
				os.RemoveAll(b),
			} {
				if err != nil {
					done <- fmt.Errorf("round %d: %w", i, err)
					return
				}
			}
		}
		done <- nil
	}()
	for range 500 {
		if _, inodes, err := diskUsage(context.Background(), dir, 0); err != nil || inodes > 10 {
			t.Errorf("%d inodes, %v", inodes, err)
			break
		}
	}
	stop.Store(true)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestWritableLayer counts a container's layer, at once when it is small and in
// the background when it is not.
func TestWritableLayer(t *testing.T) {
	s := &Store{config: Config{Root: t.TempDir()}, measurer: newMeasurer(), containers: map[string]*Container{}}
	defer s.measurer.close()
	c := &Container{id: "c", store: s, box: &Sandbox{id: "p"}}
	c.status.Store(&ContainerStatus{})
	s.containers["c"] = c
	upper := c.root("upper")
	if err := os.MkdirAll(upper, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range measureAtOnce {
		if err := os.WriteFile(filepath.Join(upper, strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, inodes, at := c.WritableLayer(); !at.IsZero() && inodes != measureAtOnce+1 {
		t.Error("a figure before it can be known:", inodes)
	}
	for c.writable.last.Load() == nil {
		runtime.Gosched() // the background is at it
	}
	if fs := s.Filesystem(); fs.Inodes != measureAtOnce+1 || fs.Path != s.root("containers") || fs.At.IsZero() {
		t.Errorf("%+v", fs)
	}
	if err := os.RemoveAll(upper); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(upper, 0o755); err != nil {
		t.Fatal(err)
	}
	gone := &Container{id: "gone", store: s, box: c.box}
	if _, _, at := gone.WritableLayer(); !at.IsZero() {
		t.Error("a figure of a layer that isn't there")
	}
	small := &Container{id: "c", store: s, box: c.box}
	if _, inodes, at := small.WritableLayer(); inodes != 1 || at.IsZero() {
		t.Errorf("a small layer: %d inodes at %v", inodes, at)
	}
}

func BenchmarkDiskUsage(b *testing.B) {
	dir := b.TempDir()
	for i := range 1000 {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, _, err := diskUsage(context.Background(), dir, 0); err != nil {
			b.Fatal(err)
		}
	}
}
