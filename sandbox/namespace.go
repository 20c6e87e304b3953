package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/conmon"
	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// namespaces says which namespaces a pod has of its own, and what is set in them.
type namespaces struct {
	dir      string // the pins are made in it
	net, ipc bool
	hostname string // "" without an own UTS namespace
	sysctls  map[string]string

	user   bool // a user namespace owns the others
	ids    idMap
	binary *conmon.Binary // makes namespaces that a user namespace owns
}

// pinned is the name of a pin below the directory of pins.
func (n *namespaces) pin(kind string) string { return filepath.Join(n.dir, kind) }

// create makes the namespaces on a thread that ends afterwards, and pins each
// by a bind mount, so that they need no process to stay.
func (n *namespaces) create() error {
	if n.user {
		return n.createOwned()
	}
	if !n.net && !n.ipc && n.hostname == "" {
		return nil
	}
	done := make(chan error, 1)
	go onOwnThread(func() { done <- n.unshare() })
	return <-done
}

func (n *namespaces) unshare() error {
	var flags int
	var kinds []string
	for _, ns := range []struct {
		kind string
		flag int
		want bool
	}{{"net", unix.CLONE_NEWNET, n.net}, {"ipc", unix.CLONE_NEWIPC, n.ipc}, {"uts", unix.CLONE_NEWUTS, n.hostname != ""}} {
		if ns.want {
			flags |= ns.flag
			kinds = append(kinds, ns.kind)
		}
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("make namespaces %s: %w", strings.Join(kinds, ", "), err)
	}
	fault.Point("run.namespaces.made")
	if n.hostname != "" {
		if err := unix.Sethostname([]byte(n.hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", n.hostname, err)
		}
	}
	if n.net {
		if err := network.LoopbackUp(); err != nil {
			return err
		}
	}
	if err := n.setSysctls(); err != nil {
		return err
	}
	fault.Point("run.namespaces.set")
	for _, kind := range kinds {
		if err := pinNamespace(fmt.Sprintf("/proc/self/task/%d/ns/%s", unix.Gettid(), kind), n.pin(kind)); err != nil {
			return err
		}
	}
	return nil
}

// setSysctls writes the pod's sysctls. They are allow-listed names; what the
// kernel shows at /proc/sys depends on the namespaces of this thread.
func (n *namespaces) setSysctls() error {
	for name, value := range n.sysctls {
		path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("set sysctl %s: %w", name, err)
		}
		_, err = f.WriteString(value)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("set sysctl %s to %q: %w", name, value, err)
		}
	}
	return nil
}

// pinNamespace bind-mounts the namespace at path on the file at pin.
func pinNamespace(path, pin string) error {
	fd, err := unix.Open(pin, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("pin namespace: make %s: %w", pin, err)
	}
	_ = unix.Close(fd)
	fault.Point("pin.file.made")
	if err := unix.Mount(path, pin, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin namespace %s: mount on %s: %w", path, pin, err)
	}
	return nil
}

// unpin takes a pin away that may or may not be there.
func unpin(pin string) error {
	if err := unix.Unmount(pin, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unpin namespace: unmount %s: %w", pin, err)
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin namespace: %w", err)
	}
	return nil
}

// emptyMountNS makes a mount namespace that holds one read-only tmpfs with the
// directories /root and /mask. The mount namespace of every
// container starts as a copy of it: unlike a copy of the host's, its cost
// does not grow with the host's mounts, and nothing of the host is ever in it.
// dir is any directory; the host sees no change. fill, if there is one, mounts more
// in it.
func emptyMountNS(dir string, fill func(dir string) error) (*os.File, error) {
	type result struct {
		ns  *os.File
		err error
	}
	done := make(chan result, 1)
	go onOwnThread(func() {
		ns, err := unshareEmpty(dir, fill)
		done <- result{ns, err}
	})
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("make the empty mount namespace: %w", r.err)
	}
	return r.ns, nil
}

// onOwnThread runs f on a thread that ends with it. The first thread of a
// process does not end: it would stay in f's namespaces, keep them alive and
// show them as /proc/self, so another thread is taken instead of it.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f() // never unlocked: the runtime ends the thread with the goroutine
		return
	}
	defer runtime.UnlockOSThread()
	done := make(chan struct{})
	go func() {
		defer close(done)
		onOwnThread(f)
	}()
	<-done
}

func unshareEmpty(dir string, fill func(dir string) error) (_ *os.File, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/mnt", unix.Gettid()))
	if err != nil {
		return nil, err
	}
	var undo cleanup
	defer undo.undo(&err)
	undo.add(ns.Close)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make / private: %w", err)
	}
	if err := unix.Mount("cri-runtime", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=4k,nr_inodes=8"); err != nil {
		return nil, fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	if err := unix.Chdir(dir); err != nil {
		return nil, fmt.Errorf("change to %s: %w", dir, err)
	}
	for _, name := range []string{"root", "mask"} {
		if err := unix.Mkdir(name, 0o700); err != nil {
			return nil, fmt.Errorf("make %s: %w", name, err)
		}
	}
	if fill != nil {
		if err := fill(dir); err != nil {
			return nil, err
		}
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return nil, fmt.Errorf("pivot to %s: %w", dir, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return nil, fmt.Errorf("detach the host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return nil, err
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, fmt.Errorf("make it read-only: %w", err)
	}
	return ns, nil
}

// isNamespace tells whether a pin is in place.
func isNamespace(pin string) bool {
	var st unix.Statfs_t
	return unix.Statfs(pin, &st) == nil && st.Type == unix.NSFS_MAGIC
}
