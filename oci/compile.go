package oci

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// CompileOptions is what a launch program depends on besides the spec.
type CompileOptions struct {
	TaskFiles   []string    // v1: names of the `tasks` files to join by; they are given as FileTasks, in this order
	CgroupV2    bool        // the child is born in its cgroup: FileCgroup is wanted
	Hierarchies []Hierarchy // v1: what a mount of type cgroup shows
	Targets     []string    // destinations of spec.Mounts as they are in the image, its symlinks resolved; "": as written
	FileSources []bool      // whether spec.Mounts[i].Source is no directory
	Sources     []bool      // whether the source of spec.Mounts[i] is given as FileSource+i
	Own         [3]bool     // which of the slots 0 to 2 become the user's: pipes, never a null device
	LastCap     int         // number of the kernel's last capability, 0: as of Linux 5.9

	Seccomp      []byte // compiled filter, empty: none
	SeccompFlags uint32
}

// Hierarchy is one cgroup v1 hierarchy as it is mounted in a container.
type Hierarchy struct {
	Name    string   // directory below /sys/fs/cgroup
	Options []string // mount options that select it: controllers, or name=NAME
}

func (o *CompileOptions) lastCap() int {
	if o.LastCap > 0 {
		return o.LastCap
	}
	return unix.CAP_CHECKPOINT_RESTORE
}

func (o *CompileOptions) fileSource(i int) bool {
	return i < len(o.FileSources) && o.FileSources[i]
}

func (o *CompileOptions) givenSource(i int) bool { return i < len(o.Sources) && o.Sources[i] }

// Compile turns a container's spec into the program that makes and runs it. It is
// pure. The program wants FileRoot and FileMountNS, and FilePIDNS, FileTasks and
// FileCgroup where they apply. ErrUnsupported names what the spec asks for in vain.
func Compile(spec *specs.Spec, opts *CompileOptions) (*Program, error) {
	if err := checkSpec(spec, opts); err != nil {
		return nil, err
	}
	caps, err := parseCapSets(spec.Process.Capabilities)
	if err != nil {
		return nil, err
	}
	b := newBuilder(launchSteps)
	root, mountNS := b.file(FileRoot), b.file(FileMountNS)
	if opts.CgroupV2 {
		b.p.cgroup = b.file(FileCgroup)
	}
	pid, ownPID := namespace(spec, specs.PIDNamespace)
	user := userNamespace(spec)
	switch {
	case ownPID && pid.Path != "":
		b.p.pidNS = b.file(FilePIDNS)
	case ownPID && user == nil:
		b.p.CloneFlags = unix.CLONE_NEWPID
	}
	tasks := b.taskFiles(opts)
	sources := b.sources(spec, opts)
	c := &process{builder: b, proc: spec.Process, opts: opts, pts: -1, user: user, tasks: tasks}
	m := &mounter{builder: b, spec: spec, opts: opts, root: root, dev: -1, pts: -1, master: -1, mask: -1, sources: sources, user: user}
	c.resources()
	c.labels()
	c.joinNamespaces(spec.Linux.Namespaces)
	if user == nil {
		c.makeNamespaces(spec)
		m.openSources()
		c.leaveHost(mountNS)
	} else {
		m.openSources()
		m.openDevices()
		c.beforeUserNamespace()
		c.enterUserNamespace(mountNS, ownPID && pid.Path == "")
		c.makeNamespaces(spec)
	}
	m.attachRoot()
	m.mounts()
	m.console()
	m.sysctls()
	m.maskPaths()
	m.readonlyPaths()
	m.enterRoot()
	c.pts = m.pts
	c.streams()
	c.limits()
	c.workDir(root)
	c.identity(caps)
	c.ready(m.master)
	c.confine(caps)
	c.execute()
	return b.program()
}

// CompileExec turns a further process of a running container into the program
// that the container's monitor runs for it. It may want FileCgroup, FileTasks
// and FileTerminal.
func CompileExec(spec *specs.Spec, proc *specs.Process, opts *CompileOptions) (*Program, error) {
	caps, err := parseCapSets(proc.Capabilities)
	if err != nil {
		return nil, err
	}
	b := newBuilder(execSteps)
	if opts.CgroupV2 {
		b.p.cgroup = b.file(FileCgroup)
	}
	terminal := -1
	if proc.Terminal {
		terminal = b.file(FileTerminal)
	}
	if _, ok := namespace(spec, specs.PIDNamespace); ok {
		b.p.pidNS = slotInit
	}
	c := &process{builder: b, proc: proc, opts: opts, pts: -1, user: userNamespace(spec), tasks: b.taskFiles(opts)}
	c.resources()
	c.labels()
	enter := flags(unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS|unix.CLONE_NEWCGROUP, "CLONE_NEWNS|CLONE_NEWNET|CLONE_NEWIPC|CLONE_NEWUTS|CLONE_NEWCGROUP")
	if c.user != nil {
		c.beforeUserNamespace()
		enter.value, enter.text = enter.value|unix.CLONE_NEWUSER, enter.text+"|CLONE_NEWUSER"
	}
	b.call("enter the container's namespaces", unix.SYS_SETNS, slotArg(slotInit), enter)
	if terminal >= 0 {
		c.execTerminal(terminal)
	}
	c.streams()
	c.limits()
	root := b.slot()
	b.call("open the root", unix.SYS_OPENAT, cwd(), b.str("/"), flags(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, "O_PATH|O_DIRECTORY|O_CLOEXEC")).to(root)
	c.workDir(root)
	c.identity(caps)
	c.closeAll()
	c.confine(caps)
	c.execute()
	return b.program()
}

