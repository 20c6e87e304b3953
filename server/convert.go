package server

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// The functions of this file turn states into CRI messages. They share the
// messages of the request that a state keeps: neither is ever changed.

func podStatus(st *sandbox.SandboxStatus) *runtimeapi.PodSandboxStatus {
	// The kubelet compares the options with the pod's and makes the sandbox
	// anew where they differ; nil would read as a change.
	options := st.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if options == nil {
		options = &runtimeapi.NamespaceOption{}
	}
	return &runtimeapi.PodSandboxStatus{
		Id:             st.ID,
		Metadata:       st.Config.GetMetadata(),
		State:          st.State,
		CreatedAt:      st.CreatedAt,
		Network:        podNetwork(st.IPs),
		Linux:          &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: options}},
		Labels:         st.Config.GetLabels(),
		Annotations:    st.Config.GetAnnotations(),
		RuntimeHandler: st.Handler,
	}
}

func podNetwork(ips []string) *runtimeapi.PodSandboxNetworkStatus {
	network := &runtimeapi.PodSandboxNetworkStatus{}
	for i, ip := range ips {
		if i == 0 {
			network.Ip = ip
			continue
		}
		network.AdditionalIps = append(network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
	}
	return network
}

func podItem(st *sandbox.SandboxStatus) *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{
		Id:             st.ID,
		Metadata:       st.Config.GetMetadata(),
		State:          st.State,
		CreatedAt:      st.CreatedAt,
		Labels:         st.Config.GetLabels(),
		Annotations:    st.Config.GetAnnotations(),
		RuntimeHandler: st.Handler,
	}
}

func containerStatus(st *sandbox.ContainerStatus, names *imageNames) *runtimeapi.ContainerStatus {
	image := names.of(st)
	return &runtimeapi.ContainerStatus{
		Id:          st.ID,
		Metadata:    st.Config.GetMetadata(),
		State:       st.State,
		CreatedAt:   st.CreatedAt,
		StartedAt:   st.StartedAt,
		FinishedAt:  st.FinishedAt,
		ExitCode:    st.ExitCode,
		Image:       image.spec,
		ImageRef:    image.ref,
		ImageId:     st.ImageID,
		Reason:      strings.ToValidUTF8(st.Reason, "\uFFFD"),
		Message:     strings.ToValidUTF8(st.Message, "\uFFFD"), // may quote a file of the image
		Labels:      st.Config.GetLabels(),
		Annotations: st.Config.GetAnnotations(),
		Mounts:      names.mounts(st),
		LogPath:     st.LogPath,
		Resources:   st.Resources,
		User:        st.User,
		StopSignal:  stopSignal(st.StopSignal),
	}
}

func containerItem(st *sandbox.ContainerStatus, names *imageNames) *runtimeapi.Container {
	image := names.of(st)
	return &runtimeapi.Container{
		Id:           st.ID,
		PodSandboxId: st.SandboxID,
		Metadata:     st.Config.GetMetadata(),
		Image:        image.spec,
		ImageRef:     image.ref,
		ImageId:      st.ImageID,
		State:        st.State,
		CreatedAt:    st.CreatedAt,
		Labels:       st.Config.GetLabels(),
		Annotations:  st.Config.GetAnnotations(),
	}
}

func imageItem(image *imageservice.Image) *runtimeapi.Image {
	item := &runtimeapi.Image{
		Id:          image.ID,
		RepoTags:    image.RepoTags,
		RepoDigests: image.RepoDigests,
		Size:        max(image.Size, 1), // CRI: must be > 0
		Spec:        &runtimeapi.ImageSpec{Image: image.ID},
		Pinned:      image.Pinned,
	}
	item.Uid, item.Username = imageUser(image)
	return item
}

// imageUser says in CRI's words whom the image's containers run as: the kubelet
// refuses runAsNonRoot for uid 0 and for names; neither is root, it says.
func imageUser(image *imageservice.Image) (*runtimeapi.Int64Value, string) {
	uid, name := image.User()
	if uid == nil {
		return nil, name
	}
	return &runtimeapi.Int64Value{Value: *uid}, ""
}
