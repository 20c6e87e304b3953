package oci

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// HostDevices lists the device nodes below /dev that a privileged container
// gets.
func HostDevices() ([]specs.LinuxDevice, error) { return nil, ErrUnsupported }

// ReadDevices looks at the host_path of each of config.devices: a device, a
// link to one, or a directory of them. The result is Container.Devices.
func ReadDevices(config *runtimeapi.ContainerConfig) (map[string][]specs.LinuxDevice, error) {
	return nil, ErrUnsupported
}
