package server

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// A volume that is an image is shown with the image's id; what the kubelet
// wrote itself stays, and the state that all share is not changed.
func TestImageMounts(t *testing.T) {
	mounts := []*runtimeapi.Mount{
		{ContainerPath: "/host", HostPath: "/srv"},
		{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{
			Image: busyboxID, UserSpecifiedImage: mirrorTag, Annotations: map[string]string{"a": "b"},
		}},
		{ContainerPath: "/told", Image: &runtimeapi.ImageSpec{Image: busyboxID, ImageRef: "told"}},
		{ContainerPath: "/gone", Image: &runtimeapi.ImageSpec{Image: "gone"}},
		{ContainerPath: "/removed", Image: &runtimeapi.ImageSpec{Image: "sha256:other"}},
	}
	st := &sandbox.ContainerStatus{ImageID: busyboxID, VolumeImages: []string{busyboxID, "sha256:other"}, Config: &runtimeapi.ContainerConfig{Mounts: mounts}}
	got := newImageNames(newMemoryImages(busybox())).mounts(st)
	if len(got) != len(mounts) {
		t.Fatalf("%d mounts", len(got))
	}
	for i, want := range []string{"", busyboxID, "told", "", "sha256:other"} {
		if ref := got[i].GetImage().GetImageRef(); ref != want || got[i].GetContainerPath() != mounts[i].GetContainerPath() {
			t.Errorf("%s: image_ref %q, want %q", got[i].GetContainerPath(), ref, want)
		}
	}
	if i := got[1].GetImage(); i.GetImage() != busyboxID || i.GetUserSpecifiedImage() != mirrorTag || i.GetAnnotations()["a"] != "b" {
		t.Errorf("image %v", i)
	}
	st.VolumeImages = []string{"sha256:before"}
	if ref := newImageNames(newMemoryImages(busybox())).mounts(st)[1].GetImage().GetImageRef(); ref != "sha256:before" {
		t.Errorf("a tag that means another image now: %q", ref)
	}
	if mounts[1].GetImage().GetImageRef() != "" {
		t.Error("the container's own configuration was changed")
	}
}
