package server

import (
	"context"
	"fmt"
	"net"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// storeContainers finds what streams lead to in a Store.
type storeContainers struct{ store *sandbox.Store }

// Exec implements containers.
func (s storeContainers) Exec(ctx context.Context, id string, command []string, streams sandbox.Streams) (int32, error) {
	c, err := s.store.Container(id)
	if err != nil {
		return 0, err
	}
	return c.Exec(ctx, command, streams)
}

// Attach implements containers.
func (s storeContainers) Attach(ctx context.Context, id string, streams sandbox.Streams) error {
	c, err := s.store.Container(id)
	if err != nil {
		return err
	}
	return c.Attach(ctx, streams)
}

// Dial implements containers.
func (s storeContainers) Dial(ctx context.Context, pod string, port uint16) (net.Conn, error) {
	box, err := s.store.Sandbox(pod)
	if err != nil {
		return nil, err
	}
	return box.Dial(ctx, port)
}

// Exec returns the URL at which a client runs a command in a container.
func (s *runtimeService) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := checkCommand(req.GetCmd()); err != nil {
		return nil, err
	}
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	if err := s.running("exec in", req.GetContainerId()); err != nil {
		return nil, err
	}
	url, err := s.streaming.url(req)
	return &runtimeapi.ExecResponse{Url: url}, err
}

// Attach returns the URL at which a client gets a container's own streams.
func (s *runtimeService) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	if err := s.running("attach to", req.GetContainerId()); err != nil {
		return nil, err
	}
	url, err := s.streaming.url(req)
	return &runtimeapi.AttachResponse{Url: url}, err
}

// PortForward returns the URL at which a client connects to ports of a pod.
func (s *runtimeService) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if err := checkPorts(req.GetPort()); err != nil {
		return nil, err
	}
	box, err := s.sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if box.Status().State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, fmt.Errorf("forward ports of sandbox %s: it is not ready: %w", box.Status().ID, sandbox.ErrState)
	}
	url, err := s.streaming.url(req)
	return &runtimeapi.PortForwardResponse{Url: url}, err
}

// running says no before a client is sent to a container that cannot serve it.
func (s *runtimeService) running(verb, id string) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	if st := c.Status(); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("%s container %s: it is not running: %w", verb, st.ID, sandbox.ErrState)
	}
	return nil
}
