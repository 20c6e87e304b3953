package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/conmon"
	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// idMap is what ids of a user namespace are outside of it.
type idMap struct{ uids, gids []specs.LinuxIDMapping }

func (m idMap) equal(n idMap) bool {
	return slices.Equal(m.uids, n.uids) && slices.Equal(m.gids, n.gids)
}

// root returns who owns what is made for the namespace from outside; the
// host's root when there are no mappings.
func (m idMap) root() owner {
	var o owner
	for _, u := range m.uids {
		if u.ContainerID == 0 {
			o.uid = int(u.HostID)
		}
	}
	for _, g := range m.gids {
		if g.ContainerID == 0 {
			o.gid = int(g.HostID)
		}
	}
	return o
}

// owner is who owns a file, as the host sees it.
type owner struct{ uid, gid int }

// write gives the user namespace of a process its mappings.
func (m idMap) write(pid int) error {
	for _, f := range []struct {
		name string
		list []specs.LinuxIDMapping
	}{{"uid_map", m.uids}, {"gid_map", m.gids}} {
		var text strings.Builder
		for _, l := range f.list {
			fmt.Fprintf(&text, "%d %d %d\n", l.ContainerID, l.HostID, l.Size)
		}
		// One write(2), as the kernel wants it.
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, f.name), []byte(text.String()), 0); err != nil {
			return fmt.Errorf("write the mappings %q: %w", text.String(), err)
		}
	}
	return nil
}

// open makes a user namespace with these mappings and nothing in it.
func (m idMap) open(binary *conmon.Binary) (_ *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make user namespace: %w", err)
		}
	}()
	program, err := oci.CompileNamespaces(nil)
	if err != nil {
		return nil, err
	}
	h, err := binary.Halt(program)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.End()) }()
	if err := m.write(h.PID); err != nil {
		return nil, err
	}
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", h.PID))
}

// createOwned makes a user namespace and the pod's other namespaces, which belong to it, in a
// process that ends afterwards, and pins them.
func (n *namespaces) createOwned() (err error) {
	program, err := oci.CompileNamespaces(&oci.UserPod{Net: n.net, IPC: n.ipc, Hostname: n.hostname, Sysctls: n.sysctls})
	if err != nil {
		return err
	}
	h, err := n.binary.Halt(program)
	if err != nil {
		return fmt.Errorf("make user namespace: %w", err)
	}
	defer func() { err = errors.Join(err, h.End()) }()
	fault.Point("run.userns.halted")
	if err := n.ids.write(h.PID); err != nil {
		return fmt.Errorf("make user namespace: %w", err)
	}
	fault.Point("run.userns.mapped")
	if err := h.Resume(); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	fault.Point("run.userns.resumed")
	for _, ns := range []struct {
		kind string
		want bool
	}{{"user", true}, {"net", n.net}, {"ipc", n.ipc}, {"uts", n.hostname != ""}} {
		if !ns.want {
			continue
		}
		if err := pinNamespace(fmt.Sprintf("/proc/%d/ns/%s", h.PID, ns.kind), n.pin(ns.kind)); err != nil {
			return err
		}
	}
	if !n.net {
		return nil
	}
	done := make(chan error, 1)
	go onOwnThread(func() { done <- loopbackUpIn(n.pin("net")) })
	return <-done
}

// loopbackUpIn changes the network namespace of its thread.
func loopbackUpIn(pin string) error {
	ns, err := os.Open(pin)
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("bring up lo: enter %s: %w", pin, err)
	}
	return network.LoopbackUp()
}

// idMapped returns the tree at path as a detached mount with the ids of userNS.
// What is mounted below path keeps its own, as with other runtimes.
func idMapped(path string, userNS *os.File, recursive bool) (_ *os.File, err error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userNS.Fd())})
	if errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("its file system cannot map ids on this kernel: %w: %w", err, ErrUnsupported)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map the ids of %s: %w", path, err), f.Close())
	}
	return f, nil
}

// mappedOverlay is overlay with the layers' ids mapped, and a writable layer whose
// files belong to users of the namespace.
func (s *Store) mappedOverlay(dir string, layers []string, label string, userNS *os.File, root owner) (_ *os.File, err error) {
	if !s.features.Overlay.AppendLayers {
		return nil, fmt.Errorf("overlay: id-mapped layers need Linux 6.15: %w", ErrUnsupported)
	}
	mapped := make([]string, len(layers))
	for i, l := range layers {
		f, err := idMapped(l, userNS, false)
		if err != nil {
			return nil, fmt.Errorf("overlay: %w", err)
		}
		defer f.Close()
		mapped[i] = "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	}
	rootfs, err := s.overlay(dir, mapped, label)
	if err != nil {
		return nil, err
	}
	if err := unix.Fchownat(int(rootfs.Fd()), "", root.uid, root.gid, unix.AT_EMPTY_PATH); err != nil {
		return nil, errors.Join(fmt.Errorf("overlay: own the root: %w", err), rootfs.Close())
	}
	return rootfs, nil
}

// probeUserNamespaces returns what a pod with a user namespace lacks here, nil if nothing.
func (s *Store) probeUserNamespaces() error {
	if s.userNS == nil {
		return s.userNSProblem
	}
	dir := s.root("probe")
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return err
	}
	ids := idMap{uids: []specs.LinuxIDMapping{{HostID: 1 << 20, Size: 1 << 16}}, gids: []specs.LinuxIDMapping{{HostID: 1 << 20, Size: 1 << 16}}}
	ns, err := ids.open(s.binary)
	if err == nil {
		var m *os.File
		if m, err = s.mappedOverlay(dir, []string{s.root("skeleton")}, "", ns, ids.root()); err == nil {
			err = m.Close()
		}
		err = errors.Join(err, ns.Close())
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// mountWholeViews mounts a procfs and a sysfs in the directory dir: the kernel mounts new
// ones in a user namespace only where it can see whole ones already.
func mountWholeViews(dir string) error {
	for _, fs := range [][2]string{{"proc", "proc"}, {"sysfs", "sys"}} {
		to := filepath.Join(dir, fs[1])
		if err := unix.Mkdir(to, 0o555); err != nil {
			return fmt.Errorf("make %s: %w", to, err)
		}
		if err := unix.Mount(fs[0], to, fs[0], unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", fs[0], to, err)
		}
	}
	return nil
}

// ids returns the mappings of the pod's user namespace.
func (b *Sandbox) ids() (m idMap, err error) {
	m.uids, m.gids, err = oci.UserMappings(b.Status().Config)
	return m, err
}

func (b *Sandbox) ownUser() bool {
	return oci.PodHasUserNamespace(namespaceOptions(b.Status().Config))
}

// give makes a file of the pod's the property of the root of its user namespace.
func (b *Sandbox) give(path string) error {
	if !b.ownUser() {
		return nil
	}
	ids, err := b.ids()
	if err != nil {
		return err
	}
	root := ids.root()
	if err := os.Lchown(path, root.uid, root.gid); err != nil {
		return fmt.Errorf("give to the pod's user namespace: %w", err)
	}
	return nil
}
