package server

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/imageservice"
)

func pullRequest(name string) *runtimeapi.PullImageRequest {
	return &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}}
}

// An RPC that is under way when the server is told to stop gets its answer.
func TestStopWaits(t *testing.T) {
	images := newMemoryImages()
	under, goOn := make(chan struct{}), make(chan struct{})
	images.pull = func(context.Context, string, *imageservice.Auth) (*imageservice.Image, error) {
		close(under)
		<-goOn
		return &imageservice.Image{ID: "sha256:1"}, nil
	}
	config := testConfig(t, images)
	config.StopGrace = time.Minute
	s := serve(t, config)
	answered := make(chan error, 1)
	go func() {
		_, err := runtimeapi.NewImageServiceClient(s.conn).PullImage(t.Context(), pullRequest("x"))
		answered <- err
	}()
	within(t, "pull begins", under)
	s.stop()
	close(goOn)
	if err := within(t, "answer", answered); err != nil {
		t.Errorf("the pull under way: %v", err)
	}
	if err := within(t, "end of Serve", s.done); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// One that does not end by itself sees its context end.
func TestStopCancels(t *testing.T) {
	captureLog(t, "0")
	images := newMemoryImages()
	under := make(chan struct{})
	images.pull = func(ctx context.Context, _ string, _ *imageservice.Auth) (*imageservice.Image, error) {
		close(under)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	config := testConfig(t, images)
	config.StopGrace = time.Millisecond
	s := serve(t, config)
	answered := make(chan error, 1)
	go func() {
		_, err := runtimeapi.NewImageServiceClient(s.conn).PullImage(t.Context(), pullRequest("x"))
		answered <- err
	}()
	within(t, "pull begins", under)
	s.stop()
	if err := within(t, "answer", answered); err == nil {
		t.Error("the pull was answered")
	}
	// With 1 ms for it the handler may or may not have ended in time.
	if err := within(t, "end of Serve", s.done); err != nil && !strings.Contains(err.Error(), "still under way") {
		t.Errorf("Serve: %v", err)
	}
}

// One that ignores even that is reported, and does not keep the daemon.
func TestStopIsBounded(t *testing.T) {
	captureLog(t, "0")
	images := newMemoryImages()
	under, goOn := make(chan struct{}), make(chan struct{})
	images.pull = func(context.Context, string, *imageservice.Auth) (*imageservice.Image, error) {
		close(under)
		<-goOn
		return nil, errors.New("too late")
	}
	config := testConfig(t, images)
	config.StopGrace = time.Millisecond
	s := serve(t, config)
	answered := make(chan error, 1)
	go func() {
		_, err := runtimeapi.NewImageServiceClient(s.conn).PullImage(t.Context(), pullRequest("x"))
		answered <- err
	}()
	within(t, "pull begins", under)
	s.stop()
	err := within(t, "end of Serve", s.done)
	close(goOn)
	if err == nil || !strings.Contains(err.Error(), "still under way") {
		t.Errorf("Serve: %v", err)
	}
	within(t, "answer", answered)
}

func TestStopRemovesSocket(t *testing.T) {
	s := serve(t, testConfig(t, newMemoryImages()))
	socket := strings.TrimPrefix(s.conn.Target(), "unix://")
	if _, err := os.Stat(socket); err != nil {
		t.Fatal(err)
	}
	s.stop()
	if err := within(t, "end of Serve", s.done); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestServeEndsWithListener(t *testing.T) {
	server, err := New(testConfig(t, newMemoryImages()))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(shortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := server.Serve(t.Context(), l); err == nil {
		t.Error("served on a closed listener")
	}
}

// rawCodec sends bytes as they are: a client that doesn't check its strings.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func (rawCodec) Name() string { return "proto" }

var _ encoding.CodecV2 = rawCodec{}

func TestHostileMessages(t *testing.T) {
	conn := serve(t, testConfig(t, newMemoryImages())).conn
	for _, tc := range []struct {
		name string
		body []byte
		want codes.Code
	}{
		{"id that isn't UTF-8", []byte("\x0a\x02\xff\xfe"), codes.Internal},
		{"not protobuf", []byte("\xff\xff\xff"), codes.Internal},
		{"cut short", []byte("\x0a\x7fabc"), codes.Internal},
		{"oversize", append([]byte("\x0a\x80\x80\x80\x08"), make([]byte, maxMessageBytes)...), codes.ResourceExhausted},
		{"empty", nil, codes.InvalidArgument},
		{"unknown field", []byte("\x0a\x01a\xfa\x3f\x01x"), codes.NotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			captureLog(t, "0")
			var reply []byte
			err := conn.Invoke(t.Context(), statusMethod, tc.body, &reply, grpc.ForceCodecV2(rawCodec{}))
			if status.Code(err) != tc.want {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
	if _, err := runtimeapi.NewRuntimeServiceClient(conn).Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	good := testConfig(t, newMemoryImages())
	for name, spoil := range map[string]func(c *Config){
		"Runtime": func(c *Config) { c.Runtime = nil },
		"Images":  func(c *Config) { c.Images = nil },
		"cgroup":  func(c *Config) { c.CgroupDriver = "auto" },
	} {
		c := good
		spoil(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
