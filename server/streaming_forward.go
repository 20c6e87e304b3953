package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/klog/v2"
)

const (
	protocolForward = "portforward.k8s.io"

	streamData      = "data"
	headerPort      = "port"
	headerRequestID = "requestID"
)

// dialer connects to a port of the pod.
type dialer func(ctx context.Context, port uint16) (net.Conn, error)

// portForward upgrades the connection of a request and forwards to the pod
// until the client is gone. ports are those that the request names; none: all.
func (s *streaming) portForward(w http.ResponseWriter, r *http.Request, ports []int32, dial dialer) error {
	f := &forwarding{
		room: s.forwarded, dial: dial, ports: ports, timeout: s.config.CreationTimeout, pairs: map[string]*pair{},
		opened: make(chan *spdyStream), left: make(chan struct{}),
	}
	open := f.openSPDY
	if websocket.IsWebSocketUpgrade(r) {
		ws, err := upgradeWebSocket(w, r, forwardProtocols(ports))
		if err != nil {
			return err
		}
		if ws.Subprotocol() != protocolTunnel {
			return s.forwardChannels(r.Context(), ws, f)
		}
		open = func(http.ResponseWriter, *http.Request) (*spdySession, error) { return f.openTunnel(ws) }
	}
	session, err := open(w, r)
	if err != nil {
		return err
	}
	ctx, end := s.begin(r.Context(), session.conn, session.done)
	defer end()
	f.run(ctx)
	session.close()
	f.running.Wait()
	return nil
}

// forwardProtocols are those of WebSocket connections. Channels stand for ports,
// which only the request can name.
func forwardProtocols(ports []int32) []string {
	if len(ports) == 0 {
		return []string{protocolTunnel}
	}
	return []string{protocolTunnel, versionFour + protocolChannels, versionFour + protocolChannels64, ""}
}

// forwarding is one port-forward session: every connection of the client is a
// pair of streams, and none of them can end another.
type forwarding struct {
	room    chan struct{} // for connections, of all sessions
	dial    dialer
	ports   []int32
	timeout time.Duration
	opened  chan *spdyStream
	left    chan struct{} // closed when nobody takes from opened any more
	pairs   map[string]*pair
	running sync.WaitGroup
}

// pair is what the client opens for one connection: fault carries why there is none.
type pair struct {
	data, fault *spdyStream
	since       time.Time
}

func (p *pair) fail(err error) {
	if p.fault != nil {
		_, _ = io.WriteString(p.fault, err.Error()) // the client may be gone
		_ = p.fault.Close()
	}
	p.end()
}

func (p *pair) end() {
	for _, stream := range []*spdyStream{p.data, p.fault} {
		if stream != nil {
			_ = stream.Close() // before the reset, which alone would say that it went wrong
			stream.Reset()
		}
	}
}

func (f *forwarding) openSPDY(w http.ResponseWriter, r *http.Request) (*spdySession, error) {
	if err := negotiate(w, r, []string{protocolForward}); err != nil {
		return nil, err
	}
	return upgradeSPDY(w, f.accept)
}

func (f *forwarding) openTunnel(ws *websocket.Conn) (*spdySession, error) {
	t := &tunnel{Conn: ws}
	session, err := serveSPDY(t, t, f.accept)
	if err != nil {
		return nil, errors.Join(err, ws.Close())
	}
	return session, nil
}

// accept takes a new stream that says what it is for.
func (f *forwarding) accept(stream *spdyStream) error {
	port := stream.headers.Get(headerPort)
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("stream %d: port %q is not between 1 and 65535: %w", stream.id, port, errProtocol)
	} else if len(f.ports) > 0 && !slices.Contains(f.ports, int32(n)) { //nolint:gosec // 16 bits
		return fmt.Errorf("stream %d: port %d is not among those of the request: %w", stream.id, n, errProtocol)
	}
	if kind := stream.headers.Get(headerStreamType); kind != streamData && kind != streamError {
		return fmt.Errorf("stream %d: stream type %q: %w", stream.id, kind, errProtocol)
	}
	select {
	case f.opened <- stream:
		return nil
	case <-f.left:
		return errClientGone
	}
}

// run brings streams together in pairs until ctx ends.
func (f *forwarding) run(ctx context.Context) {
	defer close(f.left)
	expired := time.NewTicker(f.timeout)
	defer expired.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case stream := <-f.opened:
			if p := f.pair(stream); p != nil {
				f.running.Go(func() { f.forward(ctx, p) })
			}
		case now := <-expired.C:
			for id, p := range f.pairs {
				if now.Sub(p.since) >= f.timeout {
					delete(f.pairs, id)
					p.fail(fmt.Errorf("the client did not open both streams within %v: %w", f.timeout, errProtocol))
				}
			}
		}
	}
}

