package conmon

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	// ErrGone: no monitor serves the container any more. If it ended by
	// itself, the exit record says how the container ended.
	ErrGone = errors.New("the monitor is gone")
	// ErrLost: the monitor has dropped the connection, and nobody knows what
	// became of the request. There is a new connection, or soon will be.
	ErrLost = errors.New("the connection to the monitor was lost")
	// ErrState: the container's state does not allow what was asked for.
	ErrState = errors.New("not possible in the container's state")
	// ErrProtocol: one side did not understand the other.
	ErrProtocol = errors.New("monitor protocol violated")
	// ErrBusy: the monitor takes no packets; it is stopped or starved.
	ErrBusy = errors.New("the monitor does not respond")
	// ErrUnsupported: the monitor is of an older version than this package.
	ErrUnsupported = errors.New("not known to the container's monitor, which an older version has started")
	// ErrSlow: an attached client did not take the output in time.
	ErrSlow = errors.New("the client did not take the output in time")
	// ErrExitRecord: the exit record is damaged.
	ErrExitRecord = errors.New("damaged exit record")
)

// Exit codes of commands that could not be run, as a shell gives them.
const (
	exitNotFound      = 127
	exitNotExecutable = 126
	exitNotStarted    = 128
)

// StepError says which step of a launch program the kernel refused.
type StepError struct {
	Step  int    // index in the program
	Name  string // what Program.StepName says of it
	Errno unix.Errno
}

// Error returns the step's name, the kernel's words and the step's place:
// "mount /proc: operation not permitted (step 31 of 74)".
func (e *StepError) Error() string {
	name, place := e.Name, ""
	if i := strings.LastIndex(name, " (step "); i > 0 {
		name, place = name[:i], name[i:]
	}
	return name + ": " + e.Errno.Error() + place
}

// Unwrap returns the errno.
func (e *StepError) Unwrap() error { return e.Errno }

// ExitCode is the exit status that stands for a command which could not be
// run: 127 when it was not found, 126 when it is not executable, else 128.
func (e *StepError) ExitCode() int32 {
	switch e.Errno {
	case unix.ENOENT, unix.ENOTDIR:
		return exitNotFound
	case unix.EACCES, unix.EPERM, unix.ENOEXEC, unix.EISDIR, unix.ELOOP, unix.ETXTBSY, unix.ELIBBAD:
		return exitNotExecutable
	default:
		return exitNotStarted
	}
}

// failure turns a FAILED packet into an error.
func (f *failed) failure(p Program) error {
	errno := unix.Errno(f.err)
	switch f.where {
	case whereStep:
		e := &StepError{Step: int(f.step), Errno: errno}
		if p != nil {
			e.Name = p.StepName(e.Step)
		} else {
			e.Name = fmt.Sprintf("launch program (step %d)", e.Step+1)
		}
		return e
	case whereState:
		return fmt.Errorf("%w: %w", ErrState, errno)
	case whereMonitor:
		if f.step == atChild && errno == unix.ENOMEM {
			return fmt.Errorf("setting the container up: killed for want of memory; its memory limit is too low: %w", errno)
		}
		return fmt.Errorf("monitor: %s: %w", monitorStep(f.step), errno)
	default:
		return fmt.Errorf("%w: %w", ErrProtocol, errno)
	}
}

func monitorStep(step uint32) string {
	names := [...]string{
		atPlace: "join the monitors' cgroup", atProgram: "map the launch program", atPipe: "make the output pipes",
		atStatusSocket: "make the status socket", atPIDNS: "enter the PID namespace", atClone: "clone the process",
		atWatch: "watch a descriptor", atChild: "process killed while it was set up", atKill: "send the signal",
		atExecs: "too many exec processes at one time", atAttach: "attach", atResize: "set the terminal's size",
	}
	if int(step) < len(names) && names[step] != "" {
		return names[step]
	}
	return fmt.Sprintf("internal step %d", step)
}
