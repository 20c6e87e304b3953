package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/server/connlimit"
)

const (
	// maxMessageBytes is what the kubelet's client accepts, and what requests
	// may have: some pods have megabytes of environment.
	maxMessageBytes = 16 << 20
	// bufferBytes keeps a connection small; messages are seldom larger.
	bufferBytes = 16 << 10
	// setupTimeout ends a connection that never says a word.
	setupTimeout = 20 * time.Second
	// A kubelet has two connections, the upstream suite keeps two of each of its 142 specs. A
	// client that reads nothing is asked whether it lives, and its connection closed.
	maxConnections = 1024
	maxPerClient   = 1024 // RPCs under way on one connection
	maxHeaders     = 64 << 10
	aliveEvery     = time.Minute
	aliveTimeout   = 20 * time.Second
)

// Serve answers requests on l, and closes it, until ctx ends. RPCs under way
// then have Config.StopGrace to finish before their contexts end too; the
// error says so when some did not end even then. Streams end with ctx. No
// container is stopped.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	streams, err := s.streaming.listen(ctx)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	inner, stopStreams := context.WithCancel(ctx)
	streamed := make(chan error, 1)
	go func() { streamed <- s.streaming.serve(inner, streams) }()
	err = s.serveRPCs(ctx, l)
	stopStreams()
	return errors.Join(err, <-streamed)
}

func (s *Server) serveRPCs(ctx context.Context, l net.Listener) error {
	g := s.grpcServer()
	served := make(chan error, 1)
	limited := connlimit.Listener(l, maxConnections, func() {
		klog.InfoS("A connection was refused: there are as many as may be", "socket", l.Addr(), "most", maxConnections)
	})
	go func() { served <- g.Serve(limited) }()
	select {
	case err := <-served:
		g.Stop()
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	close(s.ending) // RPCs that never end by themselves do now
	err := stop(g, s.config.StopGrace)
	if serveErr := <-served; serveErr != nil && !errors.Is(serveErr, grpc.ErrServerStopped) {
		err = errors.Join(err, fmt.Errorf("serve %s: %w", l.Addr(), serveErr))
	}
	return err
}

// stop lets RPCs end by themselves, then ends their contexts, and waits for
// handlers once more: they use what the caller closes next.
func stop(g *grpc.Server, grace time.Duration) error {
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		g.GracefulStop()
	}()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-idle:
		return nil
	case <-timer.C:
	}
	klog.InfoS("RPCs are still under way, cancelling them", "after", grace)
	g.Stop()
	timer.Reset(grace)
	select {
	case <-idle:
		return nil
	case <-timer.C:
		return fmt.Errorf("stop serving: RPCs are still under way %v after they were cancelled", grace)
	}
}

// keptStacks is how many goroutines wait for RPCs. More of them are made where these are
// busy; those that wait have stacks that have grown, which costs 20 us of each RPC.
const keptStacks = 4

func (s *Server) grpcServer() *grpc.Server {
	i := newInterceptor(s.config.Observe)
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.ReadBufferSize(bufferBytes),
		grpc.WriteBufferSize(bufferBytes),
		grpc.ConnectionTimeout(setupTimeout),
		grpc.MaxConcurrentStreams(maxPerClient),
		grpc.NumStreamWorkers(keptStacks),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: aliveEvery, Timeout: aliveTimeout}),
		grpc.UnaryInterceptor(i.unary),
		grpc.StreamInterceptor(i.stream),
	)
	runtimeapi.RegisterRuntimeServiceServer(g, &runtimeService{Server: s})
	runtimeapi.RegisterImageServiceServer(g, &imageService{Server: s})
	return g
}
