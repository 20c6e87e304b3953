package oci

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// MergeResources returns old with what change specifies: as everywhere in
// CRI, zero values specify nothing. Both may be nil, neither is changed.
func MergeResources(old, change *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		out, _ = proto.Clone(old).(*runtimeapi.LinuxContainerResources)
	}
	for _, h := range change.GetHugepageLimits() {
		out.HugepageLimits = append(withoutPageSize(out.HugepageLimits, h.GetPageSize()), h)
	}
	if change == nil {
		return out
	}
	rest, _ := proto.Clone(change).(*runtimeapi.LinuxContainerResources)
	rest.HugepageLimits = nil
	proto.Merge(out, rest)
	return out
}

func withoutPageSize(limits []*runtimeapi.HugepageLimit, size string) []*runtimeapi.HugepageLimit {
	var out []*runtimeapi.HugepageLimit
	for _, h := range limits {
		if h.GetPageSize() != size {
			out = append(out, h)
		}
	}
	return out
}

// UpdateResources checks limits that a running container or a pod shall have, and
// translates them. field is what errors name.
func UpdateResources(field string, r *runtimeapi.LinuxContainerResources, host *Host) (*specs.LinuxResources, error) {
	if err := checkResources(field, r); err != nil {
		return nil, err
	}
	if len(r.GetUnified()) > 0 && !host.CgroupV2 {
		return nil, unsupported(field+".unified", "the node has cgroup v1")
	}
	return Resources(r, host), nil
}

// PodResources adds a pod's overhead to the sum of its containers' limits: what
// the pod's own cgroup may use. A limit that the containers do not have, the
// pod does not have either.
func PodResources(resources, overhead *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	sum := MergeResources(nil, resources)
	if sum.MemoryLimitInBytes > 0 {
		sum.MemoryLimitInBytes += overhead.GetMemoryLimitInBytes()
	}
	if sum.MemorySwapLimitInBytes > 0 {
		sum.MemorySwapLimitInBytes += overhead.GetMemoryLimitInBytes()
	}
	if sum.CpuShares > 0 {
		sum.CpuShares += overhead.GetCpuShares()
	}
	if q := overhead.GetCpuQuota(); sum.CpuQuota > 0 && q > 0 && overhead.GetCpuPeriod() > 0 && sum.CpuPeriod > 0 {
		sum.CpuQuota += q * sum.CpuPeriod / overhead.GetCpuPeriod()
	}
	return sum
}
