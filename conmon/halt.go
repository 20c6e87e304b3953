package conmon

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Halting is a process that runs a program which halts at each READY, by reading a byte from
// slot 8, until it is told to go on. Meanwhile its starter does what the process cannot
// do to itself, like writing the mappings of its user namespace.
type Halting struct {
	PID     int
	program Program
	report  *os.File
	resume  *os.File // its end ends the process: it does not outlive its starter
}

// Halt starts such a process and waits for its first READY. On error nothing is left.
func (b *Binary) Halt(p Program) (*Halting, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	h := &Halting{program: p, resume: write}
	if h.PID, h.report, err = b.runProgram(p, []*os.File{read}, &syscall.SysProcAttr{}, nil); err != nil {
		return nil, errors.Join(err, write.Close())
	}
	if _, err := awaitReady(h.report, p, h.PID); err != nil {
		return nil, errors.Join(err, h.End())
	}
	return h, nil
}

// Resume lets the program go on to its next READY.
func (h *Halting) Resume() error {
	if _, err := h.resume.Write([]byte{0}); err != nil {
		return fmt.Errorf("resume process %d: %w", h.PID, err)
	}
	_, err := awaitReady(h.report, h.program, h.PID)
	return err
}

// End kills the process and waits for its end.
func (h *Halting) End() error {
	err := unix.Kill(h.PID, unix.SIGKILL) // not reaped yet, so the number is still its own
	_, _ = unix.Wait4(h.PID, nil, 0, nil)
	return errors.Join(err, h.report.Close(), h.resume.Close())
}
