package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// maxSpecBytes leaves room in a message for the rest of it.
const maxSpecBytes = maxMessageBytes / 2

// networkTimeout is how long a verbose status waits for the network's plugins.
const networkTimeout = 3 * time.Second

// containerDetails is what verbose status shows of a container. Scripts around
// crictl read sandboxID, pid, config and runtimeSpec by these names.
type containerDetails struct {
	SandboxID   string                      `json:"sandboxID"`
	PID         int                         `json:"pid"`
	Privileged  bool                        `json:"privileged"`
	Bundle      string                      `json:"bundle,omitempty"`
	Rootfs      string                      `json:"rootfs,omitempty"`
	Config      *runtimeapi.ContainerConfig `json:"config"`
	RuntimeSpec json.RawMessage             `json:"runtimeSpec,omitempty"`
	SpecError   string                      `json:"runtimeSpecError,omitempty"`
}

// podDetails is what verbose status shows of a sandbox; runtimeSpec has the
// paths of its namespaces where scripts look for them.
type podDetails struct {
	PID            int                          `json:"pid"`
	RuntimeHandler string                       `json:"runtimeHandler"`
	NetNS          string                       `json:"netns,omitempty"`
	IPs            []string                     `json:"ips,omitempty"`
	Network        string                       `json:"network,omitempty"` // "ok", or what CHECK found
	Config         *runtimeapi.PodSandboxConfig `json:"config"`
	RuntimeSpec    *specs.Spec                  `json:"runtimeSpec"`
}

// imageDetails is what verbose status shows of an image. Scripts around crictl
// read imageSpec and chainID by these names.
type imageDetails struct {
	ChainID   digest.Digest               `json:"chainID,omitempty"` // of the whole chain of layers
	Manifest  digest.Digest               `json:"manifest"`
	Source    string                      `json:"source,omitempty"` // host that served it
	PulledAt  time.Time                   `json:"pulledAt"`
	Unshared  uint64                      `json:"unshared"` // bytes that go when the image goes
	Users     []string                    `json:"users,omitempty"`
	Layers    []imageservice.LayerDetails `json:"layers"` // the lowest one first
	ImageSpec imagespec.Image             `json:"imageSpec"`
}

func containerInfo(st *sandbox.ContainerStatus) *containerDetails {
	details := &containerDetails{
		SandboxID:  st.SandboxID,
		PID:        st.PID,
		Privileged: st.Config.GetLinux().GetSecurityContext().GetPrivileged(),
		Bundle:     st.Bundle,
		Rootfs:     st.Rootfs,
		Config:     st.Config,
	}
	var err error
	if details.RuntimeSpec, err = readSpec(st.Bundle); err != nil {
		details.SpecError = err.Error()
	}
	return details
}

// readSpec reads what the container was made of, as it is on disk.
func readSpec(bundle string) (json.RawMessage, error) {
	if bundle == "" {
		return nil, nil
	}
	f, err := os.Open(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSpecBytes+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	switch {
	case len(data) > maxSpecBytes:
		return nil, fmt.Errorf("%s: more than %d bytes", f.Name(), maxSpecBytes)
	case !json.Valid(data):
		return nil, fmt.Errorf("%s: not JSON", f.Name())
	}
	return data, nil
}

func podInfo(st *sandbox.SandboxStatus) *podDetails {
	spec := &specs.Spec{
		Version:     specs.Version,
		Hostname:    st.Config.GetHostname(),
		Annotations: st.Config.GetAnnotations(),
		Linux:       &specs.Linux{CgroupsPath: st.Cgroup},
	}
	if st.NetNS != "" {
		spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: st.NetNS}}
	}
	return &podDetails{
		PID:            st.PausePID,
		RuntimeHandler: st.Handler,
		NetNS:          st.NetNS,
		IPs:            st.IPs,
		Config:         st.Config,
		RuntimeSpec:    spec,
	}
}

// networkInfo is what the network's plugins say of a pod that runs on it.
func networkInfo(ctx context.Context, box *sandbox.Sandbox) string {
	if st := box.Status(); st.NetNS == "" || st.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	if err := box.CheckNetwork(ctx); err != nil {
		return err.Error()
	}
	return "ok"
}

func (s *imageService) imageInfo(image *imageservice.Image) (*imageDetails, error) {
	d, err := s.config.Images.Details(image.ID)
	if err != nil {
		return nil, fmt.Errorf("details of image %s: %w", image.ID, err)
	}
	chain := make([]digest.Digest, 0, len(d.Layers))
	for _, l := range d.Layers {
		chain = append(chain, l.DiffID)
	}
	return &imageDetails{
		ChainID: identity.ChainID(chain), Manifest: d.Manifest, Source: d.Source, PulledAt: d.PulledAt,
		Unshared: d.Unshared, Users: d.Users, Layers: d.Layers, ImageSpec: d.Config,
	}, nil
}

// toJSON encodes a value of Info; CRI wants JSON there whatever happens.
func toJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		data, err = json.Marshal(map[string]string{"error": err.Error()})
		if err != nil {
			return "{}"
		}
	}
	return strings.ToValidUTF8(string(data), "\uFFFD")
}
