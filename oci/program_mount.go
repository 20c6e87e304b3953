package oci

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mountOptions are the options of one mount, sorted by what they act on.
type mountOptions struct {
	bind, recursive bool
	set, clear      uint64 // MOUNT_ATTR_* of this mount
	setAll          uint64 // MOUNT_ATTR_* of this mount and all below it
	propagation     uint64
	propagateAll    bool
	data            []string // options of the file system
	shown           []string
}

type mountFlag struct {
	set, clear, setAll uint64
}

func mountFlagOf(option string) (mountFlag, bool) {
	switch option {
	case "ro":
		return mountFlag{set: unix.MOUNT_ATTR_RDONLY}, true
	case "nosuid":
		return mountFlag{set: unix.MOUNT_ATTR_NOSUID}, true
	case "nodev":
		return mountFlag{set: unix.MOUNT_ATTR_NODEV}, true
	case "noexec":
		return mountFlag{set: unix.MOUNT_ATTR_NOEXEC}, true
	case "nosymfollow":
		return mountFlag{set: unix.MOUNT_ATTR_NOSYMFOLLOW}, true
	case "nodiratime":
		return mountFlag{set: unix.MOUNT_ATTR_NODIRATIME}, true
	case "noatime":
		return mountFlag{set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME}, true
	case "strictatime":
		return mountFlag{set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME}, true
	case "rro":
		return mountFlag{setAll: unix.MOUNT_ATTR_RDONLY}, true
	case "rnosuid":
		return mountFlag{setAll: unix.MOUNT_ATTR_NOSUID}, true
	case "rnodev":
		return mountFlag{setAll: unix.MOUNT_ATTR_NODEV}, true
	case "rnoexec":
		return mountFlag{setAll: unix.MOUNT_ATTR_NOEXEC}, true
	// What a new mount is anyway. A bind mount keeps the restrictions of its
	// source: "rw" or "exec" must not lift a noexec that it inherits.
	case "rw", "suid", "dev", "exec", "defaults", "relatime", "atime", "diratime":
		return mountFlag{}, true
	}
	return mountFlag{}, false
}

func propagationOf(option string) (kind uint64, all, ok bool) {
	switch strings.TrimPrefix(option, "r") {
	case "private":
		kind = unix.MS_PRIVATE
	case "slave":
		kind = unix.MS_SLAVE
	case "shared":
		kind = unix.MS_SHARED
	case "unbindable":
		kind = unix.MS_UNBINDABLE
	default:
		return 0, false, false
	}
	return kind, option[0] == 'r', true
}

func parseMountOptions(m *specs.Mount) mountOptions {
	o := mountOptions{bind: m.Type == "bind"}
	for _, opt := range m.Options {
		if f, ok := mountFlagOf(opt); ok {
			o.set |= f.set
			o.clear |= f.clear
			o.setAll |= f.setAll
			if f.set|f.setAll != 0 {
				o.shown = append(o.shown, opt)
			}
			continue
		}
		if kind, all, ok := propagationOf(opt); ok {
			o.propagation, o.propagateAll = kind, all
			continue
		}
		switch opt {
		case "bind":
			o.bind = true
		case "rbind":
			o.bind, o.recursive = true, true
		default:
			o.data = append(o.data, opt)
		}
	}
	return o
}

// mounter appends the steps that build the container's mount namespace.
type mounter struct {
	*builder
	spec    *specs.Spec
	opts    *CompileOptions
	root    int // slot of the root file system
	dev     int // slot of the fresh /dev, -1: the container brings its own
	pts     int // slot of the terminal's slave, -1: no terminal
	master  int // slot of the terminal's master
	mask    int // slot of the file system that masks paths, -1: none
	sources []int
	user    *specs.Linux   // its mappings, nil without a user namespace
	nodes   map[string]int // slots of the host's default devices, with a user namespace
}

// openSources appends the opening of all host paths, while the child is still in
// the host's mount namespace. The clones are detached: no path of the host is
// used afterwards, and a source shared with the host stays in its peer group.
func (m *mounter) openSources() {
	for i := range m.spec.Mounts {
		mnt := &m.spec.Mounts[i]
		o := parseMountOptions(mnt)
		name := "mount " + mnt.Destination
		if m.sources[i] >= 0 {
			m.setattr(name, m.sources[i], &o)
			continue
		}
		if !o.bind {
			continue
		}
		s := m.slot()
		m.sources[i] = s
		fl, text := uint64(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC), "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC"
		if o.recursive {
			fl, text = fl|unix.AT_RECURSIVE, text+"|AT_RECURSIVE"
		}
		m.call(name+": open source "+mnt.Source, unix.SYS_OPEN_TREE, cwd(), m.str(mnt.Source), flags(fl, text)).to(s)
		m.setattr(name, s, &o)
	}
}

