package server

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

const benchEntries = 500

// BenchmarkListContainers makes and encodes the answer for 500 containers.
func BenchmarkListContainers(b *testing.B) {
	images := newMemoryImages(busybox())
	states := make([]*sandbox.ContainerStatus, benchEntries)
	for i := range states {
		states[i] = containerState()
		states[i].ID = fmt.Sprintf("%064d", i)
	}
	filter := &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"app": "web"}}
	b.ReportAllocs()
	for b.Loop() {
		resp := &runtimeapi.ListContainersResponse{}
		names := newImageNames(images)
		for _, st := range states {
			if matchContainer(filter, st) {
				resp.Containers = append(resp.Containers, containerItem(st, names))
			}
		}
		if _, err := proto.Marshal(resp); err != nil || len(resp.GetContainers()) != benchEntries {
			b.Fatal(err)
		}
	}
}

// BenchmarkListPodSandbox makes and encodes the answer for 500 sandboxes.
func BenchmarkListPodSandbox(b *testing.B) {
	states := make([]*sandbox.SandboxStatus, benchEntries)
	for i := range states {
		states[i] = podState()
		states[i].ID = fmt.Sprintf("%064d", i)
	}
	b.ReportAllocs()
	for b.Loop() {
		resp := &runtimeapi.ListPodSandboxResponse{}
		for _, st := range states {
			if matchPod(nil, st) {
				resp.Items = append(resp.Items, podItem(st))
			}
		}
		if _, err := proto.Marshal(resp); err != nil {
			b.Fatal(err)
		}
	}
}
