package server

import (
	"context"
	"errors"
	"fmt"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// CreateContainer creates a container in a ready sandbox.
func (s *runtimeService) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	box, err := s.sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	config := req.GetConfig()
	if config == nil {
		return nil, invalid("config", "is missing")
	}
	if err := s.checkImageSpec("config.image", config.GetImage()); err != nil {
		return nil, err
	}
	name := quoted(config.GetMetadata().GetName())
	image, err := s.config.Images.Image(config.GetImage().GetImage())
	if err != nil {
		return nil, fmt.Errorf("container %s: image %s: %w", name, config.GetImage().GetImage(), err)
	}
	if err := checkRunnable(config.GetImage().GetImage(), image); err != nil {
		return nil, err
	}
	volumes, err := s.volumes(config.GetMounts())
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", name, err)
	}
	of := &sandbox.Image{
		ID:      image.ID,
		Name:    config.GetImage().GetImage(),
		Config:  image.Config,
		Layers:  image.Layers,
		Volumes: volumes,
	}
	id, err := s.holds.create(ctx, box.Status().ID, images(of), func() (created, error) {
		return box.CreateContainer(ctx, config, of)
	})
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", name, err)
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// volumes finds the images that mounts name.
func (s *runtimeService) volumes(mounts []*runtimeapi.Mount) (map[string]*sandbox.Image, error) {
	found := map[string]*sandbox.Image{}
	for i, m := range mounts {
		ref := m.GetImage().GetImage()
		if err := s.checkSpec(fmt.Sprintf("config.mounts[%d].image", i), m.GetImage()); err != nil {
			return nil, err
		}
		if ref == "" || found[ref] != nil {
			continue
		}
		image, err := s.config.Images.Image(ref)
		if err != nil {
			return nil, fmt.Errorf("config.mounts[%d].image: image %s: %w", i, ref, err)
		}
		found[ref] = &sandbox.Image{ID: image.ID, Name: ref, Layers: image.Layers}
	}
	return found, nil
}

// images returns the ids of a container's images, each once.
func images(of *sandbox.Image) []string {
	ids := []string{of.ID}
	for _, v := range of.Volumes {
		ids = append(ids, v.ID)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// StartContainer runs the container's command.
func (s *runtimeService) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer stops a container; one that isn't there is stopped.
func (s *runtimeService) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if err := checkTimeout("timeout", req.GetTimeout()); err != nil {
		return nil, err
	}
	c, err := s.container(req.GetContainerId())
	switch {
	case errors.Is(err, sandbox.ErrNotFound):
		return &runtimeapi.StopContainerResponse{}, nil
	case err != nil:
		return nil, err
	}
	if err := c.Stop(ctx, min(req.GetTimeout(), maxSeconds)); err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer removes a container; one that isn't there is removed.
func (s *runtimeService) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	c, err := s.container(req.GetContainerId())
	switch {
	case errors.Is(err, sandbox.ErrNotFound):
		return &runtimeapi.RemoveContainerResponse{}, nil
	case err != nil:
		return nil, err
	}
	st := c.Status()
	if err := c.Remove(ctx); err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		return nil, err
	}
	fault.Point("remove.hold.releasing")
	s.holds.release(st)
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ListContainers lists the containers that pass the filter, the oldest first.
func (s *runtimeService) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	resp := &runtimeapi.ListContainersResponse{}
	names := newImageNames(s.config.Images)
	for _, c := range s.config.Runtime.Containers() {
		if st := c.Status(); matchContainer(req.GetFilter(), st) {
			resp.Containers = append(resp.Containers, containerItem(st, names))
		}
	}
	return resp, nil
}

// ContainerStatus says how a container is.
func (s *runtimeService) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	st := c.Status()
	resp := &runtimeapi.ContainerStatusResponse{Status: containerStatus(st, newImageNames(s.config.Images))}
	if req.GetVerbose() {
		resp.Info = map[string]string{"info": toJSON(containerInfo(st))}
	}
	return resp, nil
}

// ReopenContainerLog opens a rotated log anew.
func (s *runtimeService) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := c.ReopenLog(ctx); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// ExecSync runs a command in a container and returns what it wrote.
func (s *runtimeService) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if err := checkExec(req); err != nil {
		return nil, err
	}
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	result, err := c.ExecSync(ctx, req.GetCmd(), min(req.GetTimeout(), maxSeconds))
	if err != nil {
		return nil, err
	}
	stdout, stderr := fitMessage(result.Stdout, result.Stderr)
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: result.ExitCode}, nil
}

func (s *runtimeService) container(id string) (*sandbox.Container, error) {
	if err := checkID("container_id", id); err != nil {
		return nil, err
	}
	return s.config.Runtime.Container(id)
}

// fitMessage cuts output so that the response passes the client's limit of
// 16 MiB for a message: CRI wants more output discarded, not an error. The
// stream with less keeps all of it if it takes less than half.
func fitMessage(stdout, stderr []byte) (cutStdout, cutStderr []byte) {
	const room = maxMessageBytes - 64 // tags, lengths and the exit code
	if len(stdout)+len(stderr) <= room {
		return stdout, stderr
	}
	forStderr := min(len(stderr), max(room/2, room-len(stdout)))
	return stdout[:min(len(stdout), room-forStderr)], stderr[:forStderr]
}
