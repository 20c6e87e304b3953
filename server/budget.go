package server

import (
	"fmt"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// maxCalls bounds the RPCs under way, and maxCallsOfOne those that name one
	// pod, container or image: what is stuck with it takes no room from others. A
	// monitor runs 256 commands at once.
	maxCalls      = 4096
	maxCallsOfOne = 320
)

// budget counts the RPCs under way.
type budget struct {
	mu  sync.Mutex
	all int            // guarded by mu
	of  map[string]int // by what the request names; guarded by mu
}

// enter takes a place for an RPC on object, "" for none in particular; leave
// gives it back.
func (b *budget) enter(object string) (leave func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.all >= maxCalls:
		return nil, fmt.Errorf("%d requests are under way: %w", b.all, errTooMany)
	case object != "" && b.of[object] >= maxCallsOfOne:
		return nil, fmt.Errorf("%d requests for %s are under way: %w", b.of[object], quoted(object), errTooMany)
	}
	b.all++
	if object != "" {
		b.of[object]++
	}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.all--
		if object == "" {
			return
		}
		if b.of[object]--; b.of[object] == 0 {
			delete(b.of, object)
		}
	}, nil
}

// objectOf is what a request is about.
func objectOf(req any) string {
	switch m := req.(type) {
	case interface{ GetContainerId() string }:
		return m.GetContainerId()
	case interface{ GetPodSandboxId() string }:
		return m.GetPodSandboxId()
	case interface {
		GetConfig() *runtimeapi.PodSandboxConfig
	}:
		return m.GetConfig().GetMetadata().GetUid()
	case interface{ GetImage() *runtimeapi.ImageSpec }:
		return m.GetImage().GetImage()
	}
	return ""
}
