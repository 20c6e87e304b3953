package oci

import (
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
func ContainerSpec(c *Container) (*specs.Spec, error) {
	return nil, ErrUnsupported
}

// LeftOut says in one line each what the spec of c does not grant although
// it was asked for, because this host or this daemon cannot.
func LeftOut(c *Container) []string { return nil }

// ExecProcess returns the process of an exec in the container of spec: its
// user, capabilities, directory and environment, with other arguments.
func ExecProcess(spec *specs.Spec, args []string, tty bool) *specs.Process { return nil }

// SeccompProfile tells which profile the container is to run with. With
// Localhost, the second result is the absolute path of the profile's file.
func SeccompProfile(config *runtimeapi.ContainerConfig) (runtimeapi.SecurityProfile_ProfileType, string, error) {
	return 0, "", ErrUnsupported
}

// EncodeSpec returns config.json. Environment values that are not UTF-8,
// which JSON cannot hold, survive in a member of their own.
func EncodeSpec(spec *specs.Spec) ([]byte, error) { return nil, ErrUnsupported }

// DecodeSpec reads what EncodeSpec wrote.
func DecodeSpec(data []byte) (*specs.Spec, error) { return nil, ErrUnsupported }
