package server

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// Verbosity of the log: what changes something, what probes do, what is only read.
const (
	logMutating klog.Level = 2
	logProbing  klog.Level = 4
	logReading  klog.Level = 6
)

// interceptor stands around every RPC: it refuses what isn't implemented,
// turns panics and errors into statuses, and logs.
type interceptor struct {
	unimplemented map[string]string
	observe       func(method, code string, took time.Duration)
	budget        budget
	// refused has the methods whose first refusal was logged: clients poll.
	refused sync.Map
}

func newInterceptor(observe func(method, code string, took time.Duration)) *interceptor {
	if observe == nil {
		observe = func(string, string, time.Duration) {}
	}
	return &interceptor{unimplemented: unimplemented(), observe: observe, budget: budget{of: map[string]int{}}}
}

func (i *interceptor) unary(ctx context.Context, req any, call *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, timeFor(call.FullMethod, req))
	defer cancel()
	err = i.guard(call.FullMethod, objectOf(req), func() (err error) {
		resp, err = handler(ctx, req)
		return err
	})
	i.log(call.FullMethod, err, time.Since(start), func() []any { return subject(req, resp) })
	if err != nil {
		return nil, statusOf(err)
	}
	return resp, nil
}

func (i *interceptor) stream(srv any, stream grpc.ServerStream, call *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	start := time.Now()
	err := withDeadline(stream, timeFor(call.FullMethod, nil), func(stream grpc.ServerStream) error {
		return i.guard(call.FullMethod, "", func() error { return handler(srv, stream) })
	})
	i.log(call.FullMethod, err, time.Since(start), func() []any { return nil })
	return statusOf(err)
}

// guard calls handle unless the method isn't implemented or too many are under
// way. A panic harms the one RPC: the daemon's other pods depend on it.
func (i *interceptor) guard(method, object string, handle func() error) (err error) {
	if err := checkImplemented(i.unimplemented, method); err != nil {
		return err
	}
	leave, err := i.budget.enter(object)
	if err != nil {
		return fmt.Errorf("%s: %w", rpcName(method), err)
	}
	defer leave()
	defer func() {
		if p := recover(); p != nil {
			klog.ErrorS(nil, "Panic", "rpc", rpcName(method), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fmt.Errorf("%s: %w; the log of %s has the details", rpcName(method), errPanic, runtimeName)
		}
	}()
	return handle()
}

// log writes one line for an RPC. What it is about comes from about, which
// never returns credentials, commands or environments.
func (i *interceptor) log(method string, err error, took time.Duration, about func() []any) {
	code := codes.OK
	if err != nil {
		code = codeOf(err)
	}
	i.observe(rpcName(method), code.String(), took)
	level := verbosity(method)
	if err == nil && !klog.V(level).Enabled() {
		return
	}
	if code == codes.Unimplemented {
		if _, again := i.refused.LoadOrStore(method, true); again && !klog.V(logProbing).Enabled() {
			return
		}
	}
	pairs := append([]any{"rpc", rpcName(method), "took", took}, about()...)
	// What the client did, or could have known, is no fault of this machine.
	clients := []codes.Code{
		codes.NotFound, codes.InvalidArgument, codes.Canceled, codes.FailedPrecondition, codes.Unimplemented,
	}
	switch {
	case err == nil:
		klog.V(level).InfoS("Answered", pairs...)
	case slices.Contains(clients, code):
		klog.InfoS("Refused", append(pairs, "code", code.String(), "why", err.Error())...)
	default:
		klog.ErrorS(err, "Not done", append(pairs, "code", code.String())...)
	}
}

func rpcName(method string) string { return path.Base(method) }

func verbosity(method string) klog.Level {
	name := rpcName(method)
	switch {
	case name == "ExecSync":
		return logProbing
	case strings.HasPrefix(name, "List"), strings.HasSuffix(name, "Status"),
		name == "Version", name == "RuntimeConfig", name == "ImageFsInfo":
		return logReading
	}
	return logMutating
}

// subject names what a request and its response are about.
func subject(req, resp any) []any {
	var pairs []any
	add := func(key, value string) {
		if value != "" {
			pairs = append(pairs, key, quoted(value))
		}
	}
	for _, message := range []any{req, resp} {
		if m, ok := message.(interface{ GetPodSandboxId() string }); ok {
			add("pod", m.GetPodSandboxId())
		}
		if m, ok := message.(interface{ GetContainerId() string }); ok {
			add("container", m.GetContainerId())
		}
	}
	switch m := req.(type) {
	case interface {
		GetConfig() *runtimeapi.PodSandboxConfig
	}:
		meta := m.GetConfig().GetMetadata()
		add("name", meta.GetNamespace()+"/"+meta.GetName())
	case interface {
		GetConfig() *runtimeapi.ContainerConfig
	}:
		add("name", m.GetConfig().GetMetadata().GetName())
		add("image", m.GetConfig().GetImage().GetImage())
	case interface{ GetImage() *runtimeapi.ImageSpec }:
		add("image", m.GetImage().GetImage())
	}
	return pairs
}
