package oci

import runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

// ValidateSandbox checks all of a sandbox's configuration that can be checked
// without looking at the host. Errors name the field.
func ValidateSandbox(config *runtimeapi.PodSandboxConfig) error { return nil }

// ValidateContainer checks all of a container's configuration that can be
// checked without looking at the host or the image. Errors name the field.
func ValidateContainer(config *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	return nil
}
