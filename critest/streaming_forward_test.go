package critest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// forwarded is kubectl's port-forward to a pod.
type forwarded struct {
	ports []uint16 // the local ones
	ended <-chan error
	said  *screen // its errors
}

// forwardURL asks for a stream to the pod's ports.
func (p *pod) forwardURL() *url.URL {
	p.t.Helper()
	answer, err := raw.PortForward(p.t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.id})
	if err != nil {
		p.t.Fatal(err)
	}
	u, err := url.Parse(answer.Url)
	if err != nil {
		p.t.Fatal(err)
	}
	return u
}

// forward runs kubectl's port-forward until the end of t.
func (p *pod) forward(t *testing.T, transport string, ports ...string) *forwarded {
	t.Helper()
	u := p.forwardURL()
	config := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	var dialer httpstream.Dialer
	var err error
	if transport == "SPDY" {
		roundTripper, upgrader, tripErr := spdy.RoundTripperFor(config)
		dialer, err = spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, u), tripErr
	} else {
		dialer, err = portforward.NewSPDYOverWebsocketDialerForStreaming(u, config)
	}
	if err != nil {
		t.Fatal(err)
	}
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	f := &forwarded{ended: ended, said: &screen{}}
	forwarder, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, ports, stop, ready, io.Discard, f.said)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		ended <- forwarder.ForwardPorts()
		close(ended)
	}()
	t.Cleanup(func() {
		close(stop)
		<-ended
	})
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	got, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range got {
		f.ports = append(f.ports, port.Local)
	}
	return f
}

// dial connects to the i-th port.
func (f *forwarded) dial(i int) (*net.TCPConn, error) {
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(f.ports[i]))))
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// exchange sends data, closes that half and returns all that comes back.
func (f *forwarded) exchange(i int, data []byte) ([]byte, error) {
	conn, err := f.dial(i)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		sent <- errors.Join(err, conn.CloseWrite())
	}()
	back, err := io.ReadAll(conn)
	return back, errors.Join(err, <-sent)
}

// pid is the container's main process.
func (c *container) pid() int {
	c.t.Helper()
	answer, err := node.CRI.ContainerStatus(c.t.Context(), c.id, true)
	if err != nil {
		c.t.Fatal(err)
	}
	var shown struct{ PID int }
	if err := json.Unmarshal([]byte(answer.Info["info"]), &shown); err != nil || shown.PID <= 0 {
		c.t.Fatalf("%v: no pid in %s", err, answer.Info)
	}
	return shown.PID
}

// listen makes a server in the network namespace of c's pod until the test's end.
func (c *container) listen(network, address string, handle func(*net.TCPConn)) (port string) {
	c.t.Helper()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", c.pid()))
	if err != nil {
		c.t.Fatal(err)
	}
	defer ns.Close()
	var l net.Listener
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
			l, err = net.Listen(network, net.JoinHostPort(address, "0"))
		}
	}()
	<-done
	if err != nil {
		c.t.Fatal(err)
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
	c.t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		c.t.Fatal(err)
	}
	return port
}

// echo sends back what comes, all of it.
func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c) // the client notices what is missing
}

// Ports of the pod's own loopback interface are reached by IPv4 and IPv6, with
// the runtime's own network and with plugins, and no other pod is.
func TestPortForward(t *testing.T) {
	begin(t)
	for name, start := range map[string]func(t *testing.T){
		"CNI": func(*testing.T) {},
		"builtin": func(t *testing.T) {
			t.Helper()
			differs(t, "has no network of its own")
			elsewhere(t, func(o *harness.Options) { o.Builtin = true })
		},
	} {
		t.Run(name, func(t *testing.T) {
			start(t)
			testPortForward(t)
		})
	}
}

func testPortForward(t *testing.T) {
	t.Helper()
	p := run(t, podNetwork)
	c := p.start("sleep 1000")
	four, six := c.listen("tcp4", "127.0.0.1", echo), c.listen("tcp6", "::1", echo)
	all := c.listen("tcp", "::", echo)
	p.start("", withImage(t, "web"))
	get(t, net.JoinHostPort(p.status().Network.GetIp(), "8080")) // kubectl ends at a refusal
	eachTransport(t, func(t *testing.T, transport string) {
		f := p.forward(t, transport, "0:"+four, "0:"+six, "0:"+all, "0:8080")
		for i, name := range []string{"127.0.0.1", "::1", "all addresses"} {
			if got, err := f.exchange(i, []byte(name)); err != nil || string(got) != name {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				want := bytes.Repeat([]byte{byte(i)}, 1+i*1000)
				if got, err := f.exchange(i%3, want); err != nil || !bytes.Equal(got, want) {
					t.Errorf("connection %d: %d of %d bytes, or others, %v", i, len(got), len(want), err)
				}
			})
		}
		all.Wait()
		if got := get(t, fmt.Sprintf("127.0.0.1:%d", f.ports[3])); !strings.Contains(got, "It works") {
			t.Errorf("the web server says %q", got)
		}
	})
}