// setattr appends the change of a detached mount's attributes and propagation.
func (m *mounter) setattr(name string, s int, o *mountOptions) {
	prop := o.propagation
	if prop == 0 {
		prop = unix.MS_PRIVATE
	}
	if !o.recursive { // there is nothing below
		text := strings.Join(append(o.shown, propagationText(prop)), ",")
		m.mountSetattr(name+": set attributes and propagation", s, false, [4]uint64{o.set | o.setAll, o.clear, prop}, text)
		return
	}
	m.mountSetattr(name+": set propagation", s, o.propagation == 0 || o.propagateAll, [4]uint64{0, 0, prop}, propagationText(prop))
	if o.set|o.clear != 0 {
		m.mountSetattr(name+": set attributes", s, false, [4]uint64{o.set, o.clear}, strings.Join(o.shown, ","))
	}
	if o.setAll != 0 {
		m.mountSetattr(name+": set attributes below", s, true, [4]uint64{o.setAll}, strings.Join(o.shown, ","))
	}
}

func propagationText(p uint64) string {
	switch p {
	case unix.MS_SLAVE:
		return "slave"
	case unix.MS_SHARED:
		return "shared"
	case unix.MS_UNBINDABLE:
		return "unbindable"
	}
	return "private"
}

func (m *mounter) mountSetattr(name string, s int, all bool, attr [4]uint64, text string) {
	fl, ft := uint64(unix.AT_EMPTY_PATH), "AT_EMPTY_PATH"
	if all {
		fl, ft = fl|unix.AT_RECURSIVE, ft+"|AT_RECURSIVE"
	}
	m.call(name, unix.SYS_MOUNT_SETATTR, slotArg(s), m.str(""), flags(fl, ft), m.words("{"+text+"}", attr[:]...), num(len(attr)*8))
}

// sources asks for the sources that are given; -1 stands for the others.
func (b *builder) sources(spec *specs.Spec, opts *CompileOptions) []int {
	slots := make([]int, len(spec.Mounts))
	for i := range spec.Mounts {
		slots[i] = -1
		if opts.givenSource(i) {
			slots[i] = b.file(FileSource + File(i))
		}
	}
	return slots
}

// leaveHost appends the step from the host's mount namespace to the
// container's: a copy of an empty one, so that its cost doesn't grow with the
// mounts of the host.
func (b *builder) leaveHost(mountNS int) {
	b.call("leave the host's mount namespace", unix.SYS_SETNS, slotArg(mountNS), flags(unix.CLONE_NEWNS, "CLONE_NEWNS"))
	b.call("make the mount namespace", unix.SYS_UNSHARE, flags(unix.CLONE_NEWNS, "CLONE_NEWNS"))
}

func (m *mounter) moveTo(name string, s int, dir Arg, p string) {
	fl, text := uint64(unix.MOVE_MOUNT_F_EMPTY_PATH), "MOVE_MOUNT_F_EMPTY_PATH"
	if p == "" {
		fl, text = fl|unix.MOVE_MOUNT_T_EMPTY_PATH, text+"|MOVE_MOUNT_T_EMPTY_PATH"
	}
	m.call(name, unix.SYS_MOVE_MOUNT, slotArg(s), m.str(""), dir, m.str(p), flags(fl, text))
}

