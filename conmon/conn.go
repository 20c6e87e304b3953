package conmon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// redialAfter is the time between attempts while this process is short of
// descriptors or memory.
const redialAfter = 100 * time.Millisecond

// dial connects and says HELLO without waiting for anything.
func (m *Monitor) dial() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	err = withAddress(m.dir, func(a *unix.SockaddrUnix) error { return unix.Connect(fd, a) })
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT):
		err = ErrGone
	case errors.Is(err, unix.EAGAIN):
		err = ErrBusy
	}
	if err == nil {
		hello := &packet{kind: typeHello, body: words(protocolVersion, protocolVersion)}
		err = unix.Sendmsg(fd, hello.encode(make([]byte, 0, packetMax)), nil, nil, unix.MSG_NOSIGNAL)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	conn := os.NewFile(uintptr(fd), socketFile)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		conn.Close()
		return ErrGone
	}
	m.conn = conn
	return nil
}

// send makes a call of p. It never waits: a monitor that takes no more is
// ErrBusy.
func (m *Monitor) send(p *packet, fds []int) (*call, error) {
	c := &call{first: make(chan packet, 1)}
	if p.kind == typeExec || p.kind == typeAttach {
		c.exited = make(chan struct{})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed || m.decided && m.conn == nil:
		return nil, ErrGone
	case m.conn == nil:
		return nil, ErrLost
	}
	raw, err := m.conn.SyscallConn()
	if err != nil {
		return nil, ErrGone
	}
	if m.calls == nil {
		m.calls = make(map[uint32]*call)
	}
	for m.lastID++; m.lastID == 0 || m.calls[m.lastID] != nil; m.lastID++ {
	}
	c.id, p.id = m.lastID, m.lastID
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	data := p.encode(make([]byte, 0, packetMax))
	m.calls[c.id] = c
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.Sendmsg(int(fd), data, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}); cerr != nil {
		err = ErrGone
	}
	switch {
	case err == nil, errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
		return c, nil // a lost connection is for the reader to find out
	case errors.Is(err, unix.EAGAIN):
		err = ErrBusy
	}
	delete(m.calls, c.id)
	return nil, err
}

// wait returns the first reply to c.
func (m *Monitor) wait(ctx context.Context, c *call) (packet, error) {
	select {
	case p, ok := <-c.first:
		if !ok {
			return packet{}, c.err
		}
		return p, nil
	case <-ctx.Done():
		return packet{}, fmt.Errorf("no answer of the monitor: %w", ctx.Err())
	}
}

// request sends p and waits for a reply of the type wanted.
func (m *Monitor) request(ctx context.Context, p *packet, fds []int, want uint16) (packet, error) {
	c, err := m.send(p, fds)
	if err != nil {
		return packet{}, err
	}
	fault.Point("monitor.request.sent")
	reply, err := m.wait(ctx, c)
	switch {
	case err != nil:
		return packet{}, err
	case reply.kind == typeFailed:
		return packet{}, reply.failed().failure(nil)
	case reply.kind != want:
		return packet{}, fmt.Errorf("%w: type %d answers type %d", ErrProtocol, reply.kind, p.kind)
	}
	return reply, nil
}

// read starts the goroutine that takes everything the monitor says.
func (m *Monitor) read() {
	go func() {
		for {
			calls := m.receive()
			again := m.redial()
			for _, c := range calls {
				c.lose(again)
			}
			if !again {
				break
			}
		}
		m.over()
	}()
}

// receive takes packets until the connection ends, and returns the calls that
// have no answer then.
func (m *Monitor) receive() map[uint32]*call {
	m.mu.Lock()
	conn := m.conn
	m.mu.Unlock()
	if conn == nil {
		return nil
	}
	buffer := make([]byte, packetMax)
	for {
		n, err := conn.Read(buffer)
		if errors.Is(err, unix.ECONNRESET) {
			continue // the monitor has ended with a request unread; what it said before comes next
		}
		if err != nil || n == 0 {
			break
		}
		p, err := decodePacket(buffer[:n])
		if err != nil {
			break
		}
		m.deliver(p)
	}
	conn.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	calls := m.calls
	m.conn, m.calls = nil, nil
	return calls
}

// lose ends a call without an answer.
func (c *call) lose(again bool) {
	c.err = ErrGone
	if again {
		c.err = ErrLost
	}
	if len(c.first) == 0 {
		close(c.first)
	}
	if c.exited != nil {
		close(c.exited)
	}
}

// redial connects again when the connection is missed: a monitor that lives
// may have dropped it. It is false when there is no monitor any more; any
// other error is not the monitor's, so it must not count as its death.
func (m *Monitor) redial() bool {
	for {
		m.mu.Lock()
		missed := !m.decided && !m.closed
		m.mu.Unlock()
		if !missed {
			return false
		}
		err := m.dial()
		if err == nil {
			return true
		}
		if errors.Is(err, ErrGone) {
			return false
		}
		<-time.After(redialAfter)
	}
}

// deliver hands a packet to whom it concerns. A call is forgotten with its
// last reply, and its channel has room for the one that it waits for.
func (m *Monitor) deliver(p packet) {
	p.body = append([]byte(nil), p.body...)
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.kind == typeExited {
		m.status.Exit, m.exited = decodeExit(p.body), true
		m.status.State, m.status.PID, m.status.StartedAt = StateExited, 0, m.status.Exit.StartedAt
		m.decide()
		return
	}
	if p.kind == typeHelloOK {
		m.features = p.flags
		return
	}
	c := m.calls[p.id]
	switch {
	case c == nil:
	case p.kind == typeExecExited && c.exited != nil:
		delete(m.calls, p.id)
		c.exit = decodeExit(p.body)
		close(c.exited)
	case p.kind == typeDetached && c.exited != nil:
		delete(m.calls, p.id)
		c.slow = binary.LittleEndian.Uint32(p.body) == detachedSlow
		close(c.exited)
	case len(c.first) > 0: // a second answer to what has one
	default:
		if p.kind != typeExecStarted && (c.exited == nil || p.kind == typeFailed) {
			delete(m.calls, p.id)
		}
		c.first <- p
	}
}

func (m *Monitor) decide() {
	if !m.decided {
		m.decided = true
		close(m.done)
	}
}

// over comes after the last connection. A monitor that is this process's
// child ends about now, unless it was let go of with its container alive.
func (m *Monitor) over() {
	m.mu.Lock()
	m.decide()
	ends := m.exited || !m.closed
	m.mu.Unlock()
	if m.child > 0 && ends {
		m.reap()
	}
}

// reap waits, without keeping a thread, until the monitor has ended.
func (m *Monitor) reap() {
	m.reaped.Do(func() {
		if pid, err := unix.Wait4(m.child, nil, unix.WNOHANG, nil); pid != 0 || err != nil {
			return
		}
		fd, err := unix.PidfdOpen(m.child, unix.PIDFD_NONBLOCK)
		if err != nil {
			return
		}
		process := os.NewFile(uintptr(fd), "monitor")
		defer process.Close()
		raw, err := process.SyscallConn()
		if err != nil {
			return
		}
		_ = raw.Read(func(uintptr) bool {
			pid, err := unix.Wait4(m.child, nil, unix.WNOHANG, nil)
			return pid != 0 || err != nil
		})
	})
}
