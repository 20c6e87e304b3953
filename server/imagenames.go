package server

import (
	"slices"
	"strings"

	"github.com/distribution/reference"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// imageName is what CRI tells of the image of a container.
type imageName struct {
	spec *runtimeapi.ImageSpec
	ref  string // digested reference
}

// imageNames finds the names of containers' images, each image once: one is
// made for each RPC, as names come and go.
type imageNames struct {
	images ImageStore
	known  map[[2]string]imageName // by image id and what the user called it
}

func newImageNames(images ImageStore) *imageNames {
	return &imageNames{images: images, known: map[[2]string]imageName{}}
}

// of names the image of a container. Clients create containers from ids; users
// want to read the name they wrote, or any if that is gone.
func (n *imageNames) of(st *sandbox.ContainerStatus) imageName {
	spec := st.Config.GetImage()
	wanted := spec.GetUserSpecifiedImage()
	if wanted == "" {
		wanted = spec.GetImage()
	}
	key := [2]string{st.ImageID, wanted}
	name, ok := n.known[key]
	if ok {
		return name
	}
	name = imageName{spec: &runtimeapi.ImageSpec{
		Image:              spec.GetImage(),
		Annotations:        spec.GetAnnotations(),
		UserSpecifiedImage: spec.GetUserSpecifiedImage(),
		RuntimeHandler:     spec.GetRuntimeHandler(),
		ImageRef:           spec.GetImageRef(),
	}, ref: st.ImageID}
	if image, err := n.images.Image(st.ImageID); err == nil {
		name.ref = digestOf(image, wanted)
		if tag := tagOf(image, wanted); tag != "" {
			name.spec.Image = tag
		}
	}
	n.known[key] = name
	return name
}

// mounts returns a container's mounts. One of an image gets the id of that image, as
// pulling it returned: the kubelet shows it as the volume's.
func (n *imageNames) mounts(st *sandbox.ContainerStatus) []*runtimeapi.Mount {
	mounts := st.Config.GetMounts()
	cloned := false
	for i, m := range mounts {
		if m.GetImage().GetImage() == "" || m.GetImage().GetImageRef() != "" {
			continue
		}
		id := n.volumeID(st, m.GetImage().GetImage())
		if id == "" {
			continue
		}
		if !cloned {
			mounts, cloned = slices.Clone(mounts), true
		}
		named := proto.CloneOf(m)
		named.Image.ImageRef = id
		mounts[i] = named
	}
	return mounts
}

// volumeID returns the id of the image that a container has mounted by that name, "" when
// it cannot be told any more: a name may be gone since, or mean another image.
func (n *imageNames) volumeID(st *sandbox.ContainerStatus, name string) string {
	if len(st.VolumeImages) == 1 {
		return st.VolumeImages[0]
	}
	if image, err := n.images.Image(name); err == nil && slices.Contains(st.VolumeImages, image.ID) {
		return image.ID
	}
	if slices.Contains(st.VolumeImages, name) {
		return name
	}
	return ""
}

// tagOf picks the tag that wanted means, or the first one.
func tagOf(image *imageservice.Image, wanted string) string {
	if len(image.RepoTags) == 0 {
		return ""
	}
	if named, err := reference.ParseDockerRef(wanted); err == nil {
		for _, tag := range image.RepoTags {
			if tag == named.String() {
				return tag
			}
		}
	}
	return image.RepoTags[0]
}

// digestOf picks the digest of the repository that wanted names, or the first
// one, or the image's id when it came without a digest.
func digestOf(image *imageservice.Image, wanted string) string {
	if len(image.RepoDigests) == 0 {
		return image.ID
	}
	if named, err := reference.ParseDockerRef(wanted); err == nil {
		for _, digest := range image.RepoDigests {
			if strings.HasPrefix(digest, named.Name()+"@") {
				return digest
			}
		}
	}
	return image.RepoDigests[0]
}
