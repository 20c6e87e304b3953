package server

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// created is what createHeld needs of a container.
type created interface {
	Status() *sandbox.ContainerStatus
	Remove(ctx context.Context) error
}

// createHeld creates a container whose image cannot lose its data meanwhile.
// The container's id is not known before, so the call has a hold of its own
// until the container has one; for the moment between, both hold.
func (s *Server) createHeld(
	ctx context.Context, image *imageservice.Image, create func(*imageservice.Image) (created, error),
) (string, error) {
	call := fmt.Sprintf("create-%d", s.creates.Add(1))
	if err := s.config.Images.Hold(image.ID, call); err != nil {
		return "", fmt.Errorf("hold image %s: %w", image.ID, err)
	}
	defer s.config.Images.Release(image.ID, call)
	c, err := create(image)
	if err != nil {
		return "", err
	}
	st := c.Status()
	if err := s.config.Images.Hold(st.ImageID, st.ID); err != nil {
		err = fmt.Errorf("hold image %s: %w", st.ImageID, err)
		return "", errors.Join(err, c.Remove(context.WithoutCancel(ctx)))
	}
	// It may have been removed since, and released before it was held.
	s.releaseIfGone(st.ImageID, st.ID)
	return st.ID, nil
}

// releaseIfGone ends the hold of a container that isn't there any more.
func (s *Server) releaseIfGone(imageID, containerID string) {
	if _, err := s.config.Runtime.Container(containerID); errors.Is(err, sandbox.ErrNotFound) {
		s.config.Images.Release(imageID, containerID)
	}
}

// holdExisting holds the image of a container that is older than the daemon.
func holdExisting(images ImageHolds, st *sandbox.ContainerStatus) {
	if st.ImageID == "" {
		return
	}
	if err := images.Hold(st.ImageID, st.ID); err != nil {
		klog.ErrorS(err, "The image of a container cannot be held", "container", st.ID, "image", st.ImageID)
	}
}
