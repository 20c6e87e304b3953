package oci

import (
	"os"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// User is who a container's first process runs as.
type User struct {
	UID, GID       uint32
	AdditionalGids []uint32 // sorted, GID among them, nothing twice
	Username       string   // "" when the image's passwd file does not name UID
	Home           string   // absolute; "/" when the image says nothing usable
}

// ResolveUser finds the user of a container: run_as_user or run_as_username,
// run_as_group and the supplemental groups of config, or else the image's
// USER, by etc/passwd and etc/group below root. root is an O_PATH descriptor
// of the container's root directory and remains the caller's.
func ResolveUser(root *os.File, config *runtimeapi.ContainerConfig, image *imagespec.Image) (User, error) {
	return User{}, ErrUnsupported
}

// CRI returns u as ContainerStatus reports it.
func (u User) CRI() *runtimeapi.ContainerUser { return nil }
