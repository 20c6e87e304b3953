package network

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// LoopbackUp brings lo up in the network namespace of the calling thread; the
// caller has locked its goroutine to the thread. The kernel then gives lo its
// addresses 127.0.0.1 and ::1.
func LoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up lo: %w", os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return fmt.Errorf("bring up lo: %w", os.NewSyscallError("ioctl SIOCGIFFLAGS", err))
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("bring up lo: %w", os.NewSyscallError("ioctl SIOCSIFFLAGS", err))
	}
	return nil
}
