package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// relabelled returns what a relabelling of dir would touch, in order.
func relabelled(t *testing.T, dir string) ([]string, error) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var seen []string
	w := &relabeller{apply: func(fd int) error {
		p, err := pathOf(fd)
		seen = append(seen, strings.TrimPrefix(strings.TrimPrefix(p, dir), "/"))
		return err
	}}
	err = w.tree(t.Context(), fd, 0)
	return seen, err
}

func TestRelabelWalk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir, outside := t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "a/b/file"), nil, 0o600))
	must(os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600))
	must(os.Symlink(outside, filepath.Join(dir, "a/out")))
	must(os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "link")))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	must(os.Mkdir(filepath.Join(dir, "mnt"), 0o755))
	must(unix.Mount(outside, filepath.Join(dir, "mnt"), "", unix.MS_BIND, ""))
	defer func() { must(unix.Unmount(filepath.Join(dir, "mnt"), unix.MNT_DETACH)) }()

	seen, err := relabelled(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if seen[len(seen)-1] != "" {
		t.Errorf("the top is not the last: %q", seen)
	}
	slices.Sort(seen)
	if want := []string{"", "a", "a/b", "a/b/file", "a/out", "fifo", "link"}; !slices.Equal(seen, want) {
		t.Errorf("labelled %q, want %q: links themselves, nothing behind them, no mount", seen, want)
	}
}

func TestRelabelDepth(t *testing.T) {
	dir := t.TempDir()
	deep := filepath.Join(dir, strings.Repeat("d/", maxRelabelDepth+1))
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := relabelled(t, dir); !errors.Is(err, ErrInvalid) {
		t.Errorf("%d directories deep: %v", maxRelabelDepth+1, err)
	}
}

// TestRelabelMoving has a tree exchanged for a symlink all the time.
func TestRelabelMoving(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	sub, link := filepath.Join(dir, "sub"), filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(sub, 0o755), os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600), os.Symlink(outside, link)); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, sub, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	}()
	for range 2000 {
		seen, err := relabelled(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range seen {
			if strings.HasPrefix(p, outside) || strings.Contains(p, "secret") {
				t.Fatalf("labelled %s", p)
			}
		}
	}
	close(stop)
	<-done
}

func TestRelabelRefused(t *testing.T) {
	for _, p := range []string{"/", "/etc", "/usr/", "/etc/../var/lib"} {
		if err := relabel(t.Context(), p, "system_u:object_r:container_file_t:s0:c1,c2"); !errors.Is(err, ErrInvalid) {
			t.Errorf("relabel %s: %v", p, err)
		}
	}
	if err := relabel(t.Context(), filepath.Join(t.TempDir(), "none"), "x"); !errors.Is(err, ErrInvalid) {
		t.Errorf("relabel what is not there: %v", err)
	}
}
