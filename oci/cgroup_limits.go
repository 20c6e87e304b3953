package oci

import (
	"fmt"
	"slices"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func (g *Cgroups) has(controller string) bool {
	for i := range g.hierarchies {
		if g.hierarchies[i].has(controller) {
			return true
		}
	}
	return false
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// limits translates r for the library, without what the kernel has no
// controller for. That is said in the second result.
func (g *Cgroups) limits(r *specs.LinuxResources) (*cgroups.Resources, []string, error) {
	// Without rules the library would deny all devices.
	res := &cgroups.Resources{SkipDevices: true}
	if r == nil {
		return res, nil, nil
	}
	var leftOut []string
	lacks := func(what, controller string) bool {
		if g.has(controller) {
			return false
		}
		leftOut = append(leftOut, fmt.Sprintf("%s: the kernel has no %s controller here", what, controller))
		return true
	}
	if m := r.Memory; m != nil && !lacks("memory limits", "memory") {
		g.memoryLimits(res, m, &leftOut)
	}
	if c := r.CPU; c != nil {
		if (c.Shares != nil || c.Quota != nil || c.Period != nil || c.Burst != nil || c.Idle != nil) && !lacks("CPU limits", "cpu") {
			res.CpuShares, res.CpuQuota, res.CpuPeriod = deref(c.Shares), deref(c.Quota), deref(c.Period)
			res.CpuBurst, res.CPUIdle = c.Burst, c.Idle
			res.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(res.CpuShares)
		}
		if (c.Cpus != "" || c.Mems != "") && !lacks("CPU and memory node sets", "cpuset") {
			res.CpusetCpus, res.CpusetMems = c.Cpus, c.Mems
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil && !lacks("process limit", "pids") {
		res.PidsLimit = r.Pids.Limit
	}
	if len(r.HugepageLimits) > 0 && !lacks("huge page limits", "hugetlb") {
		for _, h := range r.HugepageLimits {
			res.HugetlbLimit = append(res.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
		}
	}
	switch {
	case len(r.Unified) > 0 && g.v2:
		res.Unified = r.Unified
	case len(r.Unified) > 0:
		leftOut = append(leftOut, "unified: the host has cgroup v1")
	}
	if len(r.Devices) > 0 && (g.v2 || !lacks("device rules", "devices")) {
		rules, err := deviceRules(r.Devices)
		if err != nil {
			return nil, nil, err
		}
		res.Devices, res.SkipDevices = rules, false
	}
	return res, leftOut, nil
}

func (g *Cgroups) memoryLimits(res *cgroups.Resources, m *specs.LinuxMemory, leftOut *[]string) {
	res.Memory, res.MemoryReservation, res.MemorySwap = deref(m.Limit), deref(m.Reservation), deref(m.Swap)
	res.MemorySwappiness = m.Swappiness
	res.OomKillDisable = deref(m.DisableOOMKiller)
	res.MemoryCheckBeforeUpdate = deref(m.CheckBeforeUpdate)
	if res.MemorySwap != 0 && !g.swap {
		res.MemorySwap = 0
		*leftOut = append(*leftOut, "swap limit: the kernel does not account swap")
	}
}

// deviceRules translates the rules of the device cgroup. A rule without type
// is for all devices, one without a number for all numbers.
func deviceRules(list []specs.LinuxDeviceCgroup) ([]*devices.Rule, error) {
	number := func(n *int64) int64 {
		if n == nil {
			return devices.Wildcard
		}
		return *n
	}
	out := make([]*devices.Rule, len(list))
	for i, d := range list {
		kind := devices.WildcardDevice
		if d.Type != "" {
			kind = devices.Type(d.Type[0])
		}
		rule := &devices.Rule{
			Type: kind, Major: number(d.Major), Minor: number(d.Minor),
			Permissions: devices.Permissions(d.Access), Allow: d.Allow,
		}
		if len(d.Type) > 1 || !kind.CanCgroup() || !rule.Permissions.IsValid() {
			return nil, invalid(index("linux.resources.devices", i), "type %q, access %q", d.Type, d.Access)
		}
		out[i] = rule
	}
	return out, nil
}

// denyDevices writes the device rules of a v1 cgroup that was just made and
// takes them out of res. The library opens a file for each rule and reads the
// list before and after, which is a fifth of what a container's cgroup costs.
// What does not begin with "deny all" is left to it, and so is a cgroup that was there
// before, whose rules are not known.
func (c *Cgroup) denyDevices(res *cgroups.Resources) error {
	i := slices.IndexFunc(c.places, func(p place) bool { return p.has("devices") })
	first := res.Devices[0]
	if i < 0 || first.Allow || first.Type != devices.WildcardDevice || !slices.Contains(c.made, c.places[i].dir) {
		return nil
	}
	if slices.ContainsFunc(res.Devices[1:], func(r *devices.Rule) bool { return !r.Allow || r.Type == devices.WildcardDevice }) {
		return nil
	}
	dir := c.places[i].dir
	if err := cgroups.WriteFile(dir, "devices.deny", "a"); err != nil {
		return err
	}
	allow, err := cgroups.OpenFile(dir, "devices.allow", unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer allow.Close()
	for _, rule := range res.Devices[1:] {
		if _, err := allow.WriteString(rule.CgroupString()); err != nil {
			return fmt.Errorf("allow device %s: %w", rule.CgroupString(), err)
		}
	}
	res.Devices, res.SkipDevices = nil, true
	return nil
}
