package oci

import (
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// process appends the steps that turn the child into the process of the spec, up
// to its execve.
type process struct {
	*builder
	proc  *specs.Process
	opts  *CompileOptions
	pts   int          // slot of the terminal's slave, -1: the slots 0 to 2 are the standard streams
	user  *specs.Linux // its mappings, nil without a user namespace
	tasks int          // slot of the first tasks file
}

// labels appends what LSMs want to know. It is written through a procfs that was made for
// it and is mounted nowhere: nobody can have led the files elsewhere (CVE-2025-52881).
func (c *process) labels() {
	selinux, apparmor := c.proc.SelinuxLabel, c.proc.ApparmorProfile
	if selinux == "" && apparmor == "" {
		return
	}
	proc := c.ownProc("labels")
	if selinux != "" {
		c.writeBelow(proc, "SELinux label", "thread-self/attr/exec", selinux)
		// Of the session keyring that is made later. Both labels end with execve.
		c.writeBelow(proc, "SELinux label of keys", "thread-self/attr/keycreate", selinux)
	}
	if apparmor != "" {
		c.writeBelow(proc, "AppArmor profile "+apparmor, "thread-self/attr/apparmor/exec", "exec "+apparmor)
	}
	c.close("labels", proc)
}

// ownProc appends the making of a procfs and returns its slot.
func (c *process) ownProc(name string) int {
	f, s := c.slot(), c.slot()
	c.call(name+": open file system proc", unix.SYS_FSOPEN, c.str("proc"), flags(unix.FSOPEN_CLOEXEC, "FSOPEN_CLOEXEC")).to(f)
	c.call(name+": create", unix.SYS_FSCONFIG, slotArg(f), flags(unix.FSCONFIG_CMD_CREATE, "FSCONFIG_CMD_CREATE"), null(), null(), num(0))
	attr := flags(unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NODEV, "{nosuid,noexec,nodev}")
	c.call(name+": make mount", unix.SYS_FSMOUNT, slotArg(f), flags(unix.FSMOUNT_CLOEXEC, "FSMOUNT_CLOEXEC"), attr).to(s)
	c.close(name, f)
	return s
}

// writeBelow appends the writing of text to a file below dir, in the same mount.
func (c *process) writeBelow(dir int, name, file, text string) {
	f := c.slot()
	how := c.words("{O_WRONLY, RESOLVE_BENEATH|RESOLVE_NO_XDEV|RESOLVE_NO_MAGICLINKS}", unix.O_WRONLY|unix.O_CLOEXEC, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_MAGICLINKS)
	c.call(name+": open "+file, unix.SYS_OPENAT2, slotArg(dir), c.str(file), how, num(24)).to(f)
	c.call(name+": write", unix.SYS_WRITE, slotArg(f), c.str(text), num(len(text)))
	c.close(name, f)
}

// resources appends the joining of the cgroup. A single-threaded process
// that writes "0" to `tasks` waits for no RCU grace period, unlike every other way
// to attach on cgroup v1; on v2 the child is born in its cgroup.
func (c *process) resources() {
	for i, t := range c.opts.TaskFiles {
		f := c.tasks + i
		c.call("join cgroup: write "+t, unix.SYS_WRITE, slotArg(f), c.str("0"), num(1))
		c.close("join cgroup", f)
	}
	if adj := c.proc.OOMScoreAdj; adj != nil {
		c.write("set oom_score_adj", "/proc/thread-self/oom_score_adj", fmt.Sprint(*adj))
	}
}

// streams appends the standard streams and a session of the process's own.
func (c *process) streams() {
	c.call("make session", unix.SYS_SETSID).allow(0, unix.EPERM)
	for fd := range 3 {
		from := fd
		if c.pts >= 0 {
			from = c.pts
		}
		c.call("standard streams", unix.SYS_DUP3, slotArg(from), num(fd), num(0)).allow(0, unix.EINVAL)
	}
	if c.pts >= 0 {
		c.call("make the terminal the controlling one", unix.SYS_IOCTL, num(0), flags(unix.TIOCSCTTY, "TIOCSCTTY"), num(0))
	}
	if u := c.proc.User; u.UID != 0 && (c.user == nil || c.pts >= 0) {
		for _, fd := range c.ownStreams() {
			// /dev/stdout can then be opened anew by the user; sockets and closed pipes may refuse.
			c.call("own the standard streams", unix.SYS_FCHOWN, num(fd), num(u.UID), num(-1)).allow(0, unix.EINVAL, unix.EPERM, unix.EROFS)
		}
	}
	// An own empty session keyring: keys of the host's session stay out of reach.
	c.call("make session keyring", unix.SYS_KEYCTL, flags(unix.KEYCTL_JOIN_SESSION_KEYRING, "KEYCTL_JOIN_SESSION_KEYRING"), null()).
		allow(0, unix.ENOSYS, unix.EPERM, unix.EACCES)
}

// ownStreams are the standard streams that may be given to the process's user.
func (c *process) ownStreams() []int {
	var fds []int
	for fd := range 3 {
		if c.pts >= 0 || c.opts.Own[fd] {
			fds = append(fds, fd)
		}
	}
	return fds
}

// workDir appends the change to the working directory, looked up below the root without
// magic links, so that no leaked descriptor can become it (CVE-2024-21626).
func (c *process) workDir(root int) {
	dir := path.Clean("/" + c.proc.Cwd)
	how := c.words("{O_PATH|O_DIRECTORY, RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS}", unix.O_PATH|unix.O_CLOEXEC|unix.O_DIRECTORY, 0, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	f := c.slot()
	name := "change to the working directory " + dir
	c.call(name+": open", unix.SYS_OPENAT2, slotArg(root), c.str("."+dir), how, num(24)).to(f)
	c.call(name, unix.SYS_FCHDIR, slotArg(f))
	c.close(name, f)
}

// limits appends resource limits and the umask.
func (c *process) limits() {
	for _, l := range c.proc.Rlimits {
		kind, ok := rlimitNumber(l.Type)
		if !ok {
			c.err = fmt.Errorf("process.rlimits: %q: %w", l.Type, ErrInvalid)
			return
		}
		c.call(fmt.Sprintf("set limit %s to %d", l.Type, l.Soft), unix.SYS_PRLIMIT64, num(0), num(kind), c.words(fmt.Sprintf("{%d, %d}", l.Soft, l.Hard), l.Soft, l.Hard), null())
	}
	mask := uint32(0o022)
	if u := c.proc.User.Umask; u != nil {
		mask = *u
	}
	c.call("set umask", unix.SYS_UMASK, flags(uint64(mask), fmt.Sprintf("%#o", mask)))
}

func rlimitNumber(name string) (int, bool) {
	names := []string{"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"}
	for i, n := range names {
		if name == "RLIMIT_"+n {
			return i, true
		}
	}
	return 0, false
}

// capSets are capability sets as bits.
type capSets struct {
	bounding, effective, permitted, inheritable, ambient uint64
}

func parseCapSets(c *specs.LinuxCapabilities) (capSets, error) {
	var s capSets
	if c == nil {
		return s, nil
	}
	for _, set := range []struct {
		to    *uint64
		names []string
		field string
	}{
		{&s.bounding, c.Bounding, "bounding"},
		{&s.effective, c.Effective, "effective"},
		{&s.permitted, c.Permitted, "permitted"},
		{&s.inheritable, c.Inheritable, "inheritable"},
		{&s.ambient, c.Ambient, "ambient"},
	} {
		for _, n := range set.names {
			bit, ok := capNumber(n)
			if !ok {
				return s, fmt.Errorf("process.capabilities.%s: %q is no capability: %w", set.field, n, ErrInvalid)
			}
			*set.to |= 1 << bit
		}
	}
	return s, nil
}

func capNumber(name string) (int, bool) {
	i := slices.Index(capabilityNames(), name)
	return i, i >= 0
}

// identity appends the change of user, groups and capabilities, the last but
// for what seccomp may need.
func (c *process) identity(caps capSets) {
	for i := range c.opts.lastCap() + 1 {
		if caps.bounding&(1<<i) == 0 {
			c.call("drop capability from the bounding set", unix.SYS_PRCTL, flags(unix.PR_CAPBSET_DROP, "PR_CAPBSET_DROP"), num(i), num(0), num(0), num(0)).allow(0, unix.EINVAL)
		}
	}
	u := c.proc.User
	c.call("keep capabilities", unix.SYS_PRCTL, flags(unix.PR_SET_KEEPCAPS, "PR_SET_KEEPCAPS"), num(1), num(0), num(0), num(0))
	groups := make([]byte, 0, 4*len(u.AdditionalGids))
	for _, g := range u.AdditionalGids {
		groups = binary.LittleEndian.AppendUint32(groups, g)
	}
	c.call("set groups", unix.SYS_SETGROUPS, num(len(u.AdditionalGids)), c.bytes(groups, fmt.Sprint(u.AdditionalGids)))
	c.call("set group", unix.SYS_SETRESGID, num(u.GID), num(u.GID), num(u.GID))
	c.call("set user", unix.SYS_SETRESUID, num(u.UID), num(u.UID), num(u.UID))
}

// capset appends the setting of the process's own capability sets.
func (c *process) capset(name string, s capSets) {
	header := binary.LittleEndian.AppendUint64(nil, unix.LINUX_CAPABILITY_VERSION_3)
	var data []byte
	for _, shift := range []int{0, 32} {
		for _, v := range []uint64{s.effective, s.permitted, s.inheritable} {
			data = binary.LittleEndian.AppendUint32(data, uint32(v>>shift))
		}
	}
	text := fmt.Sprintf("{e=%#x p=%#x i=%#x}", s.effective, s.permitted, s.inheritable)
	c.call(name, unix.SYS_CAPSET, c.bytes(header, "{3}"), c.bytes(data, text))
}

// ready appends the end of the first phase: all that can fail for reasons of
// the host has been done, the child waits for START.
func (c *process) ready(master int) {
	c.call("wait for the start", opReady, num(master))
	c.closeAll()
}

// closeAll appends the closing of every descriptor but the streams and the
// monitor's, closed and not merely close-on-exec: a path like
// /proc/self/fd/N is resolved before execve closes anything (CVE-2024-21626).
func (c *process) closeAll() {
	c.call("close descriptors", opClose)
}

// confine appends capabilities, no_new_privs and seccomp. The filter comes as
// late as possible: after it only capset (without no_new_privs, which
// needs CAP_SYS_ADMIN until then) and execve are called.
func (c *process) confine(caps capSets) {
	const admin = 1 << unix.CAP_SYS_ADMIN
	late := len(c.opts.Seccomp) > 0 && !c.proc.NoNewPrivileges
	first := caps
	if late {
		first.permitted |= admin
		first.effective = first.permitted
	}
	c.capset("set capabilities", first)
	for i := range 64 {
		if caps.ambient&(1<<i) != 0 {
			c.call("raise ambient capability", unix.SYS_PRCTL, flags(unix.PR_CAP_AMBIENT, "PR_CAP_AMBIENT"), flags(unix.PR_CAP_AMBIENT_RAISE, "PR_CAP_AMBIENT_RAISE"), num(i), num(0), num(0))
		}
	}
	if c.proc.NoNewPrivileges {
		c.call("set no_new_privs", unix.SYS_PRCTL, flags(unix.PR_SET_NO_NEW_PRIVS, "PR_SET_NO_NEW_PRIVS"), num(1), num(0), num(0), num(0))
	}
	if len(c.opts.Seccomp) > 0 {
		filter := c.bytes(c.opts.Seccomp, "")
		c.align()
		at := len(c.p.data)
		c.p.data = binary.LittleEndian.AppendUint64(c.p.data, uint64(len(c.opts.Seccomp)/8))
		c.pointer(filter.value)
		prog := Arg{kind: argData, value: uint64(at), text: fmt.Sprintf("{%d instructions}", len(c.opts.Seccomp)/8)}
		c.call("load the seccomp filter", unix.SYS_SECCOMP, flags(unix.SECCOMP_SET_MODE_FILTER, "SECCOMP_SET_MODE_FILTER"), flags(uint64(c.opts.SeccompFlags), fmt.Sprintf("%#x", c.opts.SeccompFlags)), prog)
	}
	if late {
		c.capset("drop the capabilities that seccomp needed", caps)
	}
}

// execute appends one execve for each place where the command may be.
func (c *process) execute() {
	if len(c.proc.Args) == 0 {
		c.err = fmt.Errorf("process.args: no command: %w", ErrInvalid)
		return
	}
	argv, envp := c.strings(c.proc.Args), c.strings(c.proc.Env)
	envp.text = fmt.Sprintf("{%d variables}", len(c.proc.Env))
	command := c.proc.Args[0]
	if strings.Contains(command, "/") {
		c.call("execute "+shorten(command), unix.SYS_EXECVE, c.str(command), argv, envp)
		return
	}
	if command == "" {
		c.err = fmt.Errorf("process.args[0]: empty command: %w", ErrInvalid)
		return
	}
	for _, dir := range searchPath(c.proc.Env) {
		candidate := path.Join(dir, command)
		if dir == "" || dir == "." {
			candidate = "./" + command
		}
		c.call("execute "+shorten(candidate), unix.SYS_EXECVE, c.str(candidate), argv, envp).
			allow(0, unix.ENOENT, unix.ENOTDIR, unix.ELOOP).keepErrno(unix.EACCES)
	}
	c.call(fmt.Sprintf("find %q in PATH", shorten(command)), opFail, num(int(unix.ENOENT)))
}

// shorten cuts what the request chose to a length that an error can show.
func shorten(name string) string {
	const most = 200
	if len(name) <= most {
		return name
	}
	return name[:most] + "..."
}

func searchPath(env []string) []string {
	list := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			list = v
		}
	}
	return strings.Split(list, ":")
}
