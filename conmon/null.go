package conmon

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// newNull opens a null device that is nobody's: root in a container could change mode
// and owner of the host's through a descriptor of it. This one lies on a file system
// that is mounted nowhere and read-only, which keeps nobody from reading and writing a
// device, and is gone with the last descriptor.
func newNull() (*os.File, error) {
	f, err := openNull()
	if err != nil {
		return nil, fmt.Errorf("make a null device: %w", err)
	}
	return f, nil
}

func openNull() (_ *os.File, err error) {
	mount, err := detachedTmpfs()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Close(mount)) }()
	// Programs read its name in /proc/self/fd.
	if err := unix.Mkdirat(mount, "dev", 0o755); err != nil {
		return nil, os.NewSyscallError("mkdirat", err)
	}
	if err := unix.Mknodat(mount, "dev/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return nil, os.NewSyscallError("mknodat", err)
	}
	if err := unix.Fchmodat(mount, "dev/null", 0o666, 0); err != nil { // whatever the umask
		return nil, os.NewSyscallError("fchmodat", err)
	}
	readOnly := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, readOnly); err != nil {
		return nil, os.NewSyscallError("mount_setattr", err)
	}
	fd, err := unix.Openat(mount, "dev/null", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	return os.NewFile(uintptr(fd), os.DevNull), nil
}

func detachedTmpfs() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "mode", "755"); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	return mount, os.NewSyscallError("fsmount", err)
}
