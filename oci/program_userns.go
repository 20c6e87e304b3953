package oci

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// maskNode names the clone of the host's null device that masks files.
	maskNode = "mask"
	// manyFiles is above all descriptors that a launch program has open.
	manyFiles = 4096
)

// userNamespace returns the part of spec that has the mappings of its user
// namespace, nil when there is none.
func userNamespace(spec *specs.Spec) *specs.Linux {
	if _, ok := namespace(spec, specs.UserNamespace); ok {
		return spec.Linux
	}
	return nil
}

// hostID returns what id of a user namespace is outside of it.
func hostID(mappings []specs.LinuxIDMapping, id uint32) (uint32, bool) {
	for _, m := range mappings {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID), true
		}
	}
	return 0, false
}

// checkUserNS refuses a user namespace that is not there already: mappings are
// written from outside.
func checkUserNS(spec *specs.Spec) error {
	ns, ok := namespace(spec, specs.UserNamespace)
	l := spec.Linux
	switch {
	case !ok && len(l.UIDMappings)+len(l.GIDMappings) > 0:
		return fmt.Errorf("spec: linux.uidMappings without a user namespace: %w", ErrInvalid)
	case !ok:
		return nil
	case ns.Path == "":
		return fmt.Errorf("spec: a user namespace without a path: %w", ErrUnsupported)
	case len(l.Devices) > 0:
		return fmt.Errorf("spec: linux.devices in a user namespace: devices can only be bind mounts: %w", ErrUnsupported)
	}
	if _, ok := namespace(spec, specs.PIDNamespace); !ok {
		return fmt.Errorf("spec: a user namespace with the host's PID namespace: %w", ErrUnsupported)
	}
	u := spec.Process.User
	for _, gid := range append([]uint32{u.GID}, u.AdditionalGids...) {
		if _, ok := hostID(l.GIDMappings, gid); !ok {
			return fmt.Errorf("process.user: group %d is not mapped in the user namespace: %w", gid, ErrInvalid)
		}
	}
	if _, ok := hostID(l.UIDMappings, u.UID); !ok {
		return fmt.Errorf("process.user: user %d is not mapped in the user namespace: %w", u.UID, ErrInvalid)
	}
	return nil
}

// openDevices appends the opening of the host's nodes of the default devices: none
// can be made in a user namespace.
func (m *mounter) openDevices() {
	m.nodes = map[string]int{}
	open := func(key, p string) {
		s := m.slot()
		name := "device " + p
		m.call(name+": open the host's", unix.SYS_OPEN_TREE, cwd(), m.str(p), flags(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC, "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC")).to(s)
		m.mountSetattr(name+": set propagation", s, false, [4]uint64{0, 0, unix.MS_PRIVATE}, "private")
		m.nodes[key] = s
	}
	for i := range m.spec.Mounts {
		if mnt := &m.spec.Mounts[i]; m.target(i) == "/dev" && mnt.Type == "tmpfs" {
			for _, d := range defaultDevices() {
				open(d.Path, d.Path)
			}
		}
	}
	if len(m.spec.Linux.MaskedPaths) > 0 {
		open(maskNode, "/dev/null")
	}
}

// beforeUserNamespace appends what the process is not allowed to do to itself once it is
// in the user namespace: giving away its streams and raising its limits.
func (c *process) beforeUserNamespace() {
	if uid, ok := hostID(c.user.UIDMappings, c.proc.User.UID); ok && !c.proc.Terminal {
		for _, fd := range c.ownStreams() {
			c.call("own the standard streams", unix.SYS_FCHOWN, slotArg(fd), num(uid), num(-1)).allow(0, unix.EINVAL, unix.EPERM, unix.EROFS, unix.EBADF)
		}
	}
	for _, l := range c.proc.Rlimits {
		kind, ok := rlimitNumber(l.Type)
		if ok && (l.Type != "RLIMIT_NOFILE" || l.Hard > manyFiles) {
			c.call(fmt.Sprintf("raise limit %s to %d", l.Type, l.Hard), unix.SYS_PRLIMIT64, num(0), num(kind), c.words(fmt.Sprintf("{%d, %d}", l.Hard, l.Hard), l.Hard, l.Hard), null())
		}
	}
}

