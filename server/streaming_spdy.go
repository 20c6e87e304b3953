package server

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/spdystream/spdy"
)

const (
	// streamBuffer is what is read at once from a command or a pod, and what a
	// connection's reads are buffered by.
	streamBuffer = 64 << 10
	// maxFrame bounds one data frame, so that streams of a connection take turns.
	maxFrame = 256 << 10
	// maxStreams bounds the streams that are open at once on one connection.
	maxStreams = 4096
	// maxStreamHeaders and maxStreamHeader bound what names a stream. The framer takes time
	// of a name's length times its values' number, and a frame of 64 KiB unpacks to 64 MiB.
	maxStreamHeaders = 32
	maxStreamHeader  = 256
	// linger is how long a client may take to close its end after the last word.
	// Closing first would make the kernel drop that word if there is unread input.
	linger = 2 * time.Second
)

// halfCloser is a connection that can say that nothing more will be written.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// spdySession is the server's end of a SPDY/3.1 connection as clients of CRI
// speak it: the client opens the streams, and nobody counts windows. A stream
// that is not read stops the connection once its inbox is full: the protocol
// has no other way to slow one stream down.
type spdySession struct {
	conn halfCloser
	in   *bufio.Reader
	// accept is asked for each new stream, and must not wait.
	accept func(*spdyStream) error
	done   chan struct{} // closed when the client is gone

	writing sync.Mutex
	out     *bytes.Buffer // of the framer; guarded by writing
	framer  *spdy.Framer  // reads in, from the read loop alone; writes out, guarded by writing

	mu      sync.Mutex
	streams map[spdy.StreamId]*spdyStream // guarded by mu
	last    spdy.StreamId                 // guarded by mu
	closing bool                          // guarded by mu
}

// serveSPDY runs the session of a connection; in has what was read of it already.
func serveSPDY(conn halfCloser, in io.Reader, accept func(*spdyStream) error) (*spdySession, error) {
	s := &spdySession{
		conn: conn, in: bufio.NewReaderSize(in, streamBuffer), accept: accept, done: make(chan struct{}),
		out: &bytes.Buffer{}, streams: map[spdy.StreamId]*spdyStream{},
	}
	var err error
	s.framer, err = spdy.NewFramerWithOptions(s.out, s.in, spdy.WithMaxControlFramePayloadSize(maxHeaderBytes),
		spdy.WithMaxHeaderCount(maxStreamHeaders), spdy.WithMaxHeaderFieldSize(maxStreamHeader))
	if err != nil {
		return nil, fmt.Errorf("SPDY: %w", err)
	}
	go func() {
		defer close(s.done)
		s.read()
		s.endStreams()
	}()
	return s, nil
}

// negotiate picks the first of the client's protocols that is among ours; an
// error has been answered.
func negotiate(w http.ResponseWriter, r *http.Request, ours []string) error {
	const offered, accepted = "X-Stream-Protocol-Version", "X-Accepted-Stream-Protocol-Versions"
	if !headerHas(r.Header, "Connection", "upgrade") || !headerHas(r.Header, "Upgrade", "spdy/3.1") {
		err := fmt.Errorf("a request for neither SPDY/3.1 nor WebSocket: %w", errProtocol)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return err
	}
	for _, value := range r.Header.Values(offered) {
		for name := range strings.SplitSeq(value, ",") {
			if name = strings.TrimSpace(name); slices.Contains(ours, name) {
				w.Header().Set(offered, name)
				return nil
			}
		}
	}
	for _, name := range ours {
		w.Header().Add(accepted, name)
	}
	err := fmt.Errorf("stream protocols %q: %w, there are %q", r.Header.Values(offered), errProtocol, ours)
	http.Error(w, err.Error(), http.StatusForbidden)
	return err
}

func headerHas(header http.Header, name, token string) bool {
	return slices.ContainsFunc(header.Values(name), func(value string) bool {
		return strings.Contains(strings.ToLower(value), token)
	})
}

// upgradeSPDY makes a SPDY session of a request's connection.
func upgradeSPDY(w http.ResponseWriter, accept func(*spdyStream) error) (*spdySession, error) {
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", "SPDY/3.1")
	w.WriteHeader(http.StatusSwitchingProtocols)
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	half, ok := conn.(halfCloser)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a connection of type %T: %w", conn, errProtocol), conn.Close())
	}
	session, err := serveSPDY(half, buffered.Reader, accept)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return session, nil
}

// read handles frames until the client is gone or breaks the protocol.
func (s *spdySession) read() {
	for {
		head, err := s.in.Peek(8)
		if err != nil {
			return
		}
		if head[0]&0x80 == 0 {
			err = s.readData(binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[4:]))
		} else {
			err = s.readControl()
		}
		if err != nil {
			return
		}
	}
}

func (s *spdySession) readData(id, flagsAndLength uint32) error {
	if _, err := s.in.Discard(8); err != nil {
		return err
	}
	length := int(flagsAndLength & 0xffffff)
	stream := s.stream(spdy.StreamId(id))
	if stream == nil {
		_, err := s.in.Discard(length)
		return err
	}
	if err := stream.fill(s.in, length); err != nil {
		return err
	}
	if spdy.DataFlags(flagsAndLength>>24)&spdy.DataFlagFin != 0 {
		stream.finish(io.EOF)
	}
	return nil
}

func (s *spdySession) readControl() error {
	frame, err := s.framer.ReadFrame()
	if err != nil {
		return err
	}
	switch f := frame.(type) {
	case *spdy.SynStreamFrame:
		return s.open(f)
	case *spdy.RstStreamFrame:
		if stream := s.forget(f.StreamId); stream != nil {
			stream.aborted()
		}
	case *spdy.PingFrame:
		if f.Id&1 == 1 { // ours would be even
			return s.writeControl(f)
		}
	case *spdy.GoAwayFrame:
		return io.EOF
	}
	return nil
}

