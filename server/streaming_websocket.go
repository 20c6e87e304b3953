package server

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
)

// The subprotocols of WebSocket connections: channels in the first byte of
// every message, or SPDY inside of messages for port-forward.
const (
	protocolChannels   = "channel.k8s.io"
	protocolChannels64 = "base64.channel.k8s.io"
	versionFour        = "v4."
	versionFive        = "v5."
	protocolTunnel     = "SPDY/3.1+portforward.k8s.io"

	// channelClose precedes the channel that the client has finished, from v5 on.
	channelClose = 255
)

// upgradeWebSocket answers the client's handshake; an error has been answered, too.
func upgradeWebSocket(w http.ResponseWriter, r *http.Request, protocols []string) (*websocket.Conn, error) {
	offered := websocket.Subprotocols(r)
	upgrader := websocket.Upgrader{
		ReadBufferSize: streamBuffer, Subprotocols: protocols,
		// The token stands for the client; the kubelet passes on a browser's origin.
		CheckOrigin: func(*http.Request) bool { return true },
	}
	if !common(offered, protocols) && (len(offered) > 0 || !slices.Contains(protocols, "")) {
		err := fmt.Errorf("WebSocket subprotocols %q: %w, there are %q", offered, errProtocol, protocols)
		http.Error(w, err.Error(), http.StatusForbidden)
		return nil, err
	}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return nil, fmt.Errorf("WebSocket handshake: %w", err)
	}
	answerPings(conn)
	return conn, nil
}

// answerPings sends pongs. The library's own handler gives each a second, and after one that took
// longer nothing can be written to the connection any more: on a node under load, or with a client
// that reads slowly, that would end the session. A pong that waits stands for those after it.
func answerPings(ws *websocket.Conn) {
	var waits atomic.Bool
	ws.SetPingHandler(func(text string) error {
		if waits.CompareAndSwap(false, true) {
			go func() {
				defer waits.Store(false)
				_ = ws.WriteControl(websocket.PongMessage, []byte(text), time.Time{}) // until the connection is closed
			}()
		}
		return nil
	})
}

func common(a, b []string) bool {
	return slices.ContainsFunc(a, func(x string) bool { return slices.Contains(b, x) })
}

// tunnel is a byte stream in the binary messages of a WebSocket connection.
type tunnel struct {
	*websocket.Conn
	message  io.Reader
	deadline atomic.Pointer[time.Time] // of writes
}

