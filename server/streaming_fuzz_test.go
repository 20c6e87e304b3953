package server

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
	"github.com/moby/spdystream/spdy"
)

// fedConn is a connection whose client has said everything that it will say.
type fedConn struct {
	net.Conn
}

func (fedConn) Write(p []byte) (int, error) { return len(p), nil }
func (fedConn) CloseWrite() error           { return nil }

// spdyBytes is what a client sends: frames with headers that are compressed together.
func spdyBytes(t testing.TB, frames ...spdy.Frame) []byte {
	t.Helper()
	var b bytes.Buffer
	framer, err := spdy.NewFramer(&b, &b)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if err := framer.WriteFrame(f); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// 64 KiB of headers unpack to as much as a thousand times of it, and cost the framer
// the length of a name times the number of its values.
func TestStreamHeadersAreBounded(t *testing.T) {
	long := strings.Repeat("n", 1<<20)
	many := http.Header{}
	for i := range maxStreamHeaders + 1 {
		many.Set(strings.Repeat("x", i+1), "v")
	}
	for name, headers := range map[string]http.Header{
		"values": {long: []string{strings.Repeat("\x00", 1<<20)}}, "name": {long: []string{"v"}}, "count": many,
	} {
		data := spdyBytes(t, &spdy.SynStreamFrame{StreamId: 1, Headers: headers})
		if len(data) > maxHeaderBytes {
			t.Fatalf("%s: %d bytes: not what is tested", name, len(data))
		}
		s, err := serveSPDY(fedConn{}, bytes.NewReader(data), func(*spdyStream) error {
			t.Errorf("%s: accepted", name)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		<-s.done
	}
}

// Whatever bytes come, the session's read loop ends, and so do its streams.
func FuzzSPDYFrames(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 1, 1, 0, 0, 2, 'h', 'i'})
	f.Add([]byte{0, 0, 0, 1, 0, 255, 255, 255, 'h'})
	f.Add([]byte{0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1})                            // PING
	f.Add([]byte{0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 5})                // RST_STREAM
	f.Add([]byte{0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0})                // GOAWAY
	f.Add([]byte{0x80, 3, 0, 1, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x78})   // SYN_STREAM, cut
	f.Add([]byte{0x80, 3, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0}) // huge
	f.Add(spdyBytes(f,
		&spdy.SynStreamFrame{StreamId: 1, Headers: http.Header{"Streamtype": {"stdin"}}},
		&spdy.DataFrame{StreamId: 1, Data: []byte("hello"), Flags: spdy.DataFlagFin},
		&spdy.SynStreamFrame{StreamId: 3, Headers: http.Header{"Streamtype": {"error"}, "Port": {"80"}, "Requestid": {"0"}}},
		&spdy.RstStreamFrame{StreamId: 3, Status: spdy.Cancel}))
	f.Fuzz(func(t *testing.T, data []byte) {
		var drained []chan struct{}
		s, err := serveSPDY(fedConn{}, bytes.NewReader(data), func(stream *spdyStream) error {
			done := make(chan struct{})
			drained = append(drained, done)
			go func() {
				defer close(done)
				_, _ = io.Copy(io.Discard, stream.inbox) // any end will do
			}()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		<-s.done
		for _, done := range drained {
			<-done
		}
	})
}

// Whatever one message holds, the channels' read loop goes on or ends.
func FuzzChannelMessage(f *testing.F) {
	f.Add("v5.channel.k8s.io", []byte{})
	f.Add("v5.channel.k8s.io", []byte{0, 'x'})
	f.Add("v5.channel.k8s.io", []byte{255})
	f.Add("v5.channel.k8s.io", []byte{255, 0})
	f.Add("v4.channel.k8s.io", []byte{4, '{'})
	f.Add("v4.base64.channel.k8s.io", []byte("0eA=="))
	f.Add("v4.base64.channel.k8s.io", []byte("0%"))
	f.Fuzz(func(t *testing.T, protocol string, data []byte) {
		if !strings.HasSuffix(protocol, protocolChannels) || strings.ContainsFunc(protocol, func(r rune) bool { return r < '!' || r > '~' || r == ',' }) {
			t.Skip("no protocol of channels")
		}
		ended := make(chan struct{})
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer close(ended)
			ws, err := upgradeWebSocket(w, r, []string{protocol})
			if err != nil {
				return
			}
			c := serveChannels(ws, channelStdin, channelResize)
			go func() { _, _ = io.Copy(io.Discard, c.inboxes[channelResize]) }() // any end will do
			_, _ = io.Copy(io.Discard, c.inboxes[channelStdin])
			c.close()
		}))
		defer server.Close()
		dialer := websocket.Dialer{Subprotocols: []string{protocol}}
		ws, resp, err := dialer.Dial("ws"+strings.TrimPrefix(server.URL, "http"), nil)
		if err != nil {
			t.Skip("no handshake")
		}
		defer resp.Body.Close()
		_ = ws.WriteMessage(websocket.BinaryMessage, data)
		_ = ws.Close()
		<-ended
	})
}