func (s *spdySession) open(f *spdy.SynStreamFrame) error {
	stream := &spdyStream{inbox: newInbox(), id: f.StreamId, session: s, headers: f.Headers, reset: make(chan struct{})}
	s.mu.Lock()
	refused := s.closing || len(s.streams) >= maxStreams
	if f.StreamId <= s.last || f.StreamId&1 == 0 {
		s.mu.Unlock()
		return fmt.Errorf("SPDY: stream %d after stream %d: %w", f.StreamId, s.last, errProtocol)
	}
	s.last = f.StreamId
	if !refused {
		s.streams[f.StreamId] = stream
	}
	s.mu.Unlock()
	if f.CFHeader.Flags&spdy.ControlFlagFin != 0 {
		stream.finish(io.EOF)
	}
	if refused {
		return s.writeControl(&spdy.RstStreamFrame{StreamId: f.StreamId, Status: spdy.RefusedStream})
	}
	// The reply comes before anything that whoever is told writes to the stream.
	if err := s.writeControl(&spdy.SynReplyFrame{StreamId: f.StreamId, Headers: http.Header{}}); err != nil {
		return err
	}
	if err := s.accept(stream); err != nil {
		stream.Reset()
	}
	return nil
}

func (s *spdySession) stream(id spdy.StreamId) *spdyStream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[id]
}

func (s *spdySession) forget(id spdy.StreamId) *spdyStream {
	s.mu.Lock()
	defer s.mu.Unlock()
	stream := s.streams[id]
	delete(s.streams, id)
	return stream
}

// endStreams makes every stream's reader and writer end.
func (s *spdySession) endStreams() {
	s.mu.Lock()
	s.closing = true
	streams := s.streams
	s.streams = map[spdy.StreamId]*spdyStream{}
	s.mu.Unlock()
	for _, stream := range streams {
		stream.aborted()
	}
}

func (s *spdySession) writeControl(frame spdy.Frame) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.out.Reset()
	if err := s.framer.WriteFrame(frame); err != nil {
		return err
	}
	_, err := s.conn.Write(s.out.Bytes())
	return err
}

// writeData sends a frame in one system call, or in one record or message.
func (s *spdySession) writeData(id spdy.StreamId, flags spdy.DataFlags, p []byte) error {
	var head [8]byte
	binary.BigEndian.PutUint32(head[:], uint32(id))
	binary.BigEndian.PutUint32(head[4:], uint32(flags)<<24|uint32(len(p)))
	s.writing.Lock()
	defer s.writing.Unlock()
	if tcp, ok := s.conn.(*net.TCPConn); ok {
		vector := net.Buffers{head[:], p}
		_, err := vector.WriteTo(tcp)
		return err
	}
	s.out.Reset()
	s.out.Write(head[:])
	s.out.Write(p)
	_, err := s.conn.Write(s.out.Bytes())
	return err
}

// close ends the session after everything that was written; the client may
// take a moment to go by itself.
func (s *spdySession) close() {
	end := time.Now().Add(linger)
	_ = s.conn.SetWriteDeadline(end) // a client that reads nothing ends in an error
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	_ = s.writeControl(&spdy.GoAwayFrame{LastGoodStreamId: last})
	s.endStreams()
	_ = s.conn.CloseWrite()
	_ = s.conn.SetReadDeadline(end)
	<-s.done
	_ = s.conn.Close()
}

// spdyStream is one stream of a session. Reading it ends with io.EOF when the
// client closes its half, and with errStreamReset when it gives up both.
type spdyStream struct {
	*inbox
	id      spdy.StreamId
	session *spdySession
	headers http.Header
	reset   chan struct{} // closed when there is nobody to write to

	mu     sync.Mutex
	closed bool // no more writes; guarded by mu
	gone   bool // reset is closed; guarded by mu
}

// Write sends p.
func (w *spdyStream) Write(p []byte) (n int, err error) {
	for n < len(p) {
		if err := w.writable(); err != nil {
			return n, err
		}
		part := p[n:min(len(p), n+maxFrame)]
		if err := w.session.writeData(w.id, 0, part); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// ReadFrom implements io.ReaderFrom with buffers of a pipe's size.
func (w *spdyStream) ReadFrom(r io.Reader) (int64, error) { return copyTo(w, r) }

func (w *spdyStream) writable() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.gone:
		return errStreamReset
	case w.closed:
		return net.ErrClosed
	}
	return nil
}

// Close ends the server's half of the stream; a second call does nothing.
func (w *spdyStream) Close() error {
	w.mu.Lock()
	first := !w.closed && !w.gone
	w.closed = true
	w.mu.Unlock()
	if !first {
		return nil
	}
	return w.session.writeData(w.id, spdy.DataFlagFin, nil)
}

// Reset ends both halves at once; what was not read is dropped.
func (w *spdyStream) Reset() {
	if w.session.forget(w.id) == nil {
		return
	}
	w.aborted()
	_ = w.session.writeControl(&spdy.RstStreamFrame{StreamId: w.id, Status: spdy.Cancel}) // the read loop sees a broken connection
}

// aborted notes that there is no other end any more.
func (w *spdyStream) aborted() {
	w.finish(errStreamReset)
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.gone {
		w.gone = true
		close(w.reset)
	}
}

// copyTo is io.Copy with a larger buffer, for writers whose every Write is a frame.
func copyTo(w io.Writer, r io.Reader) (total int64, err error) {
	buf := make([]byte, streamBuffer)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			m, writeErr := w.Write(buf[:n])
			total += int64(m)
			if writeErr != nil {
				return total, writeErr
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
