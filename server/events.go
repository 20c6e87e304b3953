package server

import (
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// GetContainerEvents sends what happens to containers and sandboxes from now
// on. The header says that the subscription stands: a client that waits for it
// and then lists misses nothing.
func (s *runtimeService) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	sub, err := s.config.Runtime.Subscribe()
	if err != nil {
		return err
	}
	defer sub.Close()
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	sent := make(chan error, 1)
	// A client that reads nothing blocks Send until this handler returns.
	go func() { sent <- s.sendEvents(sub, stream) }()
	select {
	case err := <-sent:
		return err
	case <-sub.Ended():
		return sub.Err()
	case <-s.ending:
		return sandbox.ErrClosed
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

func (s *runtimeService) sendEvents(sub *sandbox.Subscription, stream grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	for {
		event, err := sub.Next(stream.Context())
		if err != nil {
			return err
		}
		if err := stream.Send(s.eventResponse(event)); err != nil {
			return errors.Join(err, stream.Context().Err())
		}
	}
}

func (s *runtimeService) eventResponse(event *sandbox.Event) *runtimeapi.ContainerEventResponse {
	resp := &runtimeapi.ContainerEventResponse{
		ContainerId:        event.ID,
		ContainerEventType: event.Kind,
		CreatedAt:          event.At,
		PodSandboxStatus:   podStatus(event.Sandbox),
	}
	names := newImageNames(s.config.Images)
	for _, st := range event.Containers {
		resp.ContainersStatuses = append(resp.ContainersStatuses, containerStatus(st, names))
	}
	return resp
}
