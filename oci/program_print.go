package oci

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Print writes the program in a form for people, one step a line, as strace
// would: `$N` is slot N, `-> $N` keeps a result, `[EEXIST]` is a harmless
// error, `[ENOENT: skip 3]` one that leaves out the next steps.
func (p *Program) Print(w io.Writer) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "clone3(%s)", cloneText(p.CloneFlags))
	if p.cgroup >= 0 {
		fmt.Fprintf(out, " into cgroup $%d", p.cgroup)
	}
	if p.pidNS >= 0 {
		fmt.Fprintf(out, " in PID namespace $%d", p.pidNS)
	}
	fmt.Fprintln(out)
	for i, f := range p.Files {
		fmt.Fprintf(out, "$%d = %s\n", slotFiles+i, f)
	}
	for i := range p.Steps {
		s := &p.Steps[i]
		fmt.Fprintf(out, "%3d %s%s\n", i+1, s.String(), "    # "+s.Name)
	}
	return out.Flush()
}

// String names the descriptor.
func (f File) String() string {
	if f >= FileSource {
		return fmt.Sprintf("source of mount %d", f-FileSource)
	}
	switch f { //nolint:exhaustive // FileSource is above
	case FileRoot:
		return "root file system"
	case FileMountNS:
		return "empty mount namespace"
	case FilePIDNS:
		return "PID namespace"
	case FileCgroup:
		return "cgroup"
	case FileTasks:
		return "tasks file"
	case FileResume:
		return "pipe that ends a halt"
	case FileTerminal:
		return "socket for the terminal"
	}
	return "unknown"
}

// String shows the argument. Most programs are never printed, so nothing is formatted before.
func (a Arg) String() string {
	switch {
	case a.quote:
		return strconv.Quote(a.text)
	case a.text != "":
		return a.text
	case a.kind == argSlot:
		return "$" + strconv.FormatUint(a.value, 10)
	}
	return strconv.FormatInt(int64(a.value), 10)
}

// String shows the call as strace would.
func (s *Step) String() string {
	var b strings.Builder
	b.WriteString(syscallName(s.nr))
	b.WriteByte('(')
	for i, a := range s.args {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(a.String())
	}
	b.WriteByte(')')
	if s.save >= 0 {
		fmt.Fprintf(&b, " -> $%d", s.save)
	}
	for i, t := range s.tolerate {
		if t.errnos == 0 {
			continue
		}
		var names []string
		for e := range 64 {
			if t.errnos&(1<<e) != 0 {
				names = append(names, unix.ErrnoName(unix.Errno(e)))
			}
		}
		text := strings.Join(names, ",")
		if t.skip > 0 {
			text += fmt.Sprintf(": skip %d", t.skip)
		}
		if i == 1 && s.flags&flagKeep != 0 {
			text += ": keep"
		}
		b.WriteString(" [" + text + "]")
	}
	return b.String()
}

func cloneText(f uint64) string {
	text := "CLONE_PIDFD"
	if f&unix.CLONE_NEWPID != 0 {
		text += "|CLONE_NEWPID"
	}
	return text
}

func syscallName(nr uint32) string {
	names := map[uint32]string{
		unix.SYS_OPENAT: "openat", unix.SYS_OPENAT2: "openat2", unix.SYS_WRITE: "write", unix.SYS_CLOSE: "close",
		unix.SYS_OPEN_TREE: "open_tree", unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_FSOPEN: "fsopen", unix.SYS_FSCONFIG: "fsconfig",
		unix.SYS_FSMOUNT: "fsmount", unix.SYS_MOUNT_SETATTR: "mount_setattr", unix.SYS_SETNS: "setns", unix.SYS_UNSHARE: "unshare",
		unix.SYS_MKDIRAT: "mkdirat", unix.SYS_MKNODAT: "mknodat", unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_FCHOWNAT: "fchownat",
		unix.SYS_FCHOWN: "fchown", unix.SYS_UMASK: "umask", unix.SYS_IOCTL: "ioctl", unix.SYS_FCHDIR: "fchdir",
		unix.SYS_PIVOT_ROOT: "pivot_root", unix.SYS_CHROOT: "chroot", unix.SYS_UMOUNT2: "umount2", unix.SYS_SETSID: "setsid", unix.SYS_DUP3: "dup3",
		unix.SYS_KEYCTL: "keyctl", unix.SYS_PRLIMIT64: "prlimit64", unix.SYS_PRCTL: "prctl", unix.SYS_SETGROUPS: "setgroups",
		unix.SYS_SETRESGID: "setresgid", unix.SYS_SETRESUID: "setresuid", unix.SYS_CAPSET: "capset", unix.SYS_SECCOMP: "seccomp",
		unix.SYS_CLOSE_RANGE: "close_range", unix.SYS_EXECVE: "execve",
		unix.SYS_SETHOSTNAME: "sethostname", unix.SYS_READ: "read", unix.SYS_SENDMSG: "sendmsg",
		opJump: "JUMP", opFail: "FAIL", opReady: "READY", opReap: "REAP", opClose: "CLOSE", opClone: "CLONE",
	}
	if n, ok := names[nr]; ok {
		return n
	}
	return fmt.Sprintf("syscall_%d", nr)
}
