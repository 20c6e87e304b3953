package oci

import (
	"fmt"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Container is all that ContainerSpec knows. Nothing in it is changed, and
// the spec shares no memory with it that either side would write to.
type Container struct {
	ID      string
	Pod     *runtimeapi.PodSandboxConfig
	Config  *runtimeapi.ContainerConfig
	Image   *imagespec.Image // hostile; nil stands for an empty configuration
	ImageID string
	User    User  // resolved by ResolveUser
	Host    *Host // facts about the node
	Rootfs  string
	// Namespaces are those of the pod that exist already.
	Namespaces Namespaces
	Cgroup     string   // linux.cgroupsPath: an absolute path (cgroupfs) or slice:prefix:name (systemd)
	Files      PodFiles // host paths of what the containers of a pod share
	// Seccomp is what SeccompProfile asks for, compiled by nobody yet.
	Seccomp *specs.LinuxSeccomp
	// Devices holds, by host_path, what ReadDevices found there.
	Devices map[string][]specs.LinuxDevice
	// Labels are the pod's SELinux labels; selinux_options change parts of them.
	Labels Labels
	// Rlimits are the node's defaults; CRI has no field for them.
	Rlimits []specs.POSIXRlimit
}

// Namespaces are the paths of namespaces to join. An empty path means that
// there is none: the container gets a new namespace or, where NamespaceOption
// says NODE, the host's.
type Namespaces struct {
	Net, IPC, UTS string
	User          string // the pod's, which owns the others
	// PID is the pod's shared PID namespace, or with mode TARGET that of the
	// other container. It is required for both.
	PID string
}

// PodFiles are host paths of files that all containers of a pod share. An
// empty path leaves the mount out, but for Shm, which becomes a private tmpfs.
type PodFiles struct {
	Hostname   string
	Hosts      string
	ResolvConf string
	Shm        string // directory, a tmpfs
}

// Labels are SELinux labels, empty on a host without SELinux.
type Labels struct {
	Process string
	Mount   string
}

// ContainerSpec translates a container's CRI messages into a runtime Spec. It
// is a pure function: no file, no system call, no clock.
//
// The image's configuration contributes command, environment, directory and
// (through c.User) the user, nothing else. Annotations select nothing.
func ContainerSpec(c *Container) (*specs.Spec, error) {
	if err := ValidateContainer(c.Config, c.Pod); err != nil {
		return nil, err
	}
	sec := c.Config.GetLinux().GetSecurityContext()
	process, err := c.process()
	if err != nil {
		return nil, err
	}
	mounts, propagation, err := c.mounts()
	if err != nil {
		return nil, err
	}
	namespaces, err := c.namespaces()
	if err != nil {
		return nil, err
	}
	resources, err := c.resources()
	if err != nil {
		return nil, err
	}
	devices, rules, err := c.devices()
	if err != nil {
		return nil, err
	}
	resources.Devices = rules
	seccomp, err := c.seccomp()
	if err != nil {
		return nil, err
	}
	if err := c.checkUser(); err != nil {
		return nil, err
	}
	uids, gids, err := UserMappings(c.Pod)
	if err != nil {
		return nil, err
	}
	masked, readonly := c.hiddenPaths()
	var labels Labels
	if c.Host.SELinux {
		labels = ContainerLabels(c.Labels, c.Config)
	}
	process.SelinuxLabel = labels.Process
	return &specs.Spec{
		Version:     specs.Version,
		Process:     process,
		Root:        &specs.Root{Path: c.Rootfs, Readonly: sec.GetReadonlyRootfs()},
		Hostname:    c.specHostname(),
		Mounts:      mounts,
		Annotations: c.annotations(),
		Linux: &specs.Linux{
			Resources:         resources,
			CgroupsPath:       c.Cgroup,
			Namespaces:        namespaces,
			UIDMappings:       uids,
			GIDMappings:       gids,
			Devices:           devices,
			Seccomp:           seccomp,
			RootfsPropagation: propagation,
			MaskedPaths:       masked,
			ReadonlyPaths:     readonly,
			MountLabel:        labels.Mount,
		},
	}, nil
}

// annotations name the container for whoever reads config.json. Those of the
// request stay out: they are the user's, and a runtime must not act on them
// (CVE-2023-6476, CVE-2024-3154).
func (c *Container) annotations() map[string]string {
	meta := c.Pod.GetMetadata()
	return map[string]string{
		"io.kubernetes.container.name": c.Config.GetMetadata().GetName(),
		"io.kubernetes.pod.name":       meta.GetName(),
		"io.kubernetes.pod.namespace":  meta.GetNamespace(),
		"io.kubernetes.pod.uid":        meta.GetUid(),
	}
}

// LeftOut says in one line each what the spec of c does not grant although
// it was asked for, because this host or this daemon cannot.
func LeftOut(c *Container) []string {
	var out []string
	sec := c.Config.GetLinux().GetSecurityContext()
	if _, missing, err := capabilities(sec, c.Host); err == nil {
		for _, name := range missing {
			out = append(out, fmt.Sprintf("%s.add_capabilities: %s is not added, the daemon does not have it", capabilitiesField, name))
		}
	}
	want := int(c.Config.GetLinux().GetResources().GetOomScoreAdj())
	if got := c.Host.ClampOOMScoreAdj(want); got != want {
		out = append(out, fmt.Sprintf("%s.oom_score_adj: %d instead of %d, the daemon lacks CAP_SYS_RESOURCE", resourcesField, got, want))
	}
	if sec.GetSelinuxOptions() != nil && !c.Host.SELinux {
		out = append(out, securityField+".selinux_options: no effect, SELinux is not enabled on this node")
	}
	out = append(out, c.cutRlimits()...)
	return append(out, c.missingResources()...)
}
