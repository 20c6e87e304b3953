package oci

import runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

// SandboxSysctls returns the sysctls that are to be written inside the pod's
// namespaces, by name with dots, or an error that names the one refused.
func SandboxSysctls(config *runtimeapi.PodSandboxConfig) (map[string]string, error) {
	return nil, ErrUnsupported
}
