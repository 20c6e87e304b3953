package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A copy starts with a small buffer and grows it while it is filled.
	leastCopy = 4 << 10
	mostCopy  = 256 << 10
	// pipeSize is what lies between a busy command and the copy of its output.
	pipeSize = 1 << 20
)

// TerminalSize is the size of a terminal in characters.
type TerminalSize struct{ Width, Height uint16 }

// Streams are the client's ends of an exec or an attach. A nil stream is not
// wanted; with Terminal there is no Stderr. Stdout and Stderr are closed when
// their output is complete. Whoever asked closes all of them when the call has
// returned: that ends a Read of Stdin, or a Write to a client that takes nothing,
// which may still be under way.
type Streams struct {
	Stdin    io.Reader
	Stdout   io.WriteCloser
	Stderr   io.WriteCloser
	Terminal bool
	Resize   <-chan TerminalSize // ends by being closed, or with the call
}

// outflow copies a command's or a container's output to a client.
type outflow struct {
	from *os.File // can be given deadlines
	to   io.WriteCloser
	done chan struct{}
}

// flow starts to copy.
func flow(from *os.File, to io.WriteCloser) *outflow {
	f := &outflow{from: from, to: to, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		f.copy()
		_ = to.Close()   // a client that has left needs no news of it
		_ = from.Close() // the command's next write fails, as with any closed pipe
	}()
	return f
}

func (f *outflow) copy() {
	buffer := make([]byte, leastCopy)
	for {
		n, err := f.from.Read(buffer)
		if n > 0 {
			if _, err := f.to.Write(buffer[:n]); err != nil {
				return
			}
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			f.rest(buffer)
			return
		case err != nil: // a terminal ends with EIO
			return
		case n == len(buffer) && n < mostCopy:
			buffer = make([]byte, 4*n)
		}
	}
}

// rest copies what had been written when the time was over. Who still holds
// the stream may go on writing for ever.
func (f *outflow) rest(buffer []byte) {
	left := 0
	var err error
	control(f.from, func(fd int) { left, err = unix.IoctlGetInt(fd, unix.TIOCINQ) })
	for left > 0 && err == nil {
		n := 0
		control(f.from, func(fd int) { n, err = unix.Read(fd, buffer[:min(left, len(buffer))]) })
		if err != nil || n <= 0 {
			return
		}
		left -= n
		_, err = f.to.Write(buffer[:n])
	}
}

// limit bounds the time for which processes other than the one that has
// ended may hold the stream open.
func (f *outflow) limit(d time.Duration) {
	if f != nil {
		_ = f.from.SetReadDeadline(time.Now().Add(d)) // fails when it is closed, at its end
	}
}

// wait waits until the output is complete. A client may take as long as ctx to
// receive it.
func (f *outflow) wait(ctx context.Context) error {
	if f == nil {
		return nil
	}
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the client has not taken the output: %w", ctx.Err())
	}
}

// feed copies a client's input until it ends; then it calls eof.
func feed(to io.Writer, from io.Reader, eof func(last byte)) {
	buffer, last := make([]byte, leastCopy), byte('\n')
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			last = buffer[n-1]
			if _, err := to.Write(buffer[:n]); err != nil {
				return // nobody reads it any more
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			eof(last)
			return
		case err != nil:
			return
		case n == len(buffer) && n < mostCopy:
			buffer = make([]byte, 4*n)
		}
	}
}

// sizes passes the client's terminal sizes on until they end or stop is closed.
func sizes(from <-chan TerminalSize, stop <-chan struct{}, set func(TerminalSize)) {
	for {
		select {
		case size, ok := <-from:
			if !ok {
				return
			}
			set(size)
		case <-stop:
			return
		}
	}
}

// noWriter takes the output that no client wants.
type noWriter struct{ io.Writer }

// Close does nothing.
func (noWriter) Close() error { return nil }

// execStreams is what lies between a client and a command or a container.
type execStreams struct {
	theirs  [3]*os.File // the command's standard streams, nil: a null device
	stdin   *os.File    // the daemon's ends of pipes, or the terminal's master
	out     *os.File
	err     *os.File
	sockets [2]*os.File // the terminal comes through them: the daemon's, the command's
	flows   [2]*outflow
	lags    []*lagging // of an attachment
	stop    chan struct{}
}

// newExecStreams makes pipes for the streams that the client wants, or the way by which
// the command hands its terminal over.
func newExecStreams(s *Streams) (_ *execStreams, err error) {
	x := &execStreams{stop: make(chan struct{})}
	defer func() {
		if err != nil {
			x.close()
		}
	}()
	if s.Terminal {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, os.NewSyscallError("socketpair", err)
		}
		for i, fd := range fds {
			x.sockets[i] = os.NewFile(uintptr(fd), "terminal socket")
		}
		return x, nil
	}
	if s.Stdin != nil {
		if x.theirs[0], x.stdin, err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	if s.Stdout != nil {
		if x.out, x.theirs[1], err = widePipe(); err != nil {
			return nil, err
		}
	}
	if s.Stderr != nil {
		x.err, x.theirs[2], err = widePipe()
	}
	return x, err
}

// widePipe makes a pipe that holds what a busy command writes while its reader
// does something else.
func widePipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		return nil, nil, err
	}
	// Beyond the limits of pipes the size stays what it is.
	control(r, func(fd int) { _, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize) })
	return r, w, nil
}

// start connects the client with the command, which has got its ends.
func (x *execStreams) start(s *Streams) error {
	for _, f := range x.theirs {
		if f != nil {
			_ = f.Close()
		}
	}
	if s.Terminal {
		master, err := receiveTerminal(x.sockets[0])
		if err != nil {
			return err
		}
		x.stdin, x.out = master, master
		if s.Stdout == nil {
			s.Stdout = noWriter{io.Discard}
		}
		if s.Resize != nil {
			go sizes(s.Resize, x.stop, func(size TerminalSize) { setSize(master, size) })
		}
	}
	if x.out != nil {
		x.flows[0] = flow(x.out, s.Stdout)
	}
	if x.err != nil {
		x.flows[1] = flow(x.err, s.Stderr)
	}
	if s.Stdin != nil {
		go feed(x.stdin, s.Stdin, func(last byte) {
			if s.Terminal {
				endInput(x.stdin, last)
				return
			}
			_ = x.stdin.Close()
		})
	}
	return nil
}

// finish waits until the output of a command that has ended is complete.
func (x *execStreams) finish(ctx context.Context) error {
	// The time is the same for both, and passes while one is waited for.
	for _, f := range x.flows {
		f.limit(drainTimeout)
	}
	return errors.Join(x.flows[0].wait(ctx), x.flows[1].wait(ctx))
}

// close ends the copying but for a call of the client's streams under way.
func (x *execStreams) close() {
	close(x.stop)
	for _, f := range append(x.theirs[:], x.stdin, x.out, x.err, x.sockets[0], x.sockets[1]) {
		if f != nil {
			_ = f.Close() // some are closed already
		}
	}
}
