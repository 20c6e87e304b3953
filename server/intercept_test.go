package server

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// lines collects the log.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	klog.Flush()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// captureLog takes the log of the test, at that verbosity.
func captureLog(t *testing.T, verbosity string) *lines {
	t.Helper()
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	// Not klog.State.Restore: it writes what a client's goroutine of an earlier test may be reading.
	t.Cleanup(func() {
		if err := errors.Join(flags.Set("v", "0"), flags.Set("stderrthreshold", "ERROR"), flags.Set("logtostderr", "true")); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(flags.Set("logtostderr", "false"), flags.Set("stderrthreshold", "FATAL"), flags.Set("v", verbosity)); err != nil {
		t.Fatal(err)
	}
	l := &lines{}
	klog.SetOutput(l)
	return l
}

const (
	stopMethod   = runtimeapi.RuntimeService_StopContainer_FullMethodName
	statusMethod = runtimeapi.RuntimeService_ContainerStatus_FullMethodName
)

func call(i *interceptor, method string, req any, handler grpc.UnaryHandler) (any, error) {
	return i.unary(context.Background(), req, &grpc.UnaryServerInfo{FullMethod: method}, handler)
}

func TestPanic(t *testing.T) {
	log := captureLog(t, "0")
	_, err := call(newInterceptor(nil), stopMethod, &runtimeapi.StopContainerRequest{ContainerId: "abc"},
		func(context.Context, any) (any, error) { panic("the secret of the panic") })
	if status.Code(err) != codes.Internal {
		t.Fatalf("got %v", err)
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the client sees %v", err)
	}
	for _, want := range []string{"the secret of the panic", "intercept_test.go", `container="abc"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
}

func TestStreamPanic(t *testing.T) {
	captureLog(t, "0")
	err := newInterceptor(nil).stream(nil, idleStream{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: "/runtime.v1.RuntimeService/Future"},
		func(any, grpc.ServerStream) error { panic("x") })
	if status.Code(err) != codes.Internal {
		t.Fatalf("got %v", err)
	}
}

func TestErrorHasNoResponse(t *testing.T) {
	captureLog(t, "0")
	resp, err := call(newInterceptor(nil), statusMethod, &runtimeapi.ContainerStatusRequest{},
		func(context.Context, any) (any, error) {
			return &runtimeapi.ContainerStatusResponse{}, sandbox.ErrNotFound
		})
	if resp != nil || status.Code(err) != codes.NotFound {
		t.Fatalf("got %v, %v", resp, err)
	}
}

func TestLogLevels(t *testing.T) {
	ok := func(context.Context, any) (any, error) {
		return &runtimeapi.CreateContainerResponse{ContainerId: "c1"}, nil
	}
	bad := func(context.Context, any) (any, error) { return nil, errors.New("disk full") }
	gone := func(context.Context, any) (any, error) { return nil, sandbox.ErrNotFound }
	create := &runtimeapi.CreateContainerRequest{
		PodSandboxId: "p1",
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
			Image:    &runtimeapi.ImageSpec{Image: "busybox"},
			Envs:     []*runtimeapi.KeyValue{{Key: "TOKEN", Value: []byte("hush")}},
			Command:  []string{"hush"},
		},
	}
	for _, tc := range []struct {
		name, verbosity, rpc string
		handler              grpc.UnaryHandler
		want                 []string // nil: no line at all
	}{
		{"mutating, quiet", "1", "CreateContainer", ok, nil},
		{"mutating", "2", "CreateContainer", ok, []string{"Answered", `pod="p1"`, `container="c1"`, `name="web"`, `image="busybox"`, "took="}},
		{"reading, quiet", "5", "ListContainers", ok, nil},
		{"reading", "6", "ListContainers", ok, []string{"Answered", `rpc="ListContainers"`}},
		{"status, quiet", "5", "ContainerStatus", ok, nil},
		{"probing, quiet", "3", "ExecSync", ok, nil},
		{"probing", "4", "ExecSync", ok, []string{"Answered"}},
		{"error", "0", "CreateContainer", bad, []string{"Not done", "disk full", `code="Unknown"`, `pod="p1"`}},
		{"refused", "0", "ContainerStatus", gone, []string{"Refused", `code="NotFound"`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log := captureLog(t, tc.verbosity)
			_, _ = call(newInterceptor(nil), "/runtime.v1.RuntimeService/"+tc.rpc, create, tc.handler)
			if tc.want == nil && log.String() != "" {
				t.Errorf("logged %s", log)
			}
			for _, want := range tc.want {
				if !strings.Contains(log.String(), want) {
					t.Errorf("the log lacks %q:\n%s", want, log)
				}
			}
			if strings.Contains(log.String(), "hush") {
				t.Errorf("the log has command or environment:\n%s", log)
			}
		})
	}
}

// Clients poll: an RPC that isn't there is worth one line.
func TestUnimplementedIsLoggedOnce(t *testing.T) {
	log := captureLog(t, "0")
	i := newInterceptor(nil)
	for range 3 {
		i.log(runtimeapi.RuntimeService_Attach_FullMethodName, errUnimplemented, time.Second, func() []any { return nil })
	}
	if n := strings.Count(log.String(), "Attach"); n != 1 {
		t.Errorf("%d lines:\n%s", n, log)
	}
}
