package sandbox

import (
	"slices"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/oci"
)

// Image is what a container needs to know of its image.
type Image struct {
	ID     string          // the image's id
	Name   string          // as the request's ImageSpec named it
	Config imagespec.Image // hostile: only the rules of oci.ContainerSpec read it
	Layers []string        // host directories of the layers, the top one first
	// Volumes are the images that the container's mounts name, by that name.
	Volumes map[string]*Image
}

// volumeIDs returns the ids of the images that are mounted as volumes, each once.
func (i *Image) volumeIDs() []string {
	var ids []string
	for _, v := range i.Volumes {
		ids = append(ids, v.ID)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// SandboxStatus is the state of a sandbox at one moment. It is never changed
// once published, nor may its readers change it.
type SandboxStatus struct {
	ID        string
	Config    *runtimeapi.PodSandboxConfig
	Handler   string // runtime handler of the request
	State     runtimeapi.PodSandboxState
	CreatedAt int64 // ns since the epoch
	IPs       []string
	NetNS     string     // path of the pinned network namespace, "" with host network
	PausePID  int        // the reaper of a shared PID namespace, or 0
	Cgroup    string     // cgroup parent of the pod's containers
	Labels    oci.Labels // of SELinux
}

// ContainerStatus is the state of a container at one moment. It is never
// changed once published, nor may its readers change it.
type ContainerStatus struct {
	ID           string
	SandboxID    string
	Config       *runtimeapi.ContainerConfig
	ImageID      string
	VolumeImages []string // ids of the images that are mounted as volumes
	State        runtimeapi.ContainerState
	CreatedAt    int64 // ns since the epoch; 0: not yet
	StartedAt    int64
	FinishedAt   int64
	ExitCode     int32
	Reason       string // CamelCase: Completed, Error, OOMKilled, StartError, MonitorLost, ContainerStatusUnknown
	Message      string
	LogPath      string // absolute, "" without a log
	PID          int    // of the container's init on the host, 0 when there is none
	StopSignal   int    // Linux number of the signal that Stop sends
	User         *runtimeapi.ContainerUser
	Resources    *runtimeapi.ContainerResources
	Rootfs       string // /proc/PID/root while it runs
	Bundle       string // directory with config.json
}

// The reasons that a container's status gives for its end.
const (
	reasonCompleted   = "Completed"
	reasonError       = "Error"
	reasonOOMKilled   = "OOMKilled"
	reasonStartError  = "StartError"
	reasonMonitorLost = "MonitorLost"
	reasonUnknown     = "ContainerStatusUnknown"
)
