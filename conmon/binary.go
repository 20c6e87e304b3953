package conmon

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Binary is the monitor's executable: a sealed memory file, so that neither an
// upgrade nor a container can change what runs.
type Binary struct {
	fd   int
	null *os.File // what stands for missing streams
}

// NewBinary puts the monitor that was built for this architecture into
// memory. The caller closes it; monitors that run are not affected.
func NewBinary() (*Binary, error) {
	if len(monitorBinary) == 0 {
		return nil, errors.New("monitor: this build has none for the architecture; run conmon/build first")
	}
	return newBinary(monitorBinary)
}

func newBinary(program []byte) (*Binary, error) {
	fd, err := sealedFile("cri-monitor", program, true)
	if err != nil {
		return nil, fmt.Errorf("monitor: executable in memory: %w", err)
	}
	null, err := newNull()
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("monitor: %w", err)
	}
	return &Binary{fd: fd, null: null}, nil
}

// Close releases the memory file once no monitor runs it.
func (b *Binary) Close() error {
	return errors.Join(unix.Close(b.fd), b.null.Close())
}

// sealedFile makes a memory file that nobody can change any more.
func sealedFile(name string, content []byte, executable bool) (int, error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	mode := unix.MFD_NOEXEC_SEAL
	if executable {
		mode = unix.MFD_EXEC
	}
	fd, err := unix.MemfdCreate(name, flags|mode)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 there is no mode
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	for rest := content; len(rest) > 0; {
		n, err := unix.Write(fd, rest)
		if err != nil {
			unix.Close(fd)
			return -1, os.NewSyscallError("write", err)
		}
		rest = rest[n:]
	}
	seals := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	return fd, nil
}

// spawn starts a process of the binary with files as its descriptors from 3.
func (b *Binary) spawn(argv []string, files []uintptr, attr *syscall.SysProcAttr) (int, error) {
	null := b.null.Fd()
	files = append([]uintptr{null, null, null}, files...)
	fd, release, err := b.executable(files)
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", argv[0], err)
	}
	defer release()
	pid, err := syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(fd), argv, &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Files: files, Sys: attr,
	})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", argv[0], err)
	}
	return pid, nil
}

// executable returns a descriptor of the executable that has its number still when a child that is
// given these files executes it. Before that the child copies a pipe and such of the files as are in the way to the numbers
// above the highest of them, and then all of them to 0 and up: what had those numbers is gone.
func (b *Binary) executable(files []uintptr) (fd int, release func(), err error) {
	most := len(files)
	for _, f := range files {
		most = max(most, int(f))
	}
	end := most + len(files) + 3 // a number more for the pipe, and one that is left out
	if b.fd >= len(files) && b.fd <= most || b.fd > end {
		return b.fd, func() {}, nil
	}
	fd, err = unix.FcntlInt(uintptr(b.fd), unix.F_DUPFD_CLOEXEC, end+1)
	return fd, func() { unix.Close(fd) }, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
}

// protect sets the OOM score of a process of ours. Without the right to go
// below the daemon's own score it keeps that.
func protect(pid, score int) error {
	path := "/proc/" + strconv.Itoa(pid) + "/oom_score_adj"
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, strconv.AppendInt(nil, int64(score), 10))
		unix.Close(fd)
	}
	if err == nil || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return nil
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil // it has ended already, which its connection tells better
	}
	return fmt.Errorf("write %d to %s: %w", score, path, err)
}
