package server

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// matchPod says that a sandbox passes every part of the filter. An id may be
// given by its beginning; no filter passes all.
func matchPod(f *runtimeapi.PodSandboxFilter, st *sandbox.SandboxStatus) bool {
	return strings.HasPrefix(st.ID, f.GetId()) &&
		(f.GetState() == nil || f.GetState().GetState() == st.State) &&
		matchLabels(f.GetLabelSelector(), st.Config.GetLabels())
}

// matchContainer does for containers what matchPod does for sandboxes.
func matchContainer(f *runtimeapi.ContainerFilter, st *sandbox.ContainerStatus) bool {
	return strings.HasPrefix(st.ID, f.GetId()) &&
		strings.HasPrefix(st.SandboxID, f.GetPodSandboxId()) &&
		(f.GetState() == nil || f.GetState().GetState() == st.State) &&
		matchLabels(f.GetLabelSelector(), st.Config.GetLabels())
}

func matchLabels(selector, labels map[string]string) bool {
	for key, want := range selector {
		if got, ok := labels[key]; !ok || got != want {
			return false
		}
	}
	return true
}
