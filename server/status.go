package server

import (
	"context"
	"runtime"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// Version names the runtime and the API.
func (s *runtimeService) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           kubeletVersion,
		RuntimeName:       runtimeName,
		RuntimeVersion:    s.version,
		RuntimeApiVersion: apiVersion,
	}, nil
}

// Status says whether containers can run and pods can have a network.
func (s *runtimeService) Status(_ context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	var notes []string
	if s.config.Notes != nil {
		notes = s.config.Notes()
	}
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, "RuntimeNotReady", s.config.RuntimeReady, strings.Join(notes, "; ")),
			condition(runtimeapi.NetworkReady, "NetworkPluginNotReady", s.config.NetworkReady, ""),
		}},
		RuntimeHandlers: s.config.Handlers,
		Features:        s.config.Features,
	}
	if req.GetVerbose() {
		resp.Info = map[string]string{
			"config":  toJSON(s.config.EffectiveConfig),
			"notes":   toJSON(notes),
			"version": toJSON(s.config.Version),
			"golang":  toJSON(runtime.Version()),
		}
		if s.config.Runtime != nil {
			resp.Info["features"] = toJSON(s.config.Runtime.Features())
			resp.Info["damaged"] = damaged(s.config.Runtime.Damaged())
		}
		if s.config.NetworkStatus != nil {
			resp.Info["network"] = toJSON(s.config.NetworkStatus())
		}
	}
	return resp, nil
}

// damaged shows what was moved aside because its record could not be read.
func damaged(list []sandbox.Damaged, err error) string {
	if err != nil {
		return toJSON(map[string]string{"error": err.Error()})
	}
	return toJSON(list)
}

// condition asks ready; note is what there is to say although it is true.
func condition(name, reason string, ready func() error, note string) *runtimeapi.RuntimeCondition {
	if ready != nil {
		if err := ready(); err != nil {
			return &runtimeapi.RuntimeCondition{Type: name, Reason: reason, Message: strings.ToValidUTF8(err.Error(), "\uFFFD")}
		}
	}
	return &runtimeapi.RuntimeCondition{Type: name, Status: true, Message: note}
}

// RuntimeConfig tells the kubelet which cgroup driver to use itself.
func (s *runtimeService) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver, err := cgroupDriver(s.config.CgroupDriver)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}
