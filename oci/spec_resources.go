package oci

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	unlimited = -1 // memory, swap and CPU quota
	minShares = 2
	maxShares = 1 << 18
	minPeriod = 1000 // us
	maxPeriod = 1000 * 1000
	minQuota  = 1000
	maxQuota  = 1000 * 1000 * maxPeriod // a million processors; the kernel takes 17 times as much
	maxSize   = 32                      // bytes of the name of a size of pages
	minScore  = -1000
	maxScore  = 1000
)

// checkResources checks the ranges that the kernel would refuse later with a
// bare EINVAL.
func checkResources(field string, r *runtimeapi.LinuxContainerResources) error {
	if n := r.GetCpuPeriod(); n != 0 && (n < minPeriod || n > maxPeriod) {
		return invalid(field+".cpu_period", "%d us is not between %d and %d", n, minPeriod, maxPeriod)
	}
	if n := r.GetCpuQuota(); n < unlimited || (n > 0 && n < minQuota) || n > maxQuota {
		return invalid(field+".cpu_quota", "%d us is not between %d and %d, and not -1, which means no limit", n, minQuota, int64(maxQuota))
	}
	if n := r.GetCpuShares(); n < 0 {
		return invalid(field+".cpu_shares", "%d is negative", n)
	}
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit < unlimited {
		return invalid(field+".memory_limit_in_bytes", "%d is negative", limit)
	}
	if swap < unlimited {
		return invalid(field+".memory_swap_limit_in_bytes", "%d is negative", swap)
	}
	if swap > 0 && limit > 0 && swap < limit {
		return invalid(field+".memory_swap_limit_in_bytes", "%d counts memory and swap, so it cannot be less than memory_limit_in_bytes %d", swap, limit)
	}
	if n := r.GetOomScoreAdj(); n < minScore || n > maxScore {
		return invalid(field+".oom_score_adj", "%d is not between %d and %d", n, minScore, maxScore)
	}
	for name, s := range map[string]string{".cpuset_cpus": r.GetCpusetCpus(), ".cpuset_mems": r.GetCpusetMems()} {
		if strings.Trim(s, "0123456789,-") != "" || len(s) > maxSysctlBytes {
			return invalid(field+name, "%.100q is not a list like 0-3,7", s)
		}
	}
	for i, h := range r.GetHugepageLimits() {
		if size := h.GetPageSize(); size == "" || len(size) > maxSize || strings.Trim(size, "0123456789KMGTB") != "" {
			return invalid(index(field+".hugepage_limits", i)+".page_size", "%.64q is not a size like 2MB", size)
		}
	}
	return checkUnified(field+".unified", r.GetUnified())
}

// checkUnified accepts names of a cgroup's own files and nothing that leads out of its directory.
func checkUnified(field string, unified map[string]string) error {
	for _, k := range sortedKeys(unified) {
		controller, parameter, ok := strings.Cut(k, ".")
		if !ok || controller == "" || parameter == "" || strings.ContainsAny(k, "/\x00\n") || len(k) > maxNameBytes {
			return invalid(field, "%.300q is not of the form controller.parameter", k)
		}
		// These move processes or change who may, they limit nothing.
		if controller == "cgroup" {
			return invalid(field, "%q is not a resource", k)
		}
		if strings.IndexByte(unified[k], 0) >= 0 || len(unified[k]) > maxSysctlBytes {
			return invalid(field+"["+k+"]", "%.100q cannot be written", unified[k])
		}
	}
	return nil
}

// resources translates the limits of the container.
func (c *Container) resources() (*specs.LinuxResources, error) {
	r := c.Config.GetLinux().GetResources()
	if len(r.GetUnified()) > 0 && !c.Host.CgroupV2 {
		return nil, unsupported(resourcesField+".unified", "the node has cgroup v1")
	}
	return Resources(r, c.Host), nil
}

// Resources translates CRI limits, which ValidateSandbox or ValidateContainer
// has checked. Zero values set nothing. What the host cannot limit is left out.
func Resources(r *runtimeapi.LinuxContainerResources, host *Host) *specs.LinuxResources {
	out := &specs.LinuxResources{CPU: cpuResources(r), Memory: memoryResources(r, host)}
	for _, h := range r.GetHugepageLimits() {
		if slices.Contains(host.HugepageSizes, h.GetPageSize()) {
			out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
		}
	}
	if host.CgroupV2 && len(r.GetUnified()) > 0 {
		out.Unified = make(map[string]string, len(r.GetUnified()))
		for k, v := range r.GetUnified() {
			out.Unified[k] = v
		}
	}
	return out
}

func cpuResources(r *runtimeapi.LinuxContainerResources) *specs.LinuxCPU {
	cpu := specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if n := r.GetCpuPeriod(); n != 0 {
		period := uint64(n)
		cpu.Period = &period
	}
	if n := r.GetCpuQuota(); n != 0 {
		cpu.Quota = &n
	}
	if n := r.GetCpuShares(); n != 0 {
		shares := uint64(min(max(n, minShares), maxShares))
		cpu.Shares = &shares
	}
	if cpu == (specs.LinuxCPU{}) {
		return nil
	}
	return &cpu
}

// memoryResources gives a container with a memory limit no swap unless the
// request says how much.
func memoryResources(r *runtimeapi.LinuxContainerResources, host *Host) *specs.LinuxMemory {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit == 0 && (swap == 0 || !host.Swap) {
		return nil
	}
	m := &specs.LinuxMemory{}
	if limit != 0 {
		m.Limit = &limit
	}
	if host.Swap {
		if swap == 0 {
			swap = limit
		}
		m.Swap = &swap
	}
	return m
}

// missingResources says what Resources left out.
func (c *Container) missingResources() []string {
	var out []string
	r := c.Config.GetLinux().GetResources()
	for _, h := range r.GetHugepageLimits() {
		if !slices.Contains(c.Host.HugepageSizes, h.GetPageSize()) {
			out = append(out, fmt.Sprintf("%s.hugepage_limits: pages of %s are not limited, the node has no hugetlb controller for them", resourcesField, h.GetPageSize()))
		}
	}
	if r.GetMemorySwapLimitInBytes() > 0 && !c.Host.Swap {
		out = append(out, resourcesField+".memory_swap_limit_in_bytes: is not set, the kernel does not account swap")
	}
	return out
}

// cutRlimits says which of the node's default limits ClampRlimits lowered.
func (c *Container) cutRlimits() []string {
	var out []string
	for i, l := range c.Host.ClampRlimits(c.Rlimits) {
		if want := c.Rlimits[i].Hard; l.Hard != want {
			out = append(out, fmt.Sprintf("%s: hard limit %d instead of %d, the daemon lacks CAP_SYS_RESOURCE", l.Type, l.Hard, want))
		}
	}
	return out
}