// enterUserNamespace appends the step from the host's namespaces to the pod's user
// namespace and to a mount namespace that belongs to it. A new PID namespace has
// to belong to it too, or procfs could not be mounted; the process goes on in it.
func (c *process) enterUserNamespace(mountNS int, newPID bool) {
	path := ""
	for _, ns := range c.user.Namespaces {
		if ns.Type == specs.UserNamespace {
			path = ns.Path
		}
	}
	const name = "join user namespace"
	f := c.slot()
	c.call(name+": open "+path, unix.SYS_OPENAT, cwd(), c.str(path), flags(unix.O_RDONLY|unix.O_CLOEXEC, "O_RDONLY|O_CLOEXEC")).to(f)
	c.call("leave the host's mount namespace", unix.SYS_SETNS, slotArg(mountNS), flags(unix.CLONE_NEWNS, "CLONE_NEWNS"))
	c.call(name, unix.SYS_SETNS, slotArg(f), flags(unix.CLONE_NEWUSER, "CLONE_NEWUSER"))
	c.close(name, f)
	c.becomeRoot()
	if newPID {
		c.call("make the mount and PID namespaces", opClone, flags(unix.CLONE_NEWNS|unix.CLONE_NEWPID, "CLONE_NEWNS|CLONE_NEWPID"))
	} else {
		c.call("make the mount namespace", unix.SYS_UNSHARE, flags(unix.CLONE_NEWNS, "CLONE_NEWNS"))
	}
}

// becomeRoot appends the change to root of the user namespace, whose files the
// process makes from here on.
func (b *builder) becomeRoot() {
	b.call("become root of the user namespace: groups", unix.SYS_SETGROUPS, num(0), null())
	b.call("become root of the user namespace: group", unix.SYS_SETRESGID, num(0), num(0), num(0))
	b.call("become root of the user namespace: user", unix.SYS_SETRESUID, num(0), num(0), num(0))
}

// UserPod says which namespaces, besides the user namespace that owns them, a pod has.
type UserPod struct {
	Net, IPC bool
	Hostname string // "" without an own UTS namespace
	Sysctls  map[string]string
}

// CompileNamespaces returns the program that makes a pod's user namespace, halts
// for its mappings, makes the pod's other namespaces, and halts for them to be pinned.
// With nil there is only the user namespace. FileResume is wanted.
func CompileNamespaces(pod *UserPod) (*Program, error) {
	b := newBuilder(execSteps)
	resume := b.file(FileResume)
	b.call("make user namespace", unix.SYS_UNSHARE, flags(unix.CLONE_NEWUSER, "CLONE_NEWUSER"))
	b.halt(resume, "the mappings")
	if pod == nil {
		return b.program()
	}
	b.becomeRoot()
	var fresh uint64
	var shown []string
	for _, ns := range []struct {
		want bool
		flag uint64
		text string
	}{{pod.Net, unix.CLONE_NEWNET, "CLONE_NEWNET"}, {pod.IPC, unix.CLONE_NEWIPC, "CLONE_NEWIPC"}, {pod.Hostname != "", unix.CLONE_NEWUTS, "CLONE_NEWUTS"}} {
		if ns.want {
			fresh |= ns.flag
			shown = append(shown, ns.text)
		}
	}
	if fresh != 0 {
		b.call("make namespaces", unix.SYS_UNSHARE, flags(fresh, strings.Join(shown, "|")))
	}
	if pod.Hostname != "" {
		b.call("set hostname", unix.SYS_SETHOSTNAME, b.str(pod.Hostname), num(len(pod.Hostname)))
	}
	for _, key := range slices.Sorted(maps.Keys(pod.Sysctls)) {
		b.write("set sysctl "+key, "/proc/sys/"+strings.ReplaceAll(key, ".", "/"), pod.Sysctls[key])
	}
	b.halt(resume, "the pins")
	return b.program()
}

// halt appends a stop until a byte comes from the resume pipe.
func (b *builder) halt(resume int, why string) {
	b.call("halt for "+why, opReady, num(-1))
	s := b.call("go on after "+why, unix.SYS_READ, slotArg(resume), b.bytes(make([]byte, 8), "{}"), num(1), num(0), num(0), num(1))
	s.flags |= flagExact // the end of the pipe is the end of the daemon
}
