package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// idleStream is a stream whose client takes nothing.
type idleStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s idleStream) Context() context.Context { return s.ctx }

// Every RPC has a deadline though its client sets none; events have their queue.
func TestDeadlines(t *testing.T) {
	captureLog(t, "0")
	i := newInterceptor(nil)
	for _, service := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
		for _, m := range service.Methods {
			method := "/" + service.ServiceName + "/" + m.MethodName
			if checkImplemented(i.unimplemented, method) != nil {
				continue
			}
			left := time.Duration(0)
			if _, err := call(i, method, nil, func(ctx context.Context, _ any) (any, error) {
				if at, ok := ctx.Deadline(); ok {
					left = time.Until(at)
				}
				return nil, nil //nolint:nilnil // a handler of no interest
			}); err != nil || left <= 0 || left > longTime {
				t.Errorf("%s: %v from now, %v", m.MethodName, left, err)
			}
		}
		for _, s := range service.Streams {
			if limit := timeFor("/"+service.ServiceName+"/"+s.StreamName, nil); (limit == noLimit) != (s.StreamName == "GetContainerEvents") {
				t.Errorf("%s: %v", s.StreamName, limit)
			}
		}
	}
	for _, test := range []struct {
		method string
		req    any
		want   time.Duration
	}{
		{"ListContainers", nil, lookTime},
		{"StreamContainerStats", nil, lookTime},
		{"ContainerStatus", nil, lookTime},
		{"RunPodSandbox", nil, verbTime},
		{"PullImage", nil, longTime},
		{"StopContainer", &runtimeapi.StopContainerRequest{Timeout: 30}, verbTime + 30*time.Second},
		{"StopContainer", &runtimeapi.StopContainerRequest{Timeout: -1}, verbTime},
		{"StopContainer", &runtimeapi.StopContainerRequest{Timeout: 1 << 62}, verbTime + maxSeconds*time.Second},
		{"ExecSync", &runtimeapi.ExecSyncRequest{Timeout: 3}, verbTime + 3*time.Second},
		{"ExecSync", &runtimeapi.ExecSyncRequest{}, longTime},
	} {
		if got := timeFor("/runtime.v1.RuntimeService/"+test.method, test.req); got != test.want {
			t.Errorf("%s %v: %v, want %v", test.method, test.req, got, test.want)
		}
	}
}

// A list whose client takes nothing ends.
func TestStreamDeadline(t *testing.T) {
	begun := make(chan struct{})
	release := make(chan struct{})
	defer close(release)
	err := withDeadline(idleStream{ctx: t.Context()}, time.Millisecond, func(s grpc.ServerStream) error {
		close(begun)
		<-s.Context().Done()
		<-release // as Send does until the handler returns
		return nil
	})
	<-begun
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// What is stuck with one object leaves room for all others; all together are
// bounded, too.
func TestBudget(t *testing.T) {
	b := budget{of: map[string]int{}}
	var leave []func()
	take := func(object string) error {
		done, err := b.enter(object)
		if err == nil {
			leave = append(leave, done)
		}
		return err
	}
	for range maxCallsOfOne {
		if err := take("stuck"); err != nil {
			t.Fatal(err)
		}
	}
	if err := take("stuck"); codeOf(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "stuck") {
		t.Error(err)
	}
	for i := range maxCalls - maxCallsOfOne {
		if err := take(fmt.Sprint(i % 97)); err != nil {
			t.Fatal(i, err)
		}
	}
	for _, object := range []string{"", "other"} {
		if err := take(object); codeOf(err) != codes.ResourceExhausted {
			t.Errorf("%q: %v", object, err)
		}
	}
	for _, done := range leave {
		done()
	}
	if b.all != 0 || len(b.of) != 0 {
		t.Errorf("%d, %v are left", b.all, b.of)
	}
}

func TestObjects(t *testing.T) {
	for want, req := range map[string]any{
		"c": &runtimeapi.ExecSyncRequest{ContainerId: "c"},
		"p": &runtimeapi.CreateContainerRequest{PodSandboxId: "p"},
		"u": &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Uid: "u"}}},
		"i": &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "i"}},
		"":  &runtimeapi.ListContainersRequest{},
	} {
		if got := objectOf(req); got != want {
			t.Errorf("%T: %q, want %q", req, got, want)
		}
	}
}

// Thousands of connections that say nothing neither stop the clients that are
// there nor, once they have gone, new ones.
func TestConnectionsAreBounded(t *testing.T) {
	captureLog(t, "0")
	s, err := New(testConfig(t, newMemoryImages()))
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), "unix://"+filepath.Join(shortDir(t), "cri.sock"))
	if err != nil {
		t.Fatal(err)
	}
	client := runtimeapi.NewRuntimeServiceClient(serveOn(t, s, l).conn)
	if _, err := client.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	var silent []net.Conn
	for range maxConnections + 100 {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	// The last one is refused without a word; a server of HTTP/2 speaks first.
	_ = silent[len(silent)-1].SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := silent[len(silent)-1].Read(make([]byte, 1)); n != 0 || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read %d, %v", n, err)
	}
	if _, err := client.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("beside %d silent clients: %v", len(silent), err)
	}
}

// Strangers can open as many connections to the streams' port as they like.
func TestStreamStrangers(t *testing.T) {
	echo := &fakeContainers{exec: func(_ context.Context, s sandbox.Streams) (int32, error) {
		_, err := io.WriteString(s.Stdout, "here")
		return 0, err
	}}
	s, _ := serveStreams(t, StreamingConfig{}, echo)
	address := mustURL(t, s, &runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdout: true})
	host := strings.TrimPrefix(s.base.String(), "http://")
	for i := range 3 * maxStrangers {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 { // a head that never ends
			_, _ = io.WriteString(c, "POST /exec/")
		}
	}
	var out strings.Builder
	if err := connect(t.Context(), false, address, remotecommand.StreamOptions{Stdout: &out}); err != nil || out.String() != "here" {
		t.Errorf("%q, %v", &out, err)
	}
}

func TestSessionsAreBounded(t *testing.T) {
	s, _ := serveStreams(t, StreamingConfig{}, &fakeContainers{})
	s.mu.Lock()
	for range maxSessions {
		s.open[&session{}] = struct{}{}
	}
	s.mu.Unlock()
	if _, err := s.url(&runtimeapi.ExecRequest{}); status.Code(statusOf(err)) != codes.ResourceExhausted {
		t.Error(err)
	}
	s.mu.Lock()
	clear(s.open)
	s.mu.Unlock()
	if _, err := s.url(&runtimeapi.ExecRequest{}); err != nil {
		t.Error(err)
	}
}

// All sessions share the room for connections to pods.
func TestForwardedAreBounded(t *testing.T) {
	s, _ := serveStreams(t, StreamingConfig{}, pod(t, func(c *net.TCPConn) {
		_, _ = io.Copy(c, bufio.NewReader(c))
	}))
	s.forwarded = make(chan struct{}, 1)
	for _, webSocket := range []bool{false, true} {
		conn := dialForward(t, webSocket, mustURL(t, s, &runtimeapi.PortForwardRequest{}))
		data, _, err := openPair(conn, "1", "80")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(data, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := data.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		_, fault, err := openPair(conn, "2", "80")
		if err != nil {
			t.Fatal(err)
		}
		if why, err := io.ReadAll(fault); !strings.Contains(string(why), errTooMany.Error()) {
			t.Errorf("%q, %v", why, err)
		}
		_ = conn.Close()
		s.forwarded <- struct{}{} // waits until the first has left
		<-s.forwarded
	}
}
