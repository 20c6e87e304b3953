package imageservice

import (
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is one image of the store at one moment. It is never changed once
// returned, nor may its readers change it.
type Image struct {
	// ID is "sha256:" and the digest of the image's config. PullImage's
	// image_ref, Image.id and a container's image_id are all this text.
	ID string
	// RepoTags are the names with a tag, such as docker.io/library/busybox:1,
	// sorted.
	RepoTags []string
	// RepoDigests are the names with a digest: of the index if the name led to
	// one, otherwise of the manifest. Sorted.
	RepoDigests []string
	// Size is what the image takes on the disk, in bytes, layers that it
	// shares with others included.
	Size uint64
	// Config is the image's config. All of it is hostile input.
	Config ocispec.Image
	// Artifact is the type of an OCI artifact, "" for an image: containers can
	// have its files as a volume, they cannot run from it.
	Artifact string
	// Layers are the host directories of the layers, the top one first, ready
	// for the lowerdir of an overlay; empty for an image without layers.
	Layers []string
	// Pinned images are not to be removed by the kubelet's collection.
	Pinned bool
	// Manifest is the digest of the manifest of this platform.
	Manifest digest.Digest
	// PulledAt is when the image, or its latest name, was pulled.
	PulledAt time.Time
}

// User returns whom the image's containers run as, in CRI's two forms: a uid,
// or else a user name that the image's own passwd explains. Both are empty for
// an image that says nothing. The group part is left out. Digits that are out of
// range stay what they are, as if they were a name, for cut to 32 bits they might be
// root (CVE-2024-40635): the kubelet refuses names where it must know the uid,
// and no container is made with such a user.
func (i *Image) User() (uid *int64, name string) {
	user, _, _ := strings.Cut(i.Config.Config.User, ":")
	if user == "" || strings.Trim(user, "0123456789") != "" {
		return nil, user
	}
	n, err := strconv.ParseInt(user, 10, 32)
	if err != nil {
		return nil, user
	}
	return &n, ""
}

// Auth is how a pull identifies itself, as CRI's AuthConfig. No part of it is
// ever logged, stored or put into an error.
type Auth struct {
	Username, Password string
	Auth               string // base64 of "username:password", if the two are not given
	ServerAddress      string // the only registry that may see this; "": the image's own and its mirrors
	IdentityToken      string // exchanged for an access token by OAuth2
	RegistryToken      string // sent as it is, as a bearer token
}

// Usage is the disk space of the store.
type Usage struct {
	Path   string // directory on the file system in question
	Bytes  uint64
	Inodes uint64
}