// Read implements net.Conn.
func (t *tunnel) Read(p []byte) (int, error) {
	for {
		if t.message == nil {
			kind, message, err := t.NextReader()
			switch {
			case websocket.IsCloseError(err, websocket.CloseNormalClosure):
				return 0, io.EOF
			case err != nil:
				return 0, err
			case kind != websocket.BinaryMessage:
				return 0, fmt.Errorf("tunnel: a message of type %d: %w", kind, errProtocol)
			}
			t.message = message
		}
		n, err := t.message.Read(p)
		if errors.Is(err, io.EOF) {
			t.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write implements net.Conn.
func (t *tunnel) Write(p []byte) (int, error) {
	if end := t.deadline.Load(); end != nil {
		if err := t.Conn.SetWriteDeadline(*end); err != nil {
			return 0, err
		}
	}
	if err := t.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite implements halfCloser: the client answers with its own last message.
func (t *tunnel) CloseWrite() error { return closeMessages(t.Conn) }

// SetWriteDeadline implements net.Conn, also for a Write that is under way.
func (t *tunnel) SetWriteDeadline(end time.Time) error {
	t.deadline.Store(&end)
	return t.NetConn().SetWriteDeadline(end)
}

// SetDeadline implements net.Conn.
func (t *tunnel) SetDeadline(end time.Time) error {
	return errors.Join(t.SetReadDeadline(end), t.SetWriteDeadline(end))
}

func closeMessages(ws *websocket.Conn) error {
	return ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""),
		time.Now().Add(linger))
}

// channels is a WebSocket connection whose messages begin with a channel's number.
type channels struct {
	ws   *websocket.Conn
	text bool // base64, with the channel's number as a digit
	five bool // v5: the client closes channels one by one
	done chan struct{}

	inboxes map[byte]*inbox // what is read; not changed
	writing sync.Mutex
}

// serveChannels reads the connection's messages into the inboxes of the
// channels that are read; what comes on other channels is dropped.
func serveChannels(ws *websocket.Conn, read ...byte) *channels {
	protocol := ws.Subprotocol()
	c := &channels{
		ws: ws, text: strings.HasSuffix(protocol, protocolChannels64), five: strings.HasPrefix(protocol, versionFive),
		done: make(chan struct{}), inboxes: map[byte]*inbox{},
	}
	for _, channel := range read {
		c.inboxes[channel] = newInbox()
	}
	go func() {
		defer close(c.done)
		for c.readMessage() == nil {
		}
		for _, b := range c.inboxes {
			b.finish(errStreamReset)
		}
	}()
	return c
}

func (c *channels) readMessage() error {
	kind, message, err := c.ws.NextReader()
	if err != nil {
		return err
	}
	if kind != websocket.BinaryMessage && !c.text {
		return fmt.Errorf("channels: a message of type %d: %w", kind, errProtocol)
	}
	var first [1]byte
	if _, err := io.ReadFull(message, first[:]); err != nil {
		return fmt.Errorf("channels: an empty message: %w", errProtocol)
	}
	if c.text {
		first[0] -= '0'
		message = base64.NewDecoder(base64.StdEncoding, message)
	}
	if c.five && first[0] == channelClose {
		if _, err := io.ReadFull(message, first[:]); err != nil {
			return fmt.Errorf("channels: a close without a channel: %w", errProtocol)
		}
		if b := c.inboxes[first[0]]; b != nil {
			b.finish(io.EOF)
		}
		return nil
	}
	b := c.inboxes[first[0]]
	if b == nil {
		return nil // the next NextReader drops it
	}
	const whole = 1 << 62
	if err := b.fill(message, whole); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// writer returns the writing half of a channel.
func (c *channels) writer(channel byte) *channelWriter {
	return &channelWriter{channels: c, channel: channel}
}

// close tells the client that all is said; it may take a moment to go by itself.
func (c *channels) close() {
	for _, b := range c.inboxes {
		b.finish(errStreamReset)
	}
	_ = c.ws.NetConn().SetWriteDeadline(time.Now().Add(linger)) // a Write under way ends
	_ = closeMessages(c.ws)                                     // a client that is gone needs no last message
	_ = c.ws.SetReadDeadline(time.Now().Add(linger))
	<-c.done
	_ = c.ws.Close()
}

// channelWriter is the writing half of one channel. Closing it only keeps the
// server from writing more: the protocols have no message for it.
type channelWriter struct {
	channels *channels
	channel  byte

	mu     sync.Mutex
	closed bool // guarded by mu
}

// Write sends p as one message.
func (w *channelWriter) Write(p []byte) (int, error) {
	buf := make([]byte, 1+len(p))
	copy(buf[1:], p)
	if err := w.send(buf); err != nil {
		return 0, err
	}
	return len(p), nil
}

// send sends a message; its first byte is free for the channel's number.
func (w *channelWriter) send(buf []byte) error {
	w.mu.Lock()
	closed := w.closed
	w.mu.Unlock()
	if closed {
		return net.ErrClosed
	}
	kind := websocket.BinaryMessage
	buf[0] = w.channel
	if w.channels.text {
		var text bytes.Buffer
		text.WriteByte('0' + w.channel)
		text.WriteString(base64.StdEncoding.EncodeToString(buf[1:]))
		kind, buf = websocket.TextMessage, text.Bytes()
	}
	w.channels.writing.Lock()
	defer w.channels.writing.Unlock()
	return w.channels.ws.WriteMessage(kind, buf)
}

// ReadFrom implements io.ReaderFrom: a message is what one Read of r returns.
func (w *channelWriter) ReadFrom(r io.Reader) (total int64, err error) {
	buf := make([]byte, 1+streamBuffer)
	for {
		n, err := r.Read(buf[1:])
		if n > 0 {
			if writeErr := w.send(buf[:1+n]); writeErr != nil {
				return total, writeErr
			}
			total += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// Close implements io.Closer.
func (w *channelWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	return nil
}
