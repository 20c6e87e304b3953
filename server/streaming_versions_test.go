package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// channelClient speaks the messages of a WebSocket subprotocol as clients do:
// those for other languages than Go, and pages in a browser.
type channelClient struct {
	*testing.T
	*websocket.Conn
	text bool
}

func dialChannels(t *testing.T, address, protocol string) *channelClient {
	t.Helper()
	dialer := websocket.Dialer{HandshakeTimeout: time.Minute}
	if protocol != "" {
		dialer.Subprotocols = []string{protocol}
	}
	conn, answer, err := dialer.DialContext(t.Context(), strings.Replace(address, "http", "ws", 1), nil)
	if err != nil {
		t.Fatalf("%v, %v", err, answer)
	}
	t.Cleanup(func() { conn.Close() })
	if conn.Subprotocol() != protocol {
		t.Fatalf("the server speaks %q", conn.Subprotocol())
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &channelClient{T: t, Conn: conn, text: strings.Contains(protocol, "base64")}
}

func (c *channelClient) send(channel byte, data string) {
	c.Helper()
	kind, message := websocket.BinaryMessage, append([]byte{channel}, data...)
	if c.text {
		kind, message = websocket.TextMessage, fmt.Appendf(nil, "%d%s", channel, base64.StdEncoding.EncodeToString([]byte(data)))
	}
	if err := c.WriteMessage(kind, message); err != nil {
		c.Fatal(err)
	}
}

// next reads a message.
func (c *channelClient) next() (channel byte, data string, err error) {
	kind, message, err := c.ReadMessage()
	if err != nil {
		return 0, "", err
	}
	if c.text != (kind == websocket.TextMessage) || len(message) == 0 {
		return 0, "", fmt.Errorf("a message of type %d: %q", kind, message)
	}
	if !c.text {
		return message[0], string(message[1:]), nil
	}
	decoded, err := base64.StdEncoding.DecodeString(string(message[1:]))
	return message[0] - '0', string(decoded), err
}

// until reads until a channel has had want.
func (c *channelClient) until(channel byte, want string) {
	c.Helper()
	var all strings.Builder
	for !strings.Contains(all.String(), want) {
		at, data, err := c.next()
		if err != nil {
			c.Fatalf("channel %d: %v after %q, want %q", channel, err, all.String(), want)
		}
		if at == channel {
			all.WriteString(data)
		}
	}
}

func TestRemoteCommandVersions(t *testing.T) {
	s, _ := serveStreams(t, StreamingConfig{}, &fakeContainers{exec: func(_ context.Context, s sandbox.Streams) (int32, error) {
		word := make([]byte, 5)
		if _, err := io.ReadFull(s.Stdin, word); err != nil {
			return 0, err
		}
		_, outErr := s.Stdout.Write(bytes.ToUpper(word))
		_, errErr := s.Stderr.Write([]byte("problem"))
		if outErr != nil || errErr != nil {
			return 0, fmt.Errorf("%w, %w", outErr, errErr)
		}
		return 7, nil
	}})
	const object = `"causes":[{"reason":"ExitCode","message":"7"}]`
	for protocol, outcome := range map[string]string{
		"v5.channel.k8s.io": object, "v4.channel.k8s.io": object, "v4.base64.channel.k8s.io": object,
		"channel.k8s.io": "command terminated with exit code 7", "base64.channel.k8s.io": "command terminated with exit code 7",
	} {
		t.Run(protocol, func(t *testing.T) {
			address := mustURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdin: true, Stdout: true, Stderr: true})
			c := dialChannels(t, address, protocol)
			c.send(0, "hel")
			c.send(9, "for nobody")
			c.send(0, "lo")
			c.until(1, "HELLO")
			c.until(2, "problem")
			c.until(3, outcome)
			if _, _, err := c.next(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				t.Errorf("at the end: %v", err)
			}
		})
	}
}

// oneConn is a listener for one connection.
type oneConn struct {
	net.Listener // its address
	conns        chan net.Conn
}

func (l oneConn) Accept() (net.Conn, error) {
	if c, open := <-l.conns; open {
		return c, nil
	}
	return nil, net.ErrClosed
}

// A pipe holds nothing, so that the pong waits until the client reads, which it does after all
// it has to write.
func TestPongsThatWait(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := upgradeWebSocket(w, r, []string{"v5.channel.k8s.io"})
		if err != nil {
			return
		}
		c := serveChannels(ws, channelStdin)
		defer c.close()
		if _, err := io.CopyN(c.writer(channelStdout), c.inboxes[channelStdin], int64(len("hello, pong"))); err != nil {
			t.Error(err)
		}
	}))
	client, peer := net.Pipe()
	l := oneConn{Listener: server.Listener, conns: make(chan net.Conn, 1)}
	l.conns <- peer
	server.Listener = l
	server.Start()
	defer server.Close()
	defer close(l.conns)
	dialer := websocket.Dialer{
		Subprotocols:   []string{"v5.channel.k8s.io"},
		NetDialContext: func(context.Context, string, string) (net.Conn, error) { return client, nil },
	}
	conn, resp, err := dialer.DialContext(t.Context(), "ws://pipe/", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer conn.Close()
	c := &channelClient{T: t, Conn: conn}
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	c.SetPongHandler(func(text string) error {
		c.send(channelStdin, text)
		return nil
	})
	if err := c.WriteControl(websocket.PingMessage, []byte(", pong"), time.Time{}); err != nil {
		t.Fatal(err)
	}
	c.send(channelStdin, "hello")
	c.until(channelStdout, "hello, pong")
}

func TestPortForwardVersions(t *testing.T) {
	s, _ := serveStreams(t, StreamingConfig{}, pod(t, func(c *net.TCPConn) {
		_, _ = io.Copy(c, c)
	}))
	for _, protocol := range []string{"v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""} {
		t.Run(protocol, func(t *testing.T) {
			c := dialChannels(t, mustURL(t, s, &runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: []int32{80, 8080}}), protocol)
			c.send(0, "echo")
			got := map[byte]string{}
			for got[0] != "\x50\x00echo" || !strings.Contains(got[3], "refused") {
				at, data, err := c.next()
				if err != nil {
					t.Fatalf("%v after %q", err, got)
				}
				got[at] += data
			}
			// Every channel begins with its port, low byte first.
			if got[1] != "\x50\x00" || got[2] != "\x90\x1f" || !strings.HasPrefix(got[3], "\x90\x1f") {
				t.Errorf("%q", got)
			}
		})
	}
}

// Versions of SPDY that only clients of long ago stop at are refused, and the
// answer tells which there are.
func TestOldVersionsAreRefused(t *testing.T) {
	s, _ := serveStreams(t, StreamingConfig{}, &fakeContainers{})
	for _, versions := range [][]string{{"v3.channel.k8s.io"}, {"v2.channel.k8s.io", "channel.k8s.io"}, {""}, nil} {
		address := mustURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdout: true})
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Connection", "Upgrade")
		request.Header.Set("Upgrade", "SPDY/3.1")
		request.Header["X-Stream-Protocol-Version"] = versions
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if accepted := answer.Header.Values("X-Accepted-Stream-Protocol-Versions"); answer.StatusCode != http.StatusForbidden || !slices.Equal(accepted, []string{protocolRemote}) {
			t.Errorf("%q: %s, %q", versions, answer.Status, accepted)
		}
	}
}
