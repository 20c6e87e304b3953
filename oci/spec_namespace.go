package oci

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *Container) podNamespaceOptions() *runtimeapi.NamespaceOption {
	return c.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (c *Container) hostNetwork() bool {
	return c.podNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

func (c *Container) pidMode() runtimeapi.NamespaceMode { return PIDMode(c.Pod, c.Config) }

// PIDMode returns the mode of the PID namespace of a container. Without options of its own it
// has the pod's, and POD in a pod with mode NODE is the host's.
func PIDMode(pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) runtimeapi.NamespaceMode {
	mode := pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid()
	own := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if own == nil || (own.GetPid() == runtimeapi.NamespaceMode_POD && mode == runtimeapi.NamespaceMode_NODE) {
		return mode
	}
	return own.GetPid()
}

// namespaces lists the namespaces to join or to make; one that is not listed is
// the host's. Network and IPC belong to the pod, so its options count.
func (c *Container) namespaces() ([]specs.LinuxNamespace, error) {
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	pod := c.podNamespaceOptions()
	if c.userNamespace() {
		if c.Namespaces.User == "" {
			return nil, invalid(securityField+".namespace_options.userns_options", "the pod sandbox has no user namespace")
		}
		out = append(out, specs.LinuxNamespace{Type: specs.UserNamespace, Path: c.Namespaces.User})
	}
	if pod.GetIpc() != runtimeapi.NamespaceMode_NODE {
		out = append(out, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: c.Namespaces.IPC})
	}
	if !c.hostNetwork() {
		out = append(out,
			specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: c.Namespaces.Net},
			specs.LinuxNamespace{Type: specs.UTSNamespace, Path: c.Namespaces.UTS})
	}
	const field = securityField + ".namespace_options.pid"
	switch mode := c.pidMode(); mode {
	case runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_CONTAINER:
		out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_TARGET:
		if c.Namespaces.PID == "" {
			return nil, invalid(field, "is %s, but there is no such PID namespace; the pod sandbox must have been made with mode POD, the target must run", mode)
		}
		out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: c.Namespaces.PID})
	}
	// A privileged container sees the host's cgroup paths, which node agents
	// need; all others see their own cgroup as the root.
	if !c.Config.GetLinux().GetSecurityContext().GetPrivileged() {
		out = append(out, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return out, nil
}

// specHostname is empty unless the container gets a new UTS namespace: a
// pinned one has its name.
func (c *Container) specHostname() string {
	if c.hostNetwork() || c.Namespaces.UTS != "" {
		return ""
	}
	return c.hostname()
}
