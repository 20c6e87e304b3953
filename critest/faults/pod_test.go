package faults

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var serial atomic.Int64

// pod is a sandbox with what it was made of.
type pod struct {
	id     string
	config *runtimeapi.PodSandboxConfig
}

// container is a container with what it was made of.
type container struct {
	id     string
	pod    *pod
	config *runtimeapi.ContainerConfig
}

type podOption func(*runtimeapi.PodSandboxConfig)

// Options of pods.
func hostNetwork(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	c.Hostname = ""
}

func sharedPID(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
}

func ownCgroup(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "" }

func userNamespace(c *runtimeapi.PodSandboxConfig) {
	ids := []*runtimeapi.IDMapping{{HostId: 200000, ContainerId: 0, Length: 65536}}
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
		Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids,
	}
}

func busybox() string { return imageRef("busybox") }

func imageRef(name string) string { return depot.Address + "/cri-runtime/" + name + ":latest" }

// podConfig is a pod with a network and a cgroup of its own.
func (n *node) podConfig(options ...podOption) *runtimeapi.PodSandboxConfig {
	uid := fmt.Sprintf("f-%d", serial.Add(1))
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "pod-" + uid, Uid: uid, Namespace: "faults"},
		Hostname:     "host-" + uid,
		LogDirectory: filepath.Join(n.Dir, "logs", uid),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: n.Parent + "/" + uid,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
	for _, o := range options {
		o(config)
	}
	return config
}

// containerConfig is a busybox container of p that runs a shell script.
func containerConfig(p *runtimeapi.PodSandboxConfig, script string) *runtimeapi.ContainerConfig {
	name := fmt.Sprintf("c%d", serial.Add(1))
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: busybox()},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.Linux.SecurityContext.NamespaceOptions,
			},
		},
	}
}

// run starts a pod.
func (n *node) run(ctx context.Context, options ...podOption) (*pod, error) {
	return n.runConfig(ctx, n.podConfig(options...))
}

func (n *node) runConfig(ctx context.Context, config *runtimeapi.PodSandboxConfig) (*pod, error) {
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		return nil, err
	}
	id, err := n.CRI.RunPodSandbox(ctx, config, "")
	if err != nil {
		return nil, fmt.Errorf("run a pod: %w", err)
	}
	count(podsRun, 1)
	return &pod{id: id, config: config}, nil
}

// create makes a container in p.
func (n *node) create(ctx context.Context, p *pod, script string) (*container, error) {
	return n.createConfig(ctx, p, containerConfig(p.config, script))
}

func (n *node) createConfig(ctx context.Context, p *pod, config *runtimeapi.ContainerConfig) (*container, error) {
	id, err := n.CRI.CreateContainer(ctx, p.id, config, p.config)
	if err != nil {
		return nil, fmt.Errorf("create a container: %w", err)
	}
	return &container{id: id, pod: p, config: config}, nil
}

// start makes a container in p and starts it.
func (n *node) start(ctx context.Context, p *pod, script string) (*container, error) {
	c, err := n.create(ctx, p, script)
	if err != nil {
		return nil, err
	}
	if err := n.CRI.StartContainer(ctx, c.id); err != nil {
		return c, fmt.Errorf("start a container: %w", err)
	}
	return c, nil
}

// remove stops and removes p, and the cgroup that the kubelet had made for it.
func (n *node) remove(ctx context.Context, p *pod) error {
	if err := n.CRI.StopPodSandbox(ctx, p.id); err != nil {
		return fmt.Errorf("stop a pod: %w", err)
	}
	if err := n.CRI.RemovePodSandbox(ctx, p.id); err != nil {
		return fmt.Errorf("remove a pod: %w", err)
	}
	if p.config.Linux.CgroupParent == "" {
		return nil
	}
	return n.removeCgroup(ctx, p.config)
}

// status of a container.
func (n *node) status(ctx context.Context, id string) (*runtimeapi.ContainerStatus, error) {
	answer, err := n.CRI.ContainerStatus(ctx, id, false)
	if err != nil {
		return nil, fmt.Errorf("status of container %s: %w", id, err)
	}
	return answer.Status, nil
}

func (c *container) logPath() string {
	return filepath.Join(c.pod.config.LogDirectory, c.config.LogPath)
}
