package server

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/sandbox"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// holds keeps images while containers are made of them and as long as these
// exist. A container's hold has its id as the user; there are two more kinds,
// for a container's id is not known before it exists.
type holds struct {
	images ImageHolds
	exists func(id string) bool // says that there is such a container or pod

	mu    sync.Mutex
	calls uint64 // guarded by mu; numbers the holds of calls under way
	// unfinished has the images, by pod, of calls whose client gave up while the
	// container was being made; guarded by mu. The making goes on: whether there
	// will be a container is seen at the latest when its pod is removed.
	unfinished map[string]map[string]bool
}

// created is what create needs of a container.
type created interface {
	Status() *sandbox.ContainerStatus
	Remove(ctx context.Context) error
}

func newHolds(images ImageHolds, runtime *sandbox.Store) *holds {
	return &holds{images: images, unfinished: map[string]map[string]bool{}, exists: func(id string) bool {
		_, err := runtime.Container(id)
		if errors.Is(err, sandbox.ErrNotFound) {
			_, err = runtime.Sandbox(id)
		}
		return !errors.Is(err, sandbox.ErrNotFound)
	}}
}

// create makes a container whose images cannot lose their data meanwhile, and
// returns its id.
func (h *holds) create(ctx context.Context, podID string, imageIDs []string, start func() (created, error)) (string, error) {
	h.mu.Lock()
	h.calls++
	call := fmt.Sprintf("create-%d", h.calls)
	h.mu.Unlock()
	for _, id := range imageIDs {
		if err := h.images.Hold(id, call); err != nil {
			return "", err
		}
		defer h.images.Release(id, call)
	}
	fault.Point("create.image.held")
	c, err := start()
	if err != nil {
		if ctx.Err() != nil {
			h.keep(podID, imageIDs)
		}
		return "", err
	}
	// A retry that joined an earlier call gets that call's container and images.
	st := c.Status()
	for _, id := range imagesOf(st) {
		if err := h.images.Hold(id, st.ID); err != nil {
			h.release(st)
			return "", errors.Join(err, c.Remove(context.WithoutCancel(ctx)))
		}
	}
	fault.Point("create.hold.handed")
	// It may have been removed since, and released before it was held.
	h.releaseIfGone(st)
	return st.ID, nil
}

// imagesOf returns the ids of the images that a container needs.
func imagesOf(st *sandbox.ContainerStatus) []string {
	if st.ImageID == "" {
		return st.VolumeImages
	}
	return append([]string{st.ImageID}, st.VolumeImages...)
}

// release ends the holds of a container.
func (h *holds) release(st *sandbox.ContainerStatus) {
	for _, id := range imagesOf(st) {
		h.images.Release(id, st.ID)
	}
}

// keep holds images until the pod is removed.
func (h *holds) keep(podID string, imageIDs []string) {
	for _, id := range imageIDs {
		if err := h.images.Hold(id, podID); err != nil {
			klog.ErrorS(err, "The image of a container that is being made cannot be held", "pod", podID, "image", id)
			continue
		}
		h.mu.Lock()
		if h.unfinished[podID] == nil {
			h.unfinished[podID] = map[string]bool{}
		}
		h.unfinished[podID][id] = true
		h.mu.Unlock()
	}
	h.releasePod(podID)
}

// releasePod ends the holds of unfinished calls if the pod is gone.
func (h *holds) releasePod(podID string) {
	if h.exists(podID) {
		return
	}
	h.mu.Lock()
	images := h.unfinished[podID]
	delete(h.unfinished, podID)
	h.mu.Unlock()
	for imageID := range images {
		h.images.Release(imageID, podID)
	}
}

// releaseIfGone ends the hold of a container that isn't there any more.
func (h *holds) releaseIfGone(st *sandbox.ContainerStatus) {
	if !h.exists(st.ID) {
		h.release(st)
	}
}

// holdExisting holds the image of a container that is older than the daemon.
func holdExisting(images ImageHolds, st *sandbox.ContainerStatus) {
	for _, id := range imagesOf(st) {
		if err := images.Hold(id, st.ID); err != nil {
			klog.ErrorS(err, "The image of a container cannot be held", "container", st.ID, "image", id)
		}
	}
}
