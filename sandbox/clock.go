package sandbox

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The machine's clock may be set at any moment, by hours or years. No wait, limit or
// rate is measured by it (Go's times have a monotonic reading beside, as long as they
// are not converted); what is told as a time keeps its order.

// now returns the time, or the moment after another one that must have been before.
func now(before int64) int64 { return max(time.Now().UnixNano(), before+1) }

// order sees to it that a container was not started before it was created, nor
// ended before it was started: between the two the clock may have been set back, and
// a kubelet computes with the difference.
func (s *ContainerStatus) order() {
	if s.StartedAt != 0 {
		s.StartedAt = max(s.StartedAt, s.CreatedAt)
	}
	if s.State == stateExited {
		s.FinishedAt = max(s.FinishedAt, s.StartedAt, s.CreatedAt)
	}
}

// lastOf returns when the newest sandbox of a pod was created. A kubelet takes that
// for the present one: made with a clock that was set back, a new sandbox would be
// taken for an old one, and replaced again and again.
func (s *Store) lastOf(pod *runtimeapi.PodSandboxMetadata) (created int64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, b := range s.sandboxes {
		st := b.Status()
		if m := st.Config.GetMetadata(); m.GetUid() == pod.GetUid() && m.GetName() == pod.GetName() && m.GetNamespace() == pod.GetNamespace() {
			created = max(created, st.CreatedAt)
		}
	}
	return created
}

// lastNamed returns when the newest container of that name was created, likewise.
func (b *Sandbox) lastNamed(name string) (created int64) {
	b.store.mu.RLock()
	defer b.store.mu.RUnlock()
	for _, c := range b.own {
		if st := c.Status(); st.Config.GetMetadata().GetName() == name {
			created = max(created, st.CreatedAt)
		}
	}
	return created
}
