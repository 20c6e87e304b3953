package sandbox

import (
	"strings"
	"time"

	"github.com/cri-runtime/cri-runtime/oci"
)

// shareCgroup marks the pods in whose cgroup there are others', too, since b
// came: the kernel's figures of it are not one pod's. The mark stays, for what
// others have used stays in the counters. s.mu is held.
func (s *Store) shareCgroup(b *Sandbox) {
	st := b.Status()
	for _, other := range s.sandboxes {
		o := other.Status()
		if other == b || o.Config.GetMetadata().GetUid() == st.Config.GetMetadata().GetUid() {
			continue // an earlier attempt of the same pod
		}
		if within(st.Cgroup, o.Cgroup) {
			b.shared.Store(true)
		}
		if within(o.Cgroup, st.Cgroup) {
			other.shared.Store(true)
		}
	}
}

// within tells whether the cgroup inner is outer or below it.
func within(outer, inner string) bool {
	rest, ok := strings.CutPrefix(inner, outer)
	return ok && (rest == "" || rest[0] == '/')
}

// sumOf is what a pod uses as the sum of what its running containers use.
func (b *Sandbox) sumOf(containers []*Usage) *Usage {
	at := time.Now()
	u := &Usage{At: at.UnixNano(), Cgroup: b.Status().Cgroup}
	u.CPU.Known, u.Pids.Known = true, true
	u.Memory = oci.MemoryStats{Known: true, Limit: oci.NoLimit, SwapLimit: oci.NoLimit}
	u.Pids.Limit = oci.NoLimit
	for _, c := range containers {
		u.CPU.Usage += c.CPU.Usage
		m, of := &u.Memory, &c.Memory
		m.Usage, m.WorkingSet, m.RSS, m.Cache = m.Usage+of.Usage, m.WorkingSet+of.WorkingSet, m.RSS+of.RSS, m.Cache+of.Cache
		m.Swap, m.SwapKnown = m.Swap+of.Swap, m.SwapKnown || of.SwapKnown
		m.PageFaults, m.MajorPageFaults = m.PageFaults+of.PageFaults, m.MajorPageFaults+of.MajorPageFaults
		u.Pids.Current += c.Pids.Current
		n := c.Processes
		if n == 0 {
			n = len(b.store.processes(c))
		}
		u.Processes += n
	}
	u.NanoCores, u.NanoCoresKnown = b.meter.rate.add(at, u.CPU.Usage)
	return u
}
