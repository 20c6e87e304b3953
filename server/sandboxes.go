package server

import (
	"context"
	"errors"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// RunPodSandbox creates and starts a sandbox.
func (s *runtimeService) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if req.GetConfig() == nil {
		return nil, invalid("config", "is missing")
	}
	if err := s.knownHandler("runtime_handler", req.GetRuntimeHandler()); err != nil {
		return nil, err
	}
	box, err := s.config.Runtime.Run(ctx, req.GetConfig(), req.GetRuntimeHandler())
	if err != nil {
		meta := req.GetConfig().GetMetadata()
		return nil, fmt.Errorf("run pod %s/%s: %w", quoted(meta.GetNamespace()), quoted(meta.GetName()), err)
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: box.Status().ID}, nil
}

// StopPodSandbox stops a sandbox; one that isn't there is stopped.
func (s *runtimeService) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	box, err := s.sandbox(req.GetPodSandboxId())
	switch {
	case errors.Is(err, sandbox.ErrNotFound):
		return &runtimeapi.StopPodSandboxResponse{}, nil
	case err != nil:
		return nil, err
	}
	if err := box.Stop(ctx); err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes a sandbox and its containers; one that isn't there
// is removed.
func (s *runtimeService) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	box, err := s.sandbox(req.GetPodSandboxId())
	switch {
	case errors.Is(err, sandbox.ErrNotFound):
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	case err != nil:
		return nil, err
	}
	id := box.Status().ID
	var held []*sandbox.ContainerStatus
	for _, c := range box.Containers() {
		held = append(held, c.Status())
	}
	err = box.Remove(ctx)
	// Also after an error: some of the containers may be gone.
	for _, st := range held {
		s.holds.releaseIfGone(st)
	}
	s.holds.releasePod(id)
	if err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus says how a sandbox is.
func (s *runtimeService) PodSandboxStatus(ctx context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	box, err := s.sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	st, containers, at := box.Pod()
	// The kubelet's evented PLEG takes the statuses together with their time.
	resp := &runtimeapi.PodSandboxStatusResponse{Status: podStatus(st), Timestamp: at}
	names := newImageNames(s.config.Images)
	for _, c := range containers {
		resp.ContainersStatuses = append(resp.ContainersStatuses, containerStatus(c, names))
	}
	if req.GetVerbose() {
		details := podInfo(st)
		details.Network = networkInfo(ctx, box)
		resp.Info = map[string]string{"info": toJSON(details)}
	}
	return resp, nil
}

// ListPodSandbox lists the sandboxes that pass the filter, the oldest first.
func (s *runtimeService) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	resp := &runtimeapi.ListPodSandboxResponse{}
	for _, box := range s.config.Runtime.Sandboxes() {
		if st := box.Status(); matchPod(req.GetFilter(), st) {
			resp.Items = append(resp.Items, podItem(st))
		}
	}
	return resp, nil
}

func (s *runtimeService) sandbox(id string) (*sandbox.Sandbox, error) {
	if err := checkID("pod_sandbox_id", id); err != nil {
		return nil, err
	}
	return s.config.Runtime.Sandbox(id)
}