// open appends the opening of a path below the root by the container's own rules: no
// symlink leads out of it, no magic link is followed (CVE-2021-30465).
func (m *mounter) open(name, p string, extra uint64) *Step {
	how := m.words("{O_PATH, RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS}", unix.O_PATH|unix.O_CLOEXEC|extra, 0, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	rel := strings.TrimPrefix(p, "/")
	if rel == "" {
		rel = "."
	}
	return m.call(name, unix.SYS_OPENAT2, slotArg(m.root), m.str(rel), how, num(24))
}

// target returns the destination of mount i with the image's symlinks resolved.
func (m *mounter) target(i int) string {
	if i < len(m.opts.Targets) && m.opts.Targets[i] != "" {
		return m.opts.Targets[i]
	}
	return path.Clean("/" + m.spec.Mounts[i].Destination)
}

// mounts appends all mounts of the spec, in its order.
func (m *mounter) mounts() {
	for i := range m.spec.Mounts {
		mnt := &m.spec.Mounts[i]
		name, to := "mount "+mnt.Destination, m.target(i)
		m.makeTarget(i, name, to)
		switch {
		case m.sources[i] >= 0:
			m.attach(name, m.sources[i], to)
			m.close(name, m.sources[i])
		case mnt.Type == "cgroup":
			m.cgroups(name, mnt, to)
		case to == "/dev" && mnt.Type == "tmpfs":
			m.devices(name, mnt)
		default:
			s := m.filesystem(name, mnt, parseMountOptions(mnt))
			m.attach(name, s, to)
			if mnt.Type == "devpts" && m.spec.Process.Terminal {
				m.terminal(s)
			}
			m.close(name, s)
		}
	}
}

// attach appends the move of a detached mount to a path below the root.
func (m *mounter) attach(name string, s int, to string) {
	t := m.slot()
	m.open(name+": open target", to, 0).to(t)
	m.moveTo(name+": attach", s, slotArg(t), "")
	m.close(name, t)
}

// makeTarget appends the creation of the mount point, where it lies in
// another mount of the list. All others were made on the root file system
// before the launch.
func (m *mounter) makeTarget(i int, name, to string) {
	cover, over := "", -1
	for j := range i {
		if t := m.target(j); t != "/" && strings.HasPrefix(to, t+"/") && len(t) > len(cover) {
			cover, over = t, j
		}
	}
	if over < 0 || m.spec.Mounts[over].Type == "sysfs" || m.spec.Mounts[over].Type == "proc" {
		return
	}
	if m.dev >= 0 && cover == "/dev" && slices.Contains(devDirectories(), to[len("/dev/"):]) {
		return
	}
	parts := strings.Split(to[len(cover)+1:], "/")
	dir := cover
	for k, part := range parts {
		d := m.slot()
		m.open(name+": open "+dir, dir, unix.O_DIRECTORY).to(d)
		if k == len(parts)-1 && m.opts.fileSource(i) {
			m.call(name+": make mount point", unix.SYS_MKNODAT, slotArg(d), m.str(part), flags(unix.S_IFREG|0o644, "S_IFREG|0644"), num(0)).
				allow(0, unix.EEXIST)
		} else {
			// An existing directory on a read-only file system may answer either way.
			m.call(name+": make mount point", unix.SYS_MKDIRAT, slotArg(d), m.str(part), flags(0o755, "0755")).allow(0, unix.EEXIST, unix.EROFS)
		}
		m.close(name, d)
		dir += "/" + part
	}
}

// filesystem appends the making of a new detached mount and returns its slot.
func (m *mounter) filesystem(name string, mnt *specs.Mount, o mountOptions) int {
	f, s := m.slot(), m.slot()
	m.call(name+": open file system "+mnt.Type, unix.SYS_FSOPEN, m.str(mnt.Type), flags(unix.FSOPEN_CLOEXEC, "FSOPEN_CLOEXEC")).to(f)
	m.config(name, f, "source", cmp.Or(mnt.Source, mnt.Type))
	for _, opt := range o.data {
		key, value, isPair := strings.Cut(opt, "=")
		if isPair {
			m.config(name, f, key, value)
		} else {
			m.call(name+": option "+key, unix.SYS_FSCONFIG, slotArg(f), flags(unix.FSCONFIG_SET_FLAG, "FSCONFIG_SET_FLAG"), m.str(key), null(), num(0))
		}
	}
	label := m.spec.Linux.MountLabel
	if label != "" && (mnt.Type == "tmpfs" || mnt.Type == "devpts") {
		m.config(name, f, "context", label)
	}
	m.call(name+": create", unix.SYS_FSCONFIG, slotArg(f), flags(unix.FSCONFIG_CMD_CREATE, "FSCONFIG_CMD_CREATE"), null(), null(), num(0))
	m.call(name+": make mount", unix.SYS_FSMOUNT, slotArg(f), flags(unix.FSMOUNT_CLOEXEC, "FSMOUNT_CLOEXEC"), flags(o.set|o.setAll, "{"+strings.Join(o.shown, ",")+"}")).to(s)
	m.close(name, f)
	if label != "" && mnt.Type == "mqueue" && m.ownIPC() {
		m.labelQueues(name, s, label)
	}
	return s
}

// labelQueues appends the labelling of the root of an IPC namespace's queues: their file system is
// made with the namespace, a mount cannot give it a context any more.
func (m *mounter) labelQueues(name string, mount int, label string) {
	d := m.slot()
	m.call(name+": open its root", unix.SYS_OPENAT, slotArg(mount), m.str("."), flags(unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, "O_RDONLY|O_DIRECTORY|O_CLOEXEC"), num(0)).to(d)
	m.call(name+": label", unix.SYS_FSETXATTR, slotArg(d), m.str("security.selinux"), m.str(label), num(len(label)), num(0)).allow(0, unix.EOPNOTSUPP)
	m.close(name, d)
}

func (m *mounter) ownIPC() bool {
	return slices.ContainsFunc(m.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.IPCNamespace })
}

