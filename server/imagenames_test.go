package server

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// A volume that is an image is shown with the image's digest; what the kubelet
// wrote itself stays, and the state that all share is not changed.
func TestImageMounts(t *testing.T) {
	mounts := []*runtimeapi.Mount{
		{ContainerPath: "/host", HostPath: "/srv"},
		{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{
			Image: busyboxID, UserSpecifiedImage: mirrorTag, Annotations: map[string]string{"a": "b"},
		}},
		{ContainerPath: "/told", Image: &runtimeapi.ImageSpec{Image: busyboxID, ImageRef: "told"}},
		{ContainerPath: "/gone", Image: &runtimeapi.ImageSpec{Image: "gone"}},
	}
	st := &sandbox.ContainerStatus{ImageID: busyboxID, Config: &runtimeapi.ContainerConfig{Mounts: mounts}}
	got := newImageNames(newMemoryImages(busybox())).mounts(st)
	if len(got) != len(mounts) {
		t.Fatalf("%d mounts", len(got))
	}
	for i, want := range []string{"", mirrorDigest, "told", ""} {
		if ref := got[i].GetImage().GetImageRef(); ref != want || got[i].GetContainerPath() != mounts[i].GetContainerPath() {
			t.Errorf("%s: image_ref %q, want %q", got[i].GetContainerPath(), ref, want)
		}
	}
	if i := got[1].GetImage(); i.GetImage() != busyboxID || i.GetUserSpecifiedImage() != mirrorTag || i.GetAnnotations()["a"] != "b" {
		t.Errorf("image %v", i)
	}
	if mounts[1].GetImage().GetImageRef() != "" {
		t.Error("the container's own configuration was changed")
	}
}
