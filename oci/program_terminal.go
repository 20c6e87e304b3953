package oci

import (
	"encoding/binary"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// openTerminal appends the opening of a terminal with ptmx, of a directory or by a path,
// and returns the slots of its ends. The slave comes from the master and not from
// a path (CVE-2025-52565).
func (b *builder) openTerminal(size *specs.Box, open func(to int)) (master, slave int) {
	master, slave = b.slot(), b.slot()
	open(master)
	b.call("terminal: unlock", unix.SYS_IOCTL, slotArg(master), flags(unix.TIOCSPTLCK, "TIOCSPTLCK"), b.bytes(make([]byte, 4), "{0}"))
	b.call("terminal: open the slave", unix.SYS_IOCTL, slotArg(master), flags(unix.TIOCGPTPEER, "TIOCGPTPEER"), flags(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, "O_RDWR|O_NOCTTY|O_CLOEXEC")).to(slave)
	if size != nil {
		winsize := []byte{byte(size.Height), byte(size.Height >> 8), byte(size.Width), byte(size.Width >> 8), 0, 0, 0, 0}
		b.call("terminal: set size", unix.SYS_IOCTL, slotArg(master), flags(unix.TIOCSWINSZ, "TIOCSWINSZ"), b.bytes(winsize, fmt.Sprintf("{%d, %d}", size.Height, size.Width)))
	}
	return master, slave
}

// execTerminal appends the opening of a terminal in the running container's devpts
// and hands its master over through a socket. What is at /dev/pts/ptmx is the
// container's word: a magic link there must not lead to a descriptor of ours,
// TIOCSCTTY fails for a "slave" that is no terminal, and the receiver
// looks at what it gets.
func (c *process) execTerminal(socket int) {
	const path = "/dev/pts/ptmx"
	how := c.words("{O_RDWR|O_NOCTTY|O_CLOEXEC, RESOLVE_NO_MAGICLINKS}", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0, unix.RESOLVE_NO_MAGICLINKS)
	master, slave := c.openTerminal(c.proc.ConsoleSize, func(to int) {
		c.call("terminal: open "+path, unix.SYS_OPENAT2, cwd(), c.str(path), how, num(24)).to(to)
	})
	// A message's data cannot name a slot, so the master travels as descriptor 0.
	c.call("terminal: make the master descriptor 0", unix.SYS_DUP3, slotArg(master), num(0), flags(unix.O_CLOEXEC, "O_CLOEXEC"))
	c.call("terminal: hand the master over", unix.SYS_SENDMSG, slotArg(socket), c.message(0), flags(unix.MSG_NOSIGNAL, "MSG_NOSIGNAL"))
	c.pts = slave
}

// message puts a struct msghdr of one byte and one descriptor into the data.
func (b *builder) message(fd uint32) Arg {
	text := b.str("T")
	b.align()
	iov := uint64(len(b.p.data))
	b.pointer(text.value)
	b.p.data = binary.LittleEndian.AppendUint64(b.p.data, 1)
	control := uint64(len(b.p.data))
	b.p.data = binary.LittleEndian.AppendUint64(b.p.data, uint64(unix.CmsgLen(4)))
	for _, v := range []uint32{unix.SOL_SOCKET, unix.SCM_RIGHTS, fd, 0} {
		b.p.data = binary.LittleEndian.AppendUint32(b.p.data, v)
	}
	at := uint64(len(b.p.data))
	b.p.data = append(b.p.data, make([]byte, 16)...) // name
	b.pointer(iov)
	b.p.data = binary.LittleEndian.AppendUint64(b.p.data, 1)
	b.pointer(control)
	b.p.data = binary.LittleEndian.AppendUint64(b.p.data, uint64(unix.CmsgSpace(4)))
	b.p.data = binary.LittleEndian.AppendUint64(b.p.data, 0) // flags
	return Arg{kind: argData, value: at, text: "{\"T\", SCM_RIGHTS [0]}"}
}
