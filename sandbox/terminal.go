package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The device number of terminals' masters.
const (
	ptmxMajor = 5
	ptmxMinor = 2
)

// receiveTerminal takes the master that a command has sent before its execve. What
// the container has at /dev/pts/ptmx is its own word: only a terminal's
// master is taken, looked at without a question to whatever file system it is on.
func receiveTerminal(socket *os.File) (*os.File, error) {
	var text [1]byte
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(socket.Fd()), text[:], rights, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("receive the terminal: %d messages: %w", len(messages), errors.Join(err, unix.EBADMSG))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receive the terminal: %d descriptors: %w", len(fds), errors.Join(err, unix.EBADMSG))
	}
	var st unix.Statx_t
	err = unix.Statx(fds[0], "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev_major != ptmxMajor || st.Rdev_minor != ptmxMinor) {
		err = unix.ENOTTY
	}
	if err == nil {
		err = unix.SetNonblock(fds[0], true)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the container's /dev/pts/ptmx: %w", err), unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// setSize tells the processes of a terminal its size.
func setSize(master *os.File, size TerminalSize) {
	control(master, func(fd int) {
		_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
}

// endInput types what means the end of input, as a pipe's end would: alone on a line it
// is the end, after other text it only completes that.
func endInput(master *os.File, last byte) {
	eof := byte(4)
	control(master, func(fd int) {
		if t, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
			eof = t.Cc[unix.VEOF]
		}
	})
	n := 1
	if last != '\n' && last != '\r' {
		n = 2
	}
	_, _ = master.Write(bytes.Repeat([]byte{eof}, n)) // fails when the terminal has gone
}

// control calls use with a descriptor, unless the file is closed.
func control(f *os.File, use func(fd int)) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { use(int(fd)) })
}
