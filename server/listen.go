package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

const (
	socketMode  = 0o660
	privateMode = 0o600
	// maxSocketPath is sun_path without its final zero, see unix(7).
	maxSocketPath = 107
	// answerTimeout is how long a daemon that may own the socket has to accept.
	answerTimeout = time.Second
)

// Listen makes the unix socket at address, "unix:///PATH" or "/PATH", with
// mode 0660. A socket file that nobody listens on any more is replaced; with
// a daemon that answers there, or does not but has it open, the error is
// [ErrInUse]. Missing directories are made with mode 0700.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	return listen(ctx, address, socketMode)
}

// ListenPrivate does the same with mode 0600.
func ListenPrivate(ctx context.Context, address string) (net.Listener, error) {
	return listen(ctx, address, privateMode)
}

func listen(ctx context.Context, address string, mode uint32) (net.Listener, error) {
	socket, err := socketPath(address)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	defer unlock()
	if err := removeStale(ctx, socket); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	fault.Point("listen.stale.removed")
	// The mode of a socket file is that of the socket's descriptor less the
	// umask: set before bind, there is no moment at which others may connect.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var chmodErr error
		if err := raw.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), mode) }); err != nil {
			return err
		}
		return os.NewSyscallError("fchmod", chmodErr)
	}}
	l, err := config.Listen(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	fault.Point("listen.bound")
	if err := os.Chmod(socket, os.FileMode(mode)); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", socket, err), l.Close())
	}
	return l, nil
}

func socketPath(address string) (string, error) {
	socket := address
	if scheme, rest, ok := strings.Cut(address, "://"); ok {
		if scheme != "unix" {
			return "", fmt.Errorf("%w: %q: only unix:// sockets are served", ErrAddress, address)
		}
		socket = rest
	}
	switch {
	case !filepath.IsAbs(socket):
		return "", fmt.Errorf("%w: %q: the path is not absolute", ErrAddress, address)
	case strings.ContainsRune(socket, 0):
		return "", fmt.Errorf("%w: %q: the path has a zero byte", ErrAddress, address)
	case strings.HasSuffix(socket, "/"):
		return "", fmt.Errorf("%w: %q: the path names a directory", ErrAddress, address)
	}
	socket = filepath.Clean(socket)
	if len(socket) > maxSocketPath {
		return "", fmt.Errorf("%w: %s: the path has %d bytes, the kernel's limit for sockets is %d; choose a shorter one",
			ErrAddress, socket, len(socket), maxSocketPath)
	}
	return socket, nil
}

// lockDir keeps other daemons from looking for a stale socket in dir while
// this one does: two that start at once would each remove the other's.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: it is starting: %s is locked", ErrInUse, dir)
		}
		return nil, &os.PathError{Op: "flock", Path: dir, Err: err}
	}
	return func() { _ = f.Close() }, nil
}

// removeStale removes a socket that refuses connections. Only ECONNREFUSED
// says that nobody has it open: a daemon that is stopped or overloaded lets
// the connection time out or answers EAGAIN.
func removeStale(ctx context.Context, socket string) error {
	stat, err := os.Lstat(socket)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case stat.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%w: there is a file that is no socket (%v); remove it or choose another path", ErrAddress, stat.Mode())
	}
	dialer := net.Dialer{Timeout: answerTimeout}
	conn, err := dialer.DialContext(ctx, "unix", socket)
	switch {
	case err == nil:
		_ = conn.Close()
		return fmt.Errorf("%w: it accepts connections", ErrInUse)
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(socket)
	case errors.Is(err, unix.ENOENT):
		return nil
	}
	return fmt.Errorf("%w: it holds the socket but does not accept: %w", ErrInUse, err)
}