func (m *mounter) config(name string, f int, key, value string) {
	m.call(name+": option "+key+"="+value, unix.SYS_FSCONFIG, slotArg(f), flags(unix.FSCONFIG_SET_STRING, "FSCONFIG_SET_STRING"), m.str(key), m.str(value), num(0))
}

// cgroups appends the mounts of the cgroup hierarchies, seen from the
// container's own cgroup namespace.
func (m *mounter) cgroups(name string, mnt *specs.Mount, to string) {
	o := parseMountOptions(mnt)
	o.data = nil
	if m.opts.CgroupV2 {
		s := m.filesystem(name, &specs.Mount{Type: "cgroup2"}, o)
		m.attach(name, s, to)
		m.close(name, s)
		return
	}
	readOnly := o.set & unix.MOUNT_ATTR_RDONLY
	o.set &^= unix.MOUNT_ATTR_RDONLY
	o.data = []string{"mode=755"}
	top := m.filesystem(name, &specs.Mount{Type: "tmpfs"}, o)
	m.attach(name, top, to)
	o.set |= readOnly
	for _, h := range m.opts.Hierarchies {
		o.data = h.Options
		s := m.filesystem(name+"/"+h.Name, &specs.Mount{Type: "cgroup"}, o)
		m.call(name+"/"+h.Name+": make mount point", unix.SYS_MKDIRAT, slotArg(top), m.str(h.Name), flags(0o755, "0755"))
		m.moveTo(name+"/"+h.Name+": attach", s, slotArg(top), h.Name)
		m.close(name+"/"+h.Name, s)
	}
	if readOnly != 0 {
		m.mountSetattr(name+": make read-only", top, false, [4]uint64{unix.MOUNT_ATTR_RDONLY}, "ro")
	}
	m.close(name, top)
}

// maskPaths appends the hiding of paths: directories by an empty
// directory, files by a null device. Both lie in a file system made here, so
// that no image can put something else in their place (CVE-2025-31133).
func (m *mounter) maskPaths() {
	if len(m.spec.Linux.MaskedPaths) == 0 {
		return
	}
	mask := m.filesystem("mask", &specs.Mount{Type: "tmpfs"}, mountOptions{set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, shown: []string{"nosuid", "noexec"}, data: []string{"mode=755", "size=0", "nr_inodes=4"}})
	m.call("mask: make directory", unix.SYS_MKDIRAT, slotArg(mask), m.str("d"), flags(0o555, "0555"))
	if m.user == nil {
		m.call("mask: make null device", unix.SYS_MKNODAT, slotArg(mask), m.str("f"), flags(unix.S_IFCHR|0o666, "S_IFCHR|0666"), num(unix.Mkdev(1, 3)))
	} else {
		m.call("mask: make place for null device", unix.SYS_MKNODAT, slotArg(mask), m.str("f"), flags(unix.S_IFREG|0o444, "S_IFREG|0444"), num(0))
	}
	m.mountSetattr("mask: make read-only", mask, false, [4]uint64{unix.MOUNT_ATTR_RDONLY}, "ro")
	m.moveTo("mask: attach", mask, cwd(), "/mask")
	if m.user != nil {
		m.moveTo("mask: attach null device", m.nodes[maskNode], slotArg(mask), "f")
	}
	for _, p := range m.spec.Linux.MaskedPaths {
		name := "mask " + p
		t, s := m.slot(), m.slot()
		clone := flags(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC, "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC")
		m.open(name+": open directory", p, unix.O_DIRECTORY).to(t).allow(6, unix.ENOENT).allow(3, unix.ENOTDIR)
		m.call(name+": clone the empty directory", unix.SYS_OPEN_TREE, slotArg(mask), m.str("d"), clone).to(s)
		m.moveTo(name+": attach", s, slotArg(t), "")
		m.call(name+": done", opJump, num(3))
		m.open(name+": open file", p, 0).to(t).allow(2, unix.ENOENT, unix.ENOTDIR)
		m.call(name+": clone the null device", unix.SYS_OPEN_TREE, slotArg(mask), m.str("f"), clone).to(s)
		m.moveTo(name+": attach", s, slotArg(t), "")
		// The slots are reused without closing: the paths may have been left out.
		m.free = append(m.free, t, s)
	}
}

