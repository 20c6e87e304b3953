package conmon

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// ExecRequest describes a process to be started in a running container. Its
// files stay the caller's.
type ExecRequest struct {
	Program      Program
	Files        []*os.File // the program's descriptors: slots 8 and up
	Stdin        *os.File   // nil: a null device
	Stdout       *os.File   // nil: a null device
	Stderr       *os.File   // nil: a null device
	KillOnHangup bool       // kill it when the connection to the monitor is lost
}

// Exec is a process that runs in a container beside init.
type Exec struct {
	m    *Monitor
	call *call
	pid  int
}

// Exec starts a process and returns once its command runs. The error is a
// *StepError when that was not possible; nothing is left then. If ctx ends
// before, the process is killed.
func (m *Monitor) Exec(ctx context.Context, r ExecRequest) (*Exec, error) {
	e, err := m.exec(ctx, &r)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	return e, nil
}

func (m *Monitor) exec(ctx context.Context, r *ExecRequest) (*Exec, error) {
	if len(r.Files) > slots-slotFiles {
		return nil, fmt.Errorf("%d descriptors for the program: %w", len(r.Files), unix.E2BIG)
	}
	program, err := sealedFile("program", r.Program.Encode(), false)
	if err != nil {
		return nil, fmt.Errorf("program in memory: %w", err)
	}
	defer unix.Close(program)
	fds := append(make([]int, 0, 4+len(r.Files)), program)
	for _, f := range []*os.File{r.Stdin, r.Stdout, r.Stderr} {
		if f == nil {
			f = m.null
		}
		fds = append(fds, int(f.Fd()))
	}
	p := &packet{kind: typeExec, body: words(uint32(len(r.Files)), 0)}
	if r.KillOnHangup {
		p.flags |= execKillOnHangup
	}
	c, err := m.send(p, appendFDs(fds, r.Files))
	if err != nil {
		return nil, err
	}
	fault.Point("exec.sent")
	reply, err := m.wait(ctx, c)
	switch {
	case err != nil:
		_, _ = m.send(killPacket(c.id, unix.SIGKILL), nil) // its answer matters to nobody
		return nil, err
	case reply.kind == typeFailed:
		return nil, reply.failed().failure(r.Program)
	case reply.kind != typeExecStarted:
		return nil, fmt.Errorf("%w: type %d answers EXEC", ErrProtocol, reply.kind)
	}
	pid, _ := reply.started()
	return &Exec{m: m, call: c, pid: int(pid)}, nil
}

// PID is the process's number on the host.
func (e *Exec) PID() int { return e.pid }

// Wait returns how the process ended; ErrLost or ErrGone when the connection
// to the monitor was lost before that was known.
func (e *Exec) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-e.call.exited:
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for process %d: %w", e.pid, ctx.Err())
	}
	if e.call.err != nil {
		return Exit{}, fmt.Errorf("wait for process %d: %w", e.pid, e.call.err)
	}
	return e.call.exit, nil
}

// Kill sends a signal to the process, if it still runs.
func (e *Exec) Kill(ctx context.Context, sig unix.Signal) error {
	if _, err := e.m.request(ctx, killPacket(e.call.id, sig), nil, typeOK); err != nil {
		return fmt.Errorf("signal %d to process %d: %w", int(sig), e.pid, err)
	}
	return nil
}

func killPacket(exec uint32, sig unix.Signal) *packet {
	return &packet{kind: typeKill, body: words(uint32(sig), exec)}
}
