package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// fakeContainers answers streams in the place of containers.
type fakeContainers struct {
	exec func(ctx context.Context, s sandbox.Streams) (int32, error)
	dial func(ctx context.Context, port uint16) (net.Conn, error)
}

func (f *fakeContainers) Exec(ctx context.Context, _ string, _ []string, s sandbox.Streams) (int32, error) {
	return f.exec(ctx, s)
}

func (f *fakeContainers) Attach(ctx context.Context, _ string, s sandbox.Streams) error {
	_, err := f.exec(ctx, s)
	return err
}

func (f *fakeContainers) Dial(ctx context.Context, _ string, port uint16) (net.Conn, error) {
	return f.dial(ctx, port)
}

// serveStreams runs a server of streams; the function that it returns stops it.
func serveStreams(t *testing.T, config StreamingConfig, c containers) (*streaming, func()) {
	t.Helper()
	s, err := newStreaming(config, c)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, l) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := within(t, "the end of the server", done); err != nil {
			t.Error(err)
		}
		if len(s.open) > 0 {
			t.Errorf("%d sessions are left", len(s.open))
		}
	})
	t.Cleanup(stop)
	return s, stop
}

// keyPair makes a certificate for the loopback addresses.
func keyPair(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func eachTransport(t *testing.T, test func(t *testing.T, webSocket bool)) {
	t.Run("SPDY", func(t *testing.T) { test(t, false) })
	t.Run("WebSocket", func(t *testing.T) { test(t, true) })
}

func clientConfig() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// connect runs the kubelet's client of exec and attach.
func connect(ctx context.Context, webSocket bool, address string, o remotecommand.StreamOptions) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	executor, err := remotecommand.NewSPDYExecutor(clientConfig(), http.MethodPost, u)
	if webSocket {
		executor, err = remotecommand.NewWebSocketExecutor(clientConfig(), http.MethodGet, address)
	}
	if err != nil {
		return err
	}
	return executor.StreamWithContext(ctx, o)
}

