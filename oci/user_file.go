package oci

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	passwdPath = "etc/passwd"
	groupPath  = "etc/group"
	// maxAccountBytes bounds a passwd or group file: it is the image's, and
	// reading it whole must not cost the daemon its memory (CVE-2025-4437,
	// CVE-2026-47262).
	maxAccountBytes = 4 << 20
	openAttempts    = 16
)

// readAccounts reads a file of the image below root; a file that is not there
// counts as empty. The image chose what lies at that path: links are resolved inside
// root, and only a regular file is opened at all: opening a FIFO may block,
// opening a device may do anything.
func readAccounts(root *os.File, name string) ([]byte, error) {
	place, err := openInRoot(root, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the image's file: %w", err)
	}
	defer place.Close()
	st, err := place.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the image's file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, invalid("image's file "+name, "is not a regular file but %s", st.Mode().Type())
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", place.Fd()), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("read the image's file %s: %w", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxAccountBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the image's file: %w", err)
	}
	if len(data) > maxAccountBytes {
		return nil, invalid("image's file "+name, "is larger than %d bytes", maxAccountBytes)
	}
	return data, nil
}

// openInRoot returns an O_PATH descriptor of name, found by the rules of root.
func openInRoot(root *os.File, name string) (*os.File, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := -1, error(unix.EAGAIN)
	// EAGAIN: a rename elsewhere in the tree, the kernel could not be sure.
	for i := 0; i < openAttempts && (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)); i++ {
		fd, err = unix.Openat2(int(root.Fd()), name, how)
	}
	runtime.KeepAlive(root)
	if err != nil {
		return nil, &os.PathError{Op: "openat2", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