// Each of many connections gets its own bytes, at full speed in both directions.
func TestPortForwardLargeData(t *testing.T) {
	begin(t)
	p := run(t, podNetwork)
	port := p.start("sleep 1000").listen("tcp4", "127.0.0.1", echo)
	eachTransport(t, func(t *testing.T, transport string) {
		f := p.forward(t, transport, "0:"+port)
		const size = 64 << 20
		conn, err := f.dial(0)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		sent, got := sha256.New(), sha256.New()
		wrote := make(chan error, 1)
		go func() {
			random := io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
			_, err := io.Copy(io.MultiWriter(conn, sent), random)
			wrote <- errors.Join(err, conn.CloseWrite())
		}()
		n, err := io.Copy(got, conn)
		if err := errors.Join(err, <-wrote); err != nil || n != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
			t.Errorf("%d bytes came back of %d, or others: %v", n, size, err)
		}
	})
}

// The end of one connection, of whatever kind, leaves the others; that there is
// nothing at a port is said.
func TestPortForwardErrors(t *testing.T) {
	begin(t)
	p := run(t, podNetwork)
	c := p.start("sleep 1000")
	echoes := c.listen("tcp4", "127.0.0.1", echo)
	resets := c.listen("tcp4", "127.0.0.1", func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	})
	gone := make(chan error, 8)
	floods := c.listen("tcp4", "127.0.0.1", func(c *net.TCPConn) {
		_, err := io.Copy(c, rand.NewChaCha8([32]byte{}))
		gone <- err
	})
	eachTransport(t, func(t *testing.T, transport string) {
		f := p.forward(t, transport, "0:"+echoes, "0:"+resets)
		lives, err := f.dial(0)
		if err != nil {
			t.Fatal(err)
		}
		defer lives.Close()
		says := func(word string) {
			t.Helper()
			back := make([]byte, len(word))
			_, err := io.WriteString(lives, word)
			if _, readErr := io.ReadFull(lives, back); err != nil || readErr != nil || string(back) != word {
				t.Errorf("%q, %v, %v, want %q", back, err, readErr, word)
			}
		}
		says("before")
		if got, err := f.exchange(1, []byte("x")); len(got) > 0 {
			t.Errorf("a connection that the pod has reset: %q, %v", got, err)
		}
		says("after a reset by the pod")
		data, _ := streams(t, p.session(t), floods)
		if _, err := io.ReadFull(data, make([]byte, 1<<20)); err != nil {
			t.Error(err)
		}
		if err := data.Reset(); err != nil {
			t.Error(err)
		}
		if err := <-gone; err == nil {
			t.Error("the pod could write to nobody")
		}
		says("after a reset by the client")
		// kubectl ends a session in which something was refused.
		refused := p.forward(t, transport, "0:1")
		if got, err := refused.exchange(0, nil); len(got) > 0 {
			t.Errorf("a port where nothing is: %q, %v", got, err)
		}
		says("after a refusal in another session")
	})
}

// A pod on the host's network has the host's ports; one that is stopped has none.
func TestPortForwardHostNetwork(t *testing.T) {
	begin(t)
	p := run(t)
	port := p.start("sleep 1000").listen("tcp4", "127.0.0.1", echo)
	eachTransport(t, func(t *testing.T, transport string) {
		if got, err := p.forward(t, transport, "0:"+port).exchange(0, []byte("host")); err != nil || string(got) != "host" {
			t.Errorf("%q, %v", got, err)
		}
	})
	late := p.session(t)
	if err := node.CRI.StopPodSandbox(context.Background(), p.id); err != nil {
		t.Fatal(err)
	}
	_, err := raw.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.id})
	if !peer {
		wantCode(t, err, codes.FailedPrecondition)
	}
	if why := refusal(t, late, port); !strings.Contains(why, p.id) {
		t.Errorf("a port of a stopped pod: %q", why)
	}
	if why := refusal(t, run(t, podNetwork).session(t), "1"); !strings.Contains(why, "refused") {
		t.Errorf("a port where nothing is: %q", why)
	}
}

// session is a connection for forwarded ports, without kubectl around it.
func (p *pod) session(t *testing.T) httpstream.Connection {
	t.Helper()
	roundTripper, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	conn, _, err := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, p.forwardURL()).Dial("portforward.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// streams opens the two streams of a connection.
func streams(t *testing.T, session httpstream.Connection, port string) (data, fault httpstream.Stream) {
	t.Helper()
	header := http.Header{}
	header.Set("port", port)
	header.Set("requestID", "1")
	header.Set("streamType", "error")
	fault, err := session.CreateStream(header)
	if err != nil {
		t.Fatal(err)
	}
	header.Set("streamType", "data")
	if data, err = session.CreateStream(header); err != nil {
		t.Fatal(err)
	}
	return data, fault
}

// refusal is what the error stream of a connection says.
func refusal(t *testing.T, session httpstream.Connection, port string) string {
	t.Helper()
	_, fault := streams(t, session, port)
	why, err := io.ReadAll(fault)
	if err != nil {
		t.Error(err)
	}
	return string(why)
}
