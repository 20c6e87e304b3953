package conmon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Pause describes a cri-pause: PID 1 of a PID namespace that several
// containers share. Its files stay the caller's.
type Pause struct {
	Program     Program    // its last step is REAP, after READY
	Files       []*os.File // the program's descriptors: slots 8 and up
	CloneFlags  uintptr    // CLONE_NEW* beside CLONE_NEWPID
	Cgroup      *os.File   // v2 directory to start it in; nil: the daemon's
	OOMScoreAdj int        // the daemon's when that is not allowed
}

// Pause starts a cri-pause and returns its pid on the host once its program
// has run up to READY. It ends on SIGTERM and is then the caller's to reap, if
// it still is this process's child. On error nothing is left.
func (b *Binary) Pause(ctx context.Context, p *Pause) (int, error) {
	pid, err := b.pause(ctx, p)
	if err != nil {
		return 0, fmt.Errorf("pause: %w", err)
	}
	return pid, nil
}

func (b *Binary) pause(ctx context.Context, p *Pause) (int, error) {
	if len(p.Files) > slots-slotFiles {
		return 0, fmt.Errorf("%d descriptors for the program: %w", len(p.Files), unix.E2BIG)
	}
	program, err := sealedFile("program", p.Program.Encode(), false)
	if err != nil {
		return 0, fmt.Errorf("program in memory: %w", err)
	}
	defer unix.Close(program)
	report, end, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer report.Close()
	files := []uintptr{uintptr(program), end.Fd()}
	for _, f := range p.Files {
		files = append(files, f.Fd())
	}
	attr := &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID | p.CloneFlags}
	if p.Cgroup != nil {
		attr.UseCgroupFD = true
		attr.CgroupFD = int(p.Cgroup.Fd())
	}
	pid, err := b.spawn([]string{"cri-pause", strconv.Itoa(len(p.Files))}, files, attr)
	end.Close()
	if err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { report.Close() })
	defer stop()
	err = awaitReady(report, p.Program)
	if err == nil {
		err = protect(pid, p.OOMScoreAdj)
	}
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
		return 0, errors.Join(err, ctx.Err())
	}
	return pid, nil
}

// awaitReady reads what the program reports on its pipe.
func awaitReady(report io.Reader, p Program) error {
	var b [reportSize]byte
	if _, err := io.ReadFull(report, b[:]); err != nil {
		return fmt.Errorf("it ended before it was ready: %w", err)
	}
	le := binary.LittleEndian
	step, errno := le.Uint32(b[4:]), le.Uint32(b[8:])
	switch {
	case b[0] == 'R':
		return nil
	case step == ^uint32(0):
		return fmt.Errorf("%w: launch program refused: %w", ErrProtocol, unix.Errno(errno))
	default:
		f := &failed{where: whereStep, err: errno, step: step}
		return f.failure(p)
	}
}
