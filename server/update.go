package server

import (
	"context"
	"net/netip"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateContainerResources changes limits of a container. The annotations of the
// request select nothing here.
func (s *runtimeService) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if req.GetWindows() != nil {
		return nil, invalid("windows", "this is a Linux node")
	}
	if req.GetLinux() == nil {
		return nil, invalid("linux", "is missing")
	}
	if err := c.Update(ctx, req.GetLinux()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// UpdatePodSandboxResources takes over the limits that the kubelet has given a pod.
func (s *runtimeService) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	box, err := s.sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := box.Update(ctx, req.GetOverhead(), req.GetResources()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// UpdateRuntimeConfig gives the built-in network the node's pod CIDR; a network
// with a CNI configuration has it there. An empty one changes nothing.
func (s *runtimeService) UpdateRuntimeConfig(_ context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	var subnets []netip.Prefix
	text := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' }) {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, invalid("runtime_config.network_config.pod_cidr", "%.100q is not a list of subnets", text)
		}
		subnets = append(subnets, p.Masked())
	}
	if len(subnets) == 0 || s.config.PodSubnets == nil {
		return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
	}
	if err := s.config.PodSubnets(subnets); err != nil {
		return nil, invalid("runtime_config.network_config.pod_cidr", "%s", err)
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
