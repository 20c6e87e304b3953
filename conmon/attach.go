package conmon

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// AttachRequest connects pipes with the streams of a container's init. The
// monitor makes its ends non-blocking; they stay the caller's to close.
type AttachRequest struct {
	Stdin      *os.File // the read end of a pipe, nil: no input
	Stdout     *os.File // the write end of a pipe, nil: not wanted; of a terminal all output
	Stderr     *os.File // the same
	CloseStdin bool     // the end of this input is the end of the container's
}

// Attachment is an attached client.
type Attachment struct {
	call *call
}

// Attach connects a client, which is detached by closing the far ends of its pipes.
// ErrState: the container has exited, or has no stdin, or no more.
func (m *Monitor) Attach(ctx context.Context, r AttachRequest) (*Attachment, error) {
	p := &packet{kind: typeAttach}
	var fds []int
	for _, s := range []struct {
		file *os.File
		flag uint16
	}{{r.Stdin, attachStdin}, {r.Stdout, attachStdout}, {r.Stderr, attachStderr}} {
		if s.file != nil {
			p.flags |= s.flag
			fds = append(fds, int(s.file.Fd()))
		}
	}
	if r.CloseStdin {
		p.flags |= attachCloseStdin
	}
	if len(fds) == 0 {
		return nil, fmt.Errorf("attach: no stream is wanted: %w", unix.EINVAL)
	}
	if err := m.knows(helloOKAttach); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	c, err := m.send(p, fds)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	reply, err := m.wait(ctx, c)
	switch {
	case err != nil:
	case reply.kind == typeFailed:
		err = reply.failed().failure(nil)
	case reply.kind != typeOK:
		err = fmt.Errorf("%w: type %d answers ATTACH", ErrProtocol, reply.kind)
	}
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	return &Attachment{call: c}, nil
}

// Done is closed once the monitor has let go of all of the client's pipes, or
// the connection to it was lost; only the pipes say then how it goes on.
func (a *Attachment) Done() <-chan struct{} { return a.call.exited }

// Err is, after Done, ErrSlow when the client did not take the output in time.
func (a *Attachment) Err() error {
	if a.call.slow {
		return ErrSlow
	}
	return nil
}

// Resize sets the size of the container's terminal; ErrState when it has none.
func (m *Monitor) Resize(ctx context.Context, width, height uint16) error {
	err := m.knows(helloOKAttach)
	if err == nil {
		_, err = m.request(ctx, &packet{kind: typeResize, body: words(uint32(width), uint32(height))}, nil, typeOK)
	}
	if err != nil {
		return fmt.Errorf("resize: %w", err)
	}
	return nil
}

// knows tells whether the monitor has said that it knows more than version 1 began with.
func (m *Monitor) knows(feature uint16) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.features&feature == 0 {
		return ErrUnsupported
	}
	return nil
}
