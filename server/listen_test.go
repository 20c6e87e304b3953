package server

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// shortDir is a temporary directory whose path fits into sun_path even under
// a long TMPDIR.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cri-") //nolint:usetesting // TempDir is too long for sun_path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestListenMode(t *testing.T) {
	socket := filepath.Join(shortDir(t), "made", "cri.sock")
	l, err := Listen(t.Context(), "unix://"+socket)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if got := stat.Mode(); got != fs.ModeSocket|0o660 {
		t.Errorf("socket has mode %v", got)
	}
	if stat, err = os.Stat(filepath.Dir(socket)); err != nil || stat.Mode().Perm() != 0o700 {
		t.Errorf("directory has mode %v, %v", stat.Mode(), err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after close the socket is still there: %v", err)
	}
}

func TestListenPrivate(t *testing.T) {
	socket := filepath.Join(shortDir(t), "control.sock")
	l, err := ListenPrivate(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if stat, err := os.Stat(socket); err != nil || stat.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("socket has mode %v, %v", stat.Mode(), err)
	}
}

// stale leaves a socket file behind as a killed daemon does.
func stale(t *testing.T, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListenStale(t *testing.T) {
	socket := filepath.Join(shortDir(t), "cri.sock")
	stale(t, socket)
	l, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

func TestListenInUse(t *testing.T) {
	socket := filepath.Join(shortDir(t), "cri.sock")
	l, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(t.Context(), socket); !errors.Is(err, ErrInUse) {
		t.Fatalf("second daemon: %v", err)
	}
	if conn, err := net.Dial("unix", socket); err != nil {
		t.Errorf("the first daemon's socket is gone: %v", err)
	} else {
		conn.Close()
	}
}

// A daemon that is stopped or hangs has the socket open but accepts nothing.
func TestListenHanging(t *testing.T) {
	socket := filepath.Join(shortDir(t), "cri.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: socket}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	first, err := net.Dial("unix", socket) // fills the backlog of one
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := Listen(t.Context(), socket); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v", err)
	}
}

// Of many daemons that start at once on a stale socket, one serves; the socket
// of that one isn't replaced.
func TestListenRace(t *testing.T) {
	socket := filepath.Join(shortDir(t), "cri.sock")
	stale(t, socket)
	var wg sync.WaitGroup
	results := make(chan net.Listener, 16)
	for range cap(results) {
		wg.Go(func() {
			l, err := Listen(t.Context(), socket)
			if err != nil && !errors.Is(err, ErrInUse) {
				t.Error(err)
			}
			if l != nil {
				results <- l
			}
		})
	}
	wg.Wait()
	close(results)
	var won []net.Listener
	for l := range results {
		won = append(won, l)
		t.Cleanup(func() { l.Close() })
	}
	if len(won) != 1 {
		t.Fatalf("%d listeners on one socket", len(won))
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestListenRefuses(t *testing.T) {
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	stale(t, filepath.Join(dir, "target"))
	if err := os.Symlink("target", link); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, address, says string }{
		{"tcp", "tcp://127.0.0.1:1", "only unix://"},
		{"relative", "unix://cri.sock", "not absolute"},
		{"abstract", "unix://@cri", "not absolute"},
		{"empty", "", "not absolute"},
		{"zero byte", "/tmp/\x00x", "zero byte"},
		{"directory", dir + "/", "names a directory"},
		{"long", filepath.Join(dir, strings.Repeat("x", 108)), "limit for sockets is 107"},
		{"file", file, "no socket"},
		{"symlink", link, "no socket"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := Listen(t.Context(), tc.address)
			if l != nil {
				l.Close()
			}
			if !errors.Is(err, ErrAddress) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %q", err, tc.says)
			}
		})
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "kept" {
		t.Errorf("the file was changed: %q, %v", data, err)
	}
}

func TestListenLongest(t *testing.T) {
	dir := shortDir(t)
	socket := filepath.Join(dir, strings.Repeat("x", maxSocketPath-len(dir)-1))
	l, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}
