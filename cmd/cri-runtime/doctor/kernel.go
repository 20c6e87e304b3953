package doctor

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Volume is how full a file system is.
type Volume struct{ Bytes, FreeBytes, Inodes, FreeInodes uint64 }

// Kernel is what no file tells.
type Kernel interface {
	Call(name string) error            // tries a system call with arguments that do nothing
	OverlayOption(option string) error // tells whether the kernel knows an option
	Volume(path string) (Volume, error)
	Typed(dir string) (bool, error) // entries of a directory tell their type
	Synchronised() (bool, error)    // the clock is
}

// Running is the kernel that this process runs on.
type Running struct{}

// neededCalls are system calls that there is no way around, with what fails.
func neededCalls() [][2]string {
	return [][2]string{
		{"clone3", "5.3"},
		{"pidfd_open", "5.3"},
		{"fsopen", "5.2"},
		{"move_mount", "5.2"},
		{"open_tree", "5.2"},
		{"openat2", "5.6"},
		{"close_range", "5.9"},
		{"mount_setattr", "5.12"},
		{"memfd_create", "3.17"},
		{"seccomp", "3.17"},
	}
}

// Call implements Kernel. The kernel refuses the arguments before it does anything.
func (Running) Call(name string) error {
	const none = ^uintptr(0) // no descriptor
	var number uintptr
	args := [4]uintptr{none, 0, 0, 0}
	switch name {
	case "clone3": // of size 0
		number, args[0] = unix.SYS_CLONE3, 0
	case "pidfd_open":
		number = unix.SYS_PIDFD_OPEN
	case "fsopen":
		number, args[0] = unix.SYS_FSOPEN, 0
	case "move_mount":
		number, args[2] = unix.SYS_MOVE_MOUNT, none
	case "open_tree":
		number = unix.SYS_OPEN_TREE
	case "openat2": // of size 0
		number = unix.SYS_OPENAT2
	case "close_range": // from the last to the first
		number, args = unix.SYS_CLOSE_RANGE, [4]uintptr{2, 1, 0, 0}
	case "mount_setattr": // of size 0
		number = unix.SYS_MOUNT_SETATTR
	case "memfd_create":
		number, args[0], args[1] = unix.SYS_MEMFD_CREATE, 0, none
	case "seccomp":
		action := uint32(unix.SECCOMP_RET_ERRNO)
		_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
		return refused(errno)
	default:
		return fmt.Errorf("%w: %s", errUnknownCall, name)
	}
	_, _, errno := unix.Syscall6(number, args[0], args[1], args[2], args[3], 0, 0)
	return refused(errno)
}

// refused tells an absent or forbidden call from one that did not like its arguments.
func refused(errno unix.Errno) error {
	switch errno {
	case unix.ENOSYS, unix.EPERM, unix.EACCES, unix.EOPNOTSUPP:
		return errno
	}
	return nil
}

// OverlayOption implements Kernel. No file system is made.
func (Running) OverlayOption(option string) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fd)
	switch option {
	case "volatile", "userxattr":
		return unix.FsconfigSetFlag(fd, option)
	case "lowerdir+":
		return unix.FsconfigSetString(fd, option, "/")
	default:
		return unix.FsconfigSetString(fd, option, "off")
	}
}

// Volume implements Kernel.
func (Running) Volume(path string) (Volume, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return Volume{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	size := uint64(s.Bsize)
	return Volume{Bytes: s.Blocks * size, FreeBytes: s.Bavail * size, Inodes: s.Files, FreeInodes: s.Ffree}, nil
}

// Typed implements Kernel.
func (Running) Typed(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	buffer := make([]byte, 4096)
	n, err := unix.Getdents(int(f.Fd()), buffer)
	if err != nil {
		return false, &os.PathError{Op: "getdents", Path: dir, Err: err}
	}
	const typeAt = int(unsafe.Offsetof(unix.Dirent{}.Type))
	// "." is among the first: without types it has none either.
	return n > typeAt && buffer[typeAt] != unix.DT_UNKNOWN, nil
}

// Synchronised implements Kernel.
func (Running) Synchronised() (bool, error) {
	var t unix.Timex // no mode: nothing is set
	state, err := unix.Adjtimex(&t)
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, err
}
