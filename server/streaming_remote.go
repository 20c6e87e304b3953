package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// wanted are the streams that a request has asked for.
type wanted struct{ stdin, stdout, stderr, tty bool }

// The streams of an exec or attach: names in SPDY, numbers in WebSocket.
const (
	streamStdin  = "stdin"
	streamStdout = "stdout"
	streamStderr = "stderr"
	streamError  = "error"
	streamResize = "resize"

	headerStreamType = "streamType"
)

const (
	channelStdin byte = iota
	channelStdout
	channelStderr
	channelError
	channelResize
)

// remote is the client's end of an exec or attach.
type remote interface {
	// streams returns what was asked for, for as long as ctx lasts.
	streams(ctx context.Context) sandbox.Streams
	// report says how it ended, and close ends the connection after that.
	report(outcome outcome)
	close()
	// gone is closed when the client is; socket is its connection.
	gone() <-chan struct{}
	socket() net.Conn
}

// outcome is how an exec or attach ended.
type outcome struct {
	code int32
	err  error
}

// object is the text of a Status object, what clients of version 4 and up read.
func (o outcome) object() []byte {
	type cause struct {
		Reason  string `json:"reason"`
		Message string `json:"message"`
	}
	type details struct {
		Causes []cause `json:"causes"`
	}
	status := struct {
		Metadata struct{} `json:"metadata"`
		Status   string   `json:"status"`
		Message  string   `json:"message,omitempty"`
		Reason   string   `json:"reason,omitempty"`
		Details  *details `json:"details,omitempty"`
		Code     int      `json:"code,omitempty"`
	}{Status: "Success"}
	switch {
	case o.err != nil:
		status.Status, status.Reason, status.Code = "Failure", "InternalError", http.StatusInternalServerError
		status.Message = o.text()
	case o.code != 0:
		status.Status, status.Reason = "Failure", "NonZeroExitCode"
		status.Message = o.text()
		status.Details = &details{Causes: []cause{{Reason: "ExitCode", Message: strconv.Itoa(int(o.code))}}}
	}
	text, err := json.Marshal(&status)
	if err != nil { // it has nothing that could not be encoded
		return fmt.Appendf(nil, `{"status":"Failure","message":%q}`, err)
	}
	return text
}

// text is what clients of older versions show; empty after success.
func (o outcome) text() string {
	switch {
	case o.err != nil:
		return strings.ToValidUTF8(o.err.Error(), "\uFFFD")
	case o.code != 0:
		return fmt.Sprintf("command terminated with exit code %d", o.code)
	}
	return ""
}

