package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mountByDescriptors is for kernels before 6.7, and for paths too long for
// fsconfig(2): all layers go into the one page of options of mount(2), as the
// numbers of open descriptors relative to /proc/thread-self/fd, 500 of which
// fit. mount(2) attaches what it mounts, so a thread of its own does it in a
// mount namespace that ends with it, and brings out a detached copy.
func mountByDescriptors(dir string, layers []string, options []overlayOption) (*os.File, error) {
	type result struct {
		mount *os.File
		err   error
	}
	done := make(chan result)
	go onOwnThread(func() {
		m, err := mountInNamespace(dir, layers, options)
		done <- result{m, err}
	})
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("overlay: create with %d layers in %s: %w", len(layers), dir, r.err)
	}
	return r.mount, nil
}

// mountInNamespace changes the mount namespace and the directory of its thread.
func mountInNamespace(dir string, layers []string, options []overlayOption) (_ *os.File, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	// They are opened here, as an overlay takes no directory of another mount namespace.
	open := func(path string) string {
		if err != nil {
			return ""
		}
		fd, openErr := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if openErr != nil {
			err = &os.PathError{Op: "open", Path: path, Err: openErr}
			return ""
		}
		fds = append(fds, fd)
		return strconv.Itoa(fd)
	}
	numbers := make([]string, len(layers))
	for i, l := range layers {
		numbers[i] = open(l)
	}
	text := "lowerdir=" + strings.Join(numbers, ":") +
		",upperdir=" + open(filepath.Join(dir, "upper")) + ",workdir=" + open(filepath.Join(dir, "work"))
	for _, o := range options {
		if o.key == "context" {
			text = labelled(text, o.value)
			continue
		}
		text += "," + o.String()
	}
	if err != nil {
		return nil, err
	}
	if len(text) >= os.Getpagesize() {
		return nil, fmt.Errorf("%d bytes of options, the kernel reads a page: %w", len(text), ErrUnsupported)
	}
	if err := unix.Chdir("/proc/thread-self/fd"); err != nil {
		return nil, &os.PathError{Op: "chdir", Path: "/proc/thread-self/fd", Err: err}
	}
	return mountAndDetach(dir, text)
}

func mountAndDetach(target, options string) (*os.File, error) {
	if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
		return nil, fmt.Errorf("mount with %s: %w", options, err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	err = errors.Join(err, unix.Unmount(target, unix.MNT_DETACH))
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, fmt.Errorf("detach: %w", err)
	}
	return os.NewFile(uintptr(fd), "rootfs"), nil
}