// CompilePause returns the program of the reaper of a pod's shared PID namespace. It
// sees nothing of the host: an empty file system, the pod's namespaces, no
// privileges. FileMountNS is wanted, and FileTasks.
func CompilePause(l *specs.Linux, opts *CompileOptions) (*Program, error) {
	b := newBuilder(execSteps)
	mountNS := b.file(FileMountNS)
	spec := &specs.Spec{Process: &specs.Process{User: specs.User{UID: 65535, GID: 65535}, NoNewPrivileges: true}, Linux: l}
	c := &process{builder: b, proc: spec.Process, opts: opts, pts: -1, user: userNamespace(spec), tasks: b.taskFiles(opts)}
	c.resources()
	c.joinNamespaces(l.Namespaces)
	if c.user == nil {
		c.leaveHost(mountNS)
	} else {
		if _, ok := hostID(l.UIDMappings, spec.Process.User.UID); !ok {
			spec.Process.User = specs.User{} // root of the pod alone
		}
		c.enterUserNamespace(mountNS, true)
	}
	c.identity(capSets{})
	c.capset("drop all capabilities", capSets{})
	b.call("set no_new_privs", unix.SYS_PRCTL, flags(unix.PR_SET_NO_NEW_PRIVS, "PR_SET_NO_NEW_PRIVS"), num(1), num(0), num(0), num(0))
	b.call("tell the daemon", opReady, num(-1))
	b.call("reap", opReap)
	return b.program()
}

func namespace(spec *specs.Spec, kind specs.LinuxNamespaceType) (specs.LinuxNamespace, bool) {
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == kind {
			return ns, true
		}
	}
	return specs.LinuxNamespace{}, false
}

func namespaceFlag(kind specs.LinuxNamespaceType) (uint64, bool) {
	flag, ok := map[specs.LinuxNamespaceType]uint64{
		specs.NetworkNamespace: unix.CLONE_NEWNET,
		specs.IPCNamespace:     unix.CLONE_NEWIPC,
		specs.UTSNamespace:     unix.CLONE_NEWUTS,
		specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
	}[kind]
	return flag, ok
}

// joinNamespaces appends the joining of all but mount, PID and user namespaces.
func (c *process) joinNamespaces(list []specs.LinuxNamespace) {
	for _, ns := range list {
		flag, ok := namespaceFlag(ns.Type)
		if !ok || ns.Path == "" {
			continue
		}
		f := c.slot()
		name := "join " + string(ns.Type) + " namespace"
		c.call(name+": open "+ns.Path, unix.SYS_OPENAT, cwd(), c.str(ns.Path), flags(unix.O_RDONLY|unix.O_CLOEXEC, "O_RDONLY|O_CLOEXEC")).to(f)
		c.call(name, unix.SYS_SETNS, slotArg(f), flags(flag, string(ns.Type)))
		c.close(name, f)
	}
}

// makeNamespaces appends the making of all but mount, PID and user namespaces.
func (c *process) makeNamespaces(spec *specs.Spec) {
	var fresh uint64
	var shown string
	for _, ns := range spec.Linux.Namespaces {
		if flag, ok := namespaceFlag(ns.Type); ok && ns.Path == "" {
			fresh |= flag
			shown += "|" + string(ns.Type)
		}
	}
	if fresh != 0 {
		c.call("make namespaces", unix.SYS_UNSHARE, flags(fresh, shown[1:]))
	}
	if ns, ok := namespace(spec, specs.UTSNamespace); ok && ns.Path == "" && spec.Hostname != "" {
		c.call("set hostname", unix.SYS_SETHOSTNAME, c.str(spec.Hostname), num(len(spec.Hostname)))
	}
}

// checkSpec refuses what no step exists for, so that nothing is left out silently.
func checkSpec(spec *specs.Spec, opts *CompileOptions) error {
	if spec.Process == nil || spec.Root == nil || spec.Linux == nil {
		return fmt.Errorf("spec: process, root and linux must be set: %w", ErrInvalid)
	}
	l := spec.Linux
	for _, no := range []struct {
		field string
		set   bool
	}{
		{"hooks", spec.Hooks != nil && len(spec.Hooks.Prestart)+len(spec.Hooks.CreateRuntime)+len(spec.Hooks.CreateContainer)+len(spec.Hooks.StartContainer)+len(spec.Hooks.Poststart)+len(spec.Hooks.Poststop) > 0}, //nolint:staticcheck // SA1019: prestart is deprecated, but bundles have it
		{"linux.intelRdt", l.IntelRdt != nil},
		{"linux.personality", l.Personality != nil},
		{"linux.timeOffsets", len(l.TimeOffsets) > 0},
		{"process.scheduler", spec.Process.Scheduler != nil},
		{"process.ioPriority", spec.Process.IOPriority != nil},
		{"domainname", spec.Domainname != ""},
	} {
		if no.set {
			return fmt.Errorf("spec: %s: %w", no.field, ErrUnsupported)
		}
	}
	if _, ok := namespace(spec, specs.MountNamespace); !ok {
		return fmt.Errorf("spec: linux.namespaces without a mount namespace: %w", ErrUnsupported)
	}
	if _, ok := namespace(spec, specs.TimeNamespace); ok {
		return fmt.Errorf("spec: time namespace: %w", ErrUnsupported)
	}
	if err := checkUserNS(spec); err != nil {
		return err
	}
	return checkMounts(spec, opts)
}