func mustURL(t *testing.T, s *streaming, request any) string {
	t.Helper()
	address, err := s.url(request)
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func TestTokens(t *testing.T) {
	now := time.Unix(1e9, 0)
	k := newTokens(func() time.Time { return now })
	put := func() string {
		t.Helper()
		token, err := k.put("request")
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	once := put()
	if k.take(once) != "request" || k.take(once) != nil || k.take("") != nil {
		t.Error("a token is good once")
	}
	late, later := put(), put()
	now = now.Add(tokenLife)
	if k.take(late) == nil {
		t.Error("a token is good for its whole life")
	}
	now = now.Add(1)
	if k.take(later) != nil {
		t.Error("a token expires")
	}
	seen := map[string]bool{}
	for range maxTokens {
		seen[put()] = true
	}
	if _, err := k.put("one more"); !errors.Is(err, errTooMany) || len(seen) != maxTokens {
		t.Errorf("%d tokens, then %v", len(seen), err)
	}
	now = now.Add(tokenLife + 1)
	put()
	if len(k.waiting) != 1 || k.oldest.Len() != 1 {
		t.Errorf("%d expired tokens are kept", len(k.waiting)-1)
	}
}

func TestStreamURL(t *testing.T) {
	cert, key := keyPair(t)
	for name, test := range map[string]struct {
		config StreamingConfig
		prefix string
	}{
		"default":       {StreamingConfig{}, "http://127.0.0.1:"},
		"IPv6":          {StreamingConfig{Address: "::1"}, "http://[::1]:"},
		"IPv6 and TLS":  {StreamingConfig{Address: "::1", CertFile: cert, KeyFile: key}, "https://[::1]:"},
		"TLS":           {StreamingConfig{Address: "127.0.0.1", CertFile: cert, KeyFile: key}, "https://127.0.0.1:"},
		"all addresses": {StreamingConfig{Address: "0.0.0.0"}, "http://127.0.0.1:"},
		"all of IPv6":   {StreamingConfig{Address: "::"}, "http://[::1]:"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeContainers{exec: func(_ context.Context, s sandbox.Streams) (int32, error) {
				_, err := io.WriteString(s.Stdout, "hello")
				return 3, err
			}}
			s, _ := serveStreams(t, test.config, f)
			eachTransport(t, func(t *testing.T, webSocket bool) {
				address := mustURL(t, s, &runtimeapi.ExecRequest{Stdout: true})
				if !strings.HasPrefix(address, test.prefix) {
					t.Errorf("%s, want %s...", address, test.prefix)
				}
				var out bytes.Buffer
				err := connect(t.Context(), webSocket, address, remotecommand.StreamOptions{Stdout: &out})
				var exit utilexec.CodeExitError
				if !errors.As(err, &exit) || exit.Code != 3 || out.String() != "hello" {
					t.Errorf("%v, %q", err, out.String())
				}
			})
		})
	}
	for _, config := range []StreamingConfig{{Address: "localhost"}, {CertFile: "/no/such/file", KeyFile: key}, {CertFile: cert}} {
		if _, err := newStreaming(config, nil); err == nil {
			t.Errorf("%+v: no error", config)
		}
	}
}

func TestStreamErrorsReachTheClient(t *testing.T) {
	f := &fakeContainers{exec: func(context.Context, sandbox.Streams) (int32, error) {
		return 0, fmt.Errorf("exec in container x: no such \xff command: %w", sandbox.ErrState)
	}}
	s, _ := serveStreams(t, StreamingConfig{}, f)
	eachTransport(t, func(t *testing.T, webSocket bool) {
		for _, request := range []any{&runtimeapi.ExecRequest{Stdout: true}, &runtimeapi.AttachRequest{Stdout: true}} {
			err := connect(t.Context(), webSocket, mustURL(t, s, request), remotecommand.StreamOptions{Stdout: io.Discard})
			if err == nil || !strings.Contains(err.Error(), "exec in container x: no such \uFFFD command") {
				t.Errorf("%T: %v", request, err)
			}
		}
	})
}

// forward connects to a server's port-forward and returns its connection.
func dialForward(t *testing.T, webSocket bool, address string) httpstream.Connection {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	var dialer httpstream.Dialer
	if webSocket {
		dialer, err = portforward.NewSPDYOverWebsocketDialerForStreaming(u, clientConfig())
	} else {
		roundTripper, upgrader, tripErr := spdy.RoundTripperFor(clientConfig())
		dialer, err = spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, u), tripErr
	}
	if err != nil {
		t.Fatal(err)
	}
	conn, protocol, err := dialer.Dial("portforward.k8s.io")
	if err != nil || protocol != "portforward.k8s.io" {
		t.Fatalf("%q, %v", protocol, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// openPair opens the two streams of a forwarded connection.
func openPair(conn httpstream.Connection, id, port string) (data, fault httpstream.Stream, err error) {
	header := http.Header{}
	header.Set("port", port)
	header.Set("requestID", id)
	header.Set("streamType", "error")
	if fault, err = conn.CreateStream(header); err != nil {
		return nil, nil, err
	}
	_ = fault.Close()
	header.Set("streamType", "data")
	data, err = conn.CreateStream(header)
	return data, fault, err
}

// pod is a listener whose connections are served by handle.
func pod(t *testing.T, handle func(*net.TCPConn)) *fakeContainers {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				handle(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return &fakeContainers{dial: func(ctx context.Context, port uint16) (net.Conn, error) {
		if port != 80 {
			return nil, fmt.Errorf("connect to port %d: refused", port)
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	}}
}

// Many connections share a session, each with its own fate: half-closed,
// reset by the pod, refused, or taken back by the client.
func TestPortForwardStreams(t *testing.T) {
	served := make(chan error, 1)
	s, _ := serveStreams(t, StreamingConfig{}, pod(t, func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		word, err := in.ReadString('\n')
		switch {
		case word == "reset\n":
			_ = c.SetLinger(0)
		case word == "abandoned\n":
			_, err = io.Copy(c, endless{})
			served <- err
		case err == nil:
			var rest []byte
			rest, err = io.ReadAll(in) // until the client has closed its half
			_, _ = fmt.Fprintf(c, "%s%s, %v", word, rest, err)
		}
	}))
	eachTransport(t, func(t *testing.T, webSocket bool) {
		conn := dialForward(t, webSocket, mustURL(t, s, &runtimeapi.PortForwardRequest{}))
		say := func(id, port, text string, close bool) (string, string) {
			data, fault, err := openPair(conn, id, port)
			if err != nil {
				t.Errorf("%s: %v", id, err)
				return "", ""
			}
			said := make(chan string, 1)
			go func() { // beside: the client's library stops at a stream that is not read
				why, _ := io.ReadAll(fault)
				said <- string(why)
			}()
			_, _ = io.WriteString(data, text)
			if close {
				_ = data.Close()
			}
			answer, _ := io.ReadAll(data)
			why := <-said
			conn.RemoveStreams(data, fault)
			return string(answer), why
		}
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				id := fmt.Sprint("many ", i)
				if got, why := say(id, "80", id+"\nrest", true); got != id+"\nrest, <nil>" || why != "" {
					t.Errorf("%s: %q, %q", id, got, why)
				}
				if i%10 == 0 {
					if got, why := say(id+" reset", "80", "reset\n", false); got != "" || why != "" {
						t.Errorf("%s, reset: %q, %q", id, got, why)
					}
				}
				if i%10 == 1 {
					if got, why := say(id+" refused", "81", "", false); got != "" || why != "connect to port 81: refused" {
						t.Errorf("%s, refused: %q, %q", id, got, why)
					}
				}
			})
		}
		all.Wait()
		data, _, err := openPair(conn, "abandoned", "80")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(data, "abandoned\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(data, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		if err := data.Reset(); err != nil {
			t.Fatal(err)
		}
		if err := within(t, "the end of an abandoned connection", served); err == nil {
			t.Error("the pod could write to nobody without end")
		}
		if got, why := say("last", "80", "last\n", true); got != "last\n, <nil>" || why != "" {
			t.Errorf("after all of this: %q, %q", got, why)
		}
		for name, port := range map[string]string{"no port": "", "0": "0", "text": "http", "large": "65536", "negative": "-1"} {
			if data, _, err := openPair(conn, name, port); err == nil {
				if _, err := io.ReadAll(data); err != nil {
					t.Errorf("port %s: %v", name, err)
				}
			}
		}
	})
}

// endless is an input without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// Whatever a client does not do, its session ends and nothing of it is left:
// goroutines are counted at the end of all tests.
func TestStreamClientVanishes(t *testing.T) {
	ended := make(chan error, 1)
	f := &fakeContainers{exec: func(ctx context.Context, s sandbox.Streams) (int32, error) {
		_, _ = io.WriteString(s.Stdout, "x")
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return 0, ctx.Err()
	}}
	s, _ := serveStreams(t, StreamingConfig{CreationTimeout: 50 * time.Millisecond}, f)
	eachTransport(t, func(t *testing.T, webSocket bool) {
		for _, tty := range []bool{false, true} {
			ctx, cancel := context.WithCancel(t.Context())
			address := mustURL(t, s, &runtimeapi.ExecRequest{Stdin: true, Stdout: true, Tty: tty})
			in, w := io.Pipe()
			err := connect(ctx, webSocket, address, remotecommand.StreamOptions{Stdin: in, Stdout: cancelling{cancel}, Tty: tty})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("terminal %t: %v", tty, err)
			}
			_ = w.Close()
			if err := within(t, "the end of the command", ended); !errors.Is(err, errClientGone) {
				t.Errorf("terminal %t: %v", tty, err)
			}
		}
	})
	t.Run("opens no streams", func(t *testing.T) {
		address, err := url.Parse(mustURL(t, s, &runtimeapi.ExecRequest{Stdout: true}))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n", address.Path)
		if _, err := io.ReadAll(conn); err != nil { // until the server gives up
			t.Error(err)
		}
	})
}

// cancelling gives up at the first byte of output.
type cancelling struct{ cancel context.CancelFunc }

func (c cancelling) Write(p []byte) (int, error) {
	c.cancel()
	return len(p), nil
}

// The daemon's end tells the clients, and waits for nobody who does not read.
func TestStreamShutDown(t *testing.T) {
	eachTransport(t, func(t *testing.T, webSocket bool) {
		running := make(chan struct{})
		f := &fakeContainers{exec: func(ctx context.Context, _ sandbox.Streams) (int32, error) {
			close(running)
			<-ctx.Done()
			return 0, ctx.Err()
		}}
		s, stop := serveStreams(t, StreamingConfig{}, f)
		result := make(chan error, 1)
		address := mustURL(t, s, &runtimeapi.AttachRequest{Stdout: true})
		go func() {
			result <- connect(t.Context(), webSocket, address, remotecommand.StreamOptions{Stdout: io.Discard})
		}()
		<-running
		stop()
		if err := within(t, "the client's end", result); err == nil || !strings.Contains(err.Error(), errShutDown.Error()) {
			t.Errorf("%v", err)
		}
	})
}
