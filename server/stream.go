package server

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// batcher sends the items of a streamed list as they are made: in messages of
// at most maxBatchItems and, but for a single large item, maxBatchBytes.
type batcher[T proto.Message] struct {
	send  func([]T) error
	items []T
	bytes int
}

// maxBatchItems keeps the time short that a message is collected for.
const maxBatchItems = 64

// add takes one item, and sends those before it when it does not fit beside them.
func (b *batcher[T]) add(item T) error {
	const overhead = 8 // of a field's key and length
	n := proto.Size(item) + overhead
	if len(b.items) == maxBatchItems || len(b.items) > 0 && b.bytes+n > maxBatchBytes {
		if err := b.flush(); err != nil {
			return err
		}
	}
	b.items, b.bytes = append(b.items, item), b.bytes+n
	return nil
}

// flush sends what is left; no message is empty.
func (b *batcher[T]) flush() error {
	if len(b.items) == 0 {
		return nil
	}
	err := b.send(b.items)
	b.items, b.bytes = nil, 0 // the client's side may still read the old ones
	return err
}

// StreamPodSandboxes is ListPodSandbox in several messages.
func (s *runtimeService) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	b := batcher[*runtimeapi.PodSandbox]{send: func(items []*runtimeapi.PodSandbox) error {
		return stream.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: items})
	}}
	for _, box := range s.config.Runtime.Sandboxes() {
		if st := box.Status(); matchPod(req.GetFilter(), st) {
			if err := b.add(podItem(st)); err != nil {
				return err
			}
		}
	}
	return b.flush()
}

// StreamContainers is ListContainers in several messages.
func (s *runtimeService) StreamContainers(req *runtimeapi.StreamContainersRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	b := batcher[*runtimeapi.Container]{send: func(items []*runtimeapi.Container) error {
		return stream.Send(&runtimeapi.StreamContainersResponse{Containers: items})
	}}
	names := newImageNames(s.config.Images)
	for _, c := range s.config.Runtime.Containers() {
		if st := c.Status(); matchContainer(req.GetFilter(), st) {
			if err := b.add(containerItem(st, names)); err != nil {
				return err
			}
		}
	}
	return b.flush()
}

// StreamContainerStats is ListContainerStats in several messages.
func (s *runtimeService) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	b := batcher[*runtimeapi.ContainerStats]{send: func(items []*runtimeapi.ContainerStats) error {
		return stream.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: items})
	}}
	if err := s.eachContainerStats(stream.Context(), req.GetFilter(), b.add); err != nil {
		return err
	}
	return b.flush()
}

// StreamPodSandboxStats is ListPodSandboxStats in several messages.
func (s *runtimeService) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	b := batcher[*runtimeapi.PodSandboxStats]{send: func(items []*runtimeapi.PodSandboxStats) error {
		return stream.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: items})
	}}
	if err := s.eachPodStats(stream.Context(), req.GetFilter(), b.add); err != nil {
		return err
	}
	return b.flush()
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in several messages.
func (s *runtimeService) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	b := batcher[*runtimeapi.PodSandboxMetrics]{send: func(items []*runtimeapi.PodSandboxMetrics) error {
		return stream.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: items})
	}}
	if err := s.eachPodMetrics(stream.Context(), b.add); err != nil {
		return err
	}
	return b.flush()
}
