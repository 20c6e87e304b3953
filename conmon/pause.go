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

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// Pause describes a cri-pause: PID 1 of a PID namespace that several
// containers share. Its files stay the caller's.
type Pause struct {
	Program     Program    // its last step is REAP, after READY
	Files       []*os.File // the program's descriptors: slots 8 and up
	CloneFlags  uintptr    // CLONE_NEW* beside CLONE_NEWPID
	Clones      bool       // the program makes the PID namespace, by CLONE
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
	flags := p.CloneFlags
	if !p.Clones {
		flags |= unix.CLONE_NEWPID
	}
	pid, report, err := b.runProgram(p.Program, p.Files, &syscall.SysProcAttr{Cloneflags: flags}, p.Cgroup)
	if err != nil {
		return 0, err
	}
	defer report.Close()
	stop := context.AfterFunc(ctx, func() { report.Close() })
	defer stop()
	fault.Point("pause.spawned")
	pid, err = awaitReady(report, p.Program, pid)
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

// runProgram starts a process that runs a program on its own, in a session of its
// own. What it reports can be read from the result.
func (b *Binary) runProgram(p Program, files []*os.File, attr *syscall.SysProcAttr, cgroup *os.File) (int, *os.File, error) {
	program, err := sealedFile("program", p.Encode(), false)
	if err != nil {
		return 0, nil, fmt.Errorf("program in memory: %w", err)
	}
	defer unix.Close(program)
	report, end, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer end.Close()
	given := []uintptr{uintptr(program), end.Fd()}
	for _, f := range files {
		given = append(given, f.Fd())
	}
	attr.Setsid = true
	if cgroup != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(cgroup.Fd())
	}
	pid, err := b.spawn([]string{"cri-pause", strconv.Itoa(len(files))}, given, attr)
	if err != nil {
		return 0, nil, errors.Join(err, report.Close())
	}
	return pid, report, nil
}

// awaitReady reads what the program of process pid reports on its pipe, and returns the
// process that is ready: another one when the program went on in a clone.
func awaitReady(report io.Reader, p Program, pid int) (int, error) {
	var b [reportSize]byte
	le := binary.LittleEndian
	for {
		if _, err := io.ReadFull(report, b[:]); err != nil {
			return pid, fmt.Errorf("it ended before it was ready: %w", err)
		}
		step, errno := le.Uint32(b[4:]), le.Uint32(b[8:])
		switch {
		case b[0] == 'R':
			return pid, nil
		case b[0] == 'C':
			_, _ = unix.Wait4(pid, nil, 0, nil) // it ends once it has said so
			pid = int(step)
		case step == ^uint32(0):
			return pid, fmt.Errorf("%w: launch program refused: %w", ErrProtocol, unix.Errno(errno))
		default:
			f := &failed{where: whereStep, err: errno, step: step}
			return pid, f.failure(p)
		}
	}
}
