package server

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How long an RPC may take whose client gives it longer or sets no deadline:
// nothing that is stuck holds a request for ever.
const (
	lookTime = 2 * time.Minute  // what looks
	verbTime = 10 * time.Minute // what does something, in addition to what it asks for
	longTime = 24 * time.Hour   // pulls, which end by themselves when nothing comes; ExecSync without a time-out
	noLimit  = time.Duration(0) // events
)

// timeFor is the longest that a request may take.
func timeFor(method string, req any) time.Duration {
	name := rpcName(method)
	switch {
	case name == "GetContainerEvents":
		return noLimit // whoever does not read on is ended by its queue
	case name == "PullImage", name == "CheckpointPod", name == "RestorePod", name == "CheckpointContainer":
		return longTime
	case strings.HasPrefix(name, "List"), strings.HasPrefix(name, "Stream"), strings.HasSuffix(name, "Status"), strings.HasSuffix(name, "Stats"),
		name == "Version", name == "RuntimeConfig", name == "ImageFsInfo":
		return lookTime
	}
	asked := int64(0)
	switch m := req.(type) {
	case *runtimeapi.StopContainerRequest:
		asked = m.GetTimeout()
	case *runtimeapi.ExecSyncRequest:
		if asked = m.GetTimeout(); asked == 0 {
			return longTime
		}
	}
	return verbTime + time.Duration(min(max(asked, 0), maxSeconds))*time.Second
}

// withDeadline runs a streaming handler until its time is over. Only its return
// ends a Send that the client does not take.
func withDeadline(stream grpc.ServerStream, limit time.Duration, handle func(grpc.ServerStream) error) error {
	if limit == noLimit {
		return handle(stream)
	}
	ctx, cancel := context.WithTimeout(stream.Context(), limit)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- handle(timedStream{stream, ctx}) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// timedStream is a stream with another context.
type timedStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // of this one call
}

// Context implements grpc.ServerStream.
func (s timedStream) Context() context.Context { return s.ctx }