// readonlyPaths appends the bind mounts that make parts of /proc read-only.
func (m *mounter) readonlyPaths() {
	for _, p := range m.spec.Linux.ReadonlyPaths {
		name := "make read-only " + p
		t, s := m.slot(), m.slot()
		m.open(name+": open", p, 0).to(t).allow(3, unix.ENOENT, unix.ENOTDIR)
		m.call(name+": clone", unix.SYS_OPEN_TREE, slotArg(t), m.str(""),
			flags(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_EMPTY_PATH|AT_RECURSIVE")).to(s)
		m.mountSetattr(name, s, false, [4]uint64{unix.MOUNT_ATTR_RDONLY}, "ro")
		m.moveTo(name+": attach", s, slotArg(t), "")
		m.free = append(m.free, t, s)
	}
}

// attachRoot appends the attaching of the root file system. Without a user namespace it goes
// right above the root of the empty mount namespace.
func (m *mounter) attachRoot() {
	at := "/"
	if m.user != nil {
		at = "/root"
	}
	m.moveTo("attach the root file system", m.root, cwd(), at)
}

// enterRoot appends the last steps of the mount namespace: everything of the
// host is gone after them.
func (m *mounter) enterRoot() {
	if m.spec.Root.Readonly {
		m.mountSetattr("make the root read-only", m.root, false, [4]uint64{unix.MOUNT_ATTR_RDONLY}, "ro")
	}
	m.call("enter the root: change directory", unix.SYS_FCHDIR, slotArg(m.root))
	if m.user == nil {
		// What stays below the root is empty, and it is no way out: ".." and the joining of the
		// namespace lead to the topmost mount. To take it away would cost a grace period of RCU, 1 to 8 ms.
		m.call("enter the root", unix.SYS_CHROOT, m.str("."))
	} else {
		m.pivot()
	}
	// Only now: no mount may be moved below a shared one, nor be pivoted to.
	if kind, all, ok := propagationOf(m.spec.Linux.RootfsPropagation); ok && kind != unix.MS_PRIVATE {
		m.mountSetattr("set the propagation of the root", m.root, all, [4]uint64{0, 0, kind}, propagationText(kind))
	}
}

// pivot appends the taking away of what is below the root: with a user namespace, whole views of the
// host's processes and devices.
func (m *mounter) pivot() {
	// Both arguments may be the same directory: the old root is stacked on
	// the new one and taken away by the next step, no directory is needed for it.
	m.call("enter the root: pivot", unix.SYS_PIVOT_ROOT, m.str("."), m.str("."))
	m.call("enter the root: detach the old one", unix.SYS_UMOUNT2, m.str("."), flags(unix.MNT_DETACH, "MNT_DETACH"))
	m.call("enter the root: change to /", unix.SYS_FCHDIR, slotArg(m.root))
}

// checkMounts refuses what the mount steps can't do.
func checkMounts(spec *specs.Spec, opts *CompileOptions) error {
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if !path.IsAbs(m.Destination) {
			return fmt.Errorf("mounts[%d].destination %q is not absolute: %w", i, m.Destination, ErrInvalid)
		}
		if len(m.UIDMappings)+len(m.GIDMappings) > 0 && !opts.givenSource(i) {
			return fmt.Errorf("mounts[%d].uidMappings: the source is not given as an id-mapped mount: %w", i, ErrInvalid)
		}
	}
	return nil
}

// sysctls appends the writing of the spec's sysctls through the container's own
// /proc, which was mounted a moment ago and is nobody else's yet.
func (m *mounter) sysctls() {
	for _, key := range slices.Sorted(maps.Keys(m.spec.Linux.Sysctl)) {
		name, value := "set sysctl "+key, m.spec.Linux.Sysctl[key]
		f := m.slot()
		how := m.words("{O_WRONLY, RESOLVE_IN_ROOT|RESOLVE_NO_SYMLINKS}", unix.O_WRONLY|unix.O_CLOEXEC, 0, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_SYMLINKS)
		m.call(name+": open", unix.SYS_OPENAT2, slotArg(m.root), m.str("proc/sys/"+strings.ReplaceAll(key, ".", "/")), how, num(24)).to(f)
		m.call(name+": write "+value, unix.SYS_WRITE, slotArg(f), m.str(value), num(len(value)))
		m.close(name, f)
	}
}