// remoteCommand upgrades the connection of a request and runs an exec or
// attach with its streams.
func (s *streaming) remoteCommand(w http.ResponseWriter, r *http.Request, want wanted, run func(context.Context, sandbox.Streams) (int32, error)) error {
	open := openSPDY
	if websocket.IsWebSocketUpgrade(r) {
		open = openChannels
	}
	client, err := open(w, r, want, s.config.CreationTimeout)
	if err != nil {
		return err
	}
	defer client.close()
	ctx, end := s.begin(r.Context(), client.socket(), client.gone())
	defer end()
	streams := client.streams(ctx)
	code, err := run(ctx, streams)
	for _, stream := range []io.Closer{streams.Stdout, streams.Stderr} {
		if stream != nil {
			_ = stream.Close() // a client that is gone needs no end of the stream
		}
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	client.report(outcome{code: code, err: err})
	return err
}

// sizes decodes the terminal's sizes that a client sends.
func sizes(ctx context.Context, r io.Reader) <-chan sandbox.TerminalSize {
	out := make(chan sandbox.TerminalSize)
	go func() {
		defer close(out)
		decoder := json.NewDecoder(r)
		for {
			var size sandbox.TerminalSize
			if err := decoder.Decode(&size); err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, errStreamReset) {
					klog.V(logProbing).InfoS("Ignore the terminal's sizes from here on", "why", err.Error())
				}
				_, _ = io.Copy(io.Discard, r) // the connection must not wait for us
				return
			}
			select {
			case out <- size:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// spdyRemote is an exec or attach over SPDY.
type spdyRemote struct {
	session *spdySession
	byType  map[string]*spdyStream
	tty     bool
}

// protocolRemote is the version of the streams' protocol over SPDY that all clients
// of today offer, kubectl, crictl and API servers first of all; the third
// and the second, without exit codes, only clients of before 2016 stop at.
const protocolRemote = "v4.channel.k8s.io"

// openSPDY upgrades the connection and waits until the client has opened all
// streams. An error has been answered if it could be.
func openSPDY(w http.ResponseWriter, r *http.Request, want wanted, timeout time.Duration) (remote, error) {
	if err := negotiate(w, r, []string{protocolRemote}); err != nil {
		return nil, err
	}
	missing := map[string]bool{streamError: true}
	for name, wanted := range map[string]bool{
		streamStdin: want.stdin, streamStdout: want.stdout, streamStderr: want.stderr,
		streamResize: want.tty,
	} {
		if wanted {
			missing[name] = true
		}
	}
	count := len(missing)
	opened := make(chan *spdyStream, count)
	session, err := upgradeSPDY(w, func(stream *spdyStream) error {
		name := stream.headers.Get(headerStreamType)
		if !missing[name] {
			return fmt.Errorf("stream %q is not asked for, or there already: %w", name, errProtocol)
		}
		delete(missing, name)
		opened <- stream
		return nil
	})
	if err != nil {
		return nil, err
	}
	c := &spdyRemote{session: session, byType: map[string]*spdyStream{}, tty: want.tty}
	expired := time.NewTimer(timeout)
	defer expired.Stop()
	for len(c.byType) < count {
		select {
		case stream := <-opened:
			c.byType[stream.headers.Get(headerStreamType)] = stream
			continue
		case <-session.done:
			err = errClientGone
		case <-r.Context().Done():
			err = context.Cause(r.Context())
		case <-expired.C:
			err = fmt.Errorf("the client did not open its streams within %v: %w", timeout, errProtocol)
		}
		session.close()
		return nil, err
	}
	return c, nil
}

func (c *spdyRemote) streams(ctx context.Context) sandbox.Streams {
	s := sandbox.Streams{Terminal: c.tty}
	if stream := c.byType[streamStdin]; stream != nil {
		s.Stdin = stream.inbox
	}
	if stream := c.byType[streamStdout]; stream != nil {
		s.Stdout = stream
	}
	if stream := c.byType[streamStderr]; stream != nil {
		s.Stderr = stream
	}
	if stream := c.byType[streamResize]; stream != nil {
		s.Resize = sizes(ctx, stream)
	}
	return s
}

func (c *spdyRemote) report(o outcome) {
	stream := c.byType[streamError]
	if _, err := stream.Write(o.object()); err == nil {
		_ = stream.Close()
	}
}

func (c *spdyRemote) close()                { c.session.close() }
func (c *spdyRemote) gone() <-chan struct{} { return c.session.done }
func (c *spdyRemote) socket() net.Conn      { return c.session.conn }

// channelRemote is an exec or attach over WebSocket.
type channelRemote struct {
	*channels
	want wanted
}

func openChannels(w http.ResponseWriter, r *http.Request, want wanted, _ time.Duration) (remote, error) {
	ws, err := upgradeWebSocket(w, r, []string{
		versionFive + protocolChannels, versionFour + protocolChannels, versionFour + protocolChannels64, protocolChannels, protocolChannels64,
	})
	if err != nil {
		return nil, err
	}
	var read []byte
	if want.stdin {
		read = append(read, channelStdin)
	}
	if want.tty {
		read = append(read, channelResize)
	}
	return &channelRemote{channels: serveChannels(ws, read...), want: want}, nil
}

func (c *channelRemote) streams(ctx context.Context) sandbox.Streams {
	s := sandbox.Streams{Terminal: c.want.tty}
	if c.want.stdin {
		s.Stdin = c.inboxes[channelStdin]
	}
	if c.want.stdout {
		s.Stdout = c.writer(channelStdout)
	}
	if c.want.stderr {
		s.Stderr = c.writer(channelStderr)
	}
	if c.want.tty {
		s.Resize = sizes(ctx, c.inboxes[channelResize])
	}
	return s
}

func (c *channelRemote) report(o outcome) {
	text := []byte(o.text())
	if p := c.ws.Subprotocol(); strings.HasPrefix(p, versionFive) || strings.HasPrefix(p, versionFour) {
		text = o.object()
	}
	if len(text) > 0 {
		_, _ = c.writer(channelError).Write(text) // the client may be gone
	}
}

func (c *channelRemote) gone() <-chan struct{} { return c.done }
func (c *channelRemote) socket() net.Conn      { return c.ws.NetConn() }