// pair returns the stream's pair once it is complete.
func (f *forwarding) pair(stream *spdyStream) *pair {
	fault := stream.headers.Get(headerStreamType) == streamError
	id := stream.headers.Get(headerRequestID)
	if id == "" { // old clients: two streams in a row, the error stream first
		first := stream.id
		if !fault {
			first -= 2
		}
		id = "stream " + strconv.FormatUint(uint64(first), 10)
	}
	p := f.pairs[id]
	if p == nil {
		p = &pair{since: time.Now()}
		f.pairs[id] = p
	}
	slot := &p.data
	if fault {
		slot = &p.fault
	}
	if *slot != nil {
		stream.Reset()
		return nil
	}
	*slot = stream
	if p.data == nil || p.fault == nil {
		return nil
	}
	delete(f.pairs, id)
	return p
}

// connect dials while there is room; leave is called when the connection has ended.
func (f *forwarding) connect(ctx context.Context, port uint16) (conn net.Conn, leave func(), err error) {
	select {
	case f.room <- struct{}{}:
	default:
		return nil, nil, fmt.Errorf("%d connections are forwarded: %w", cap(f.room), errTooMany)
	}
	if conn, err = f.dial(ctx, port); err != nil {
		<-f.room
		return nil, nil, err
	}
	return conn, func() { <-f.room }, nil
}

// forward connects one pair to its port.
func (f *forwarding) forward(ctx context.Context, p *pair) {
	port, err := strconv.ParseUint(p.data.headers.Get(headerPort), 10, 16)
	if err != nil {
		p.fail(err)
		return
	}
	conn, leave, err := f.connect(ctx, uint16(port))
	if err != nil {
		p.fail(err)
		return
	}
	defer leave()
	carry(ctx, conn, p.data.inbox, p.data, p.data.reset)
	// A connection that the pod has reset ends like one that it has closed: at
	// a word on the error stream clients end the whole session.
	p.end()
}

// carry copies both ways until both directions have ended; reset ends them at once.
func carry(ctx context.Context, conn net.Conn, in *inbox, out io.WriteCloser, reset <-chan struct{}) {
	finished := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		select {
		case <-ctx.Done():
		case <-reset:
		case <-finished:
		}
		_ = conn.Close()
	})
	var copies sync.WaitGroup
	copies.Go(func() {
		_, err := in.WriteTo(conn)
		if half, ok := conn.(halfCloser); ok && err == nil {
			err = half.CloseWrite()
		}
		if err != nil {
			in.finish(errStreamReset) // nothing more can get there
		}
	})
	copies.Go(func() {
		if _, err := copyTo(out, conn); err != nil {
			in.finish(errStreamReset)
		}
		_ = out.Close()
	})
	copies.Wait()
	close(finished)
	wait.Wait()
}

// forwardChannels forwards the ports of the request over a WebSocket
// connection: channel 2n is the data of the n-th port, 2n+1 its error.
func (s *streaming) forwardChannels(life context.Context, ws *websocket.Conn, f *forwarding) error {
	var read []byte
	for i := range f.ports {
		read = append(read, byte(2*i))
	}
	c := serveChannels(ws, read...)
	defer c.close()
	ctx, end := s.begin(life, ws.NetConn(), c.done)
	defer end()
	for i, port := range f.ports {
		data, fault := c.writer(byte(2*i)), c.writer(byte(2*i+1))
		number := binary.LittleEndian.AppendUint16(nil, uint16(port)) //nolint:gosec // checked with the request
		for _, w := range []io.Writer{data, fault} {
			if _, err := w.Write(number); err != nil {
				return nil // the client is gone
			}
		}
		f.running.Go(func() {
			conn, leave, err := f.connect(ctx, uint16(port)) //nolint:gosec // checked with the request
			if err != nil {
				_, _ = io.WriteString(fault, err.Error())
				c.inboxes[byte(2*i)].finish(errStreamReset)
				return
			}
			defer leave()
			carry(ctx, conn, c.inboxes[byte(2*i)], data, c.done)
		})
	}
	f.running.Wait()
	klog.V(logProbing).InfoS("All forwarded connections have ended", "ports", f.ports)
	return nil
}
