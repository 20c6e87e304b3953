package oci

import (
	"maps"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// values reads all limit files of the cgroup.
func (c *Cgroup) values(t *testing.T) map[string]string {
	t.Helper()
	saved, err := c.save(&specs.LinuxResources{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, l := range saved {
		out[filepath.Base(l.file)] = l.value
	}
	return out
}

func TestCgroupUpdate(t *testing.T) {
	g, top := testCgroups(t)
	c, err := g.Create(top+"/a", containerLimits())
	if err != nil {
		t.Fatal(err)
	}
	before := c.values(t)
	shares, limit := uint64(1024), int64(96<<20)
	good := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}, Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}
	if err := c.Update(good); err != nil {
		t.Fatal(err)
	}
	after := c.values(t)
	if g.has("memory") && maps.Equal(before, after) {
		t.Error("nothing has changed:", after)
	}
	bad := &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4095"}, Memory: containerLimits().Memory}
	if g.has("cpuset") {
		if err := c.Update(bad); err == nil {
			t.Error("CPUs that the machine has not are accepted")
		}
	}
	if now := c.values(t); !maps.Equal(now, after) {
		t.Errorf("an update that failed left %v, want %v", now, after)
	}
}

func TestSetOOMScore(t *testing.T) {
	g, top := testCgroups(t)
	c, err := g.Create(top+"/a", nil)
	if err != nil {
		t.Fatal(err)
	}
	startIn(t, c, "sleep 1000")
	if err := c.SetOOMScore(613); err != nil {
		t.Fatal(err)
	}
	pids, err := c.Procs()
	if err != nil || len(pids) == 0 {
		t.Fatal(pids, err)
	}
	for _, pid := range pids {
		if n, err := readInt(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj")); err != nil || n != 613 {
			t.Errorf("process %d has %d, %v", pid, n, err)
		}
	}
}

func TestMergeResources(t *testing.T) {
	old := &runtimeapi.LinuxContainerResources{
		CpuShares: 512, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0",
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}, {PageSize: "1GB", Limit: 2}},
		Unified:        map[string]string{"memory.high": "1", "memory.low": "2"},
	}
	got := MergeResources(old, &runtimeapi.LinuxContainerResources{
		CpuQuota: 1000, MemoryLimitInBytes: 96 << 20,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}},
		Unified:        map[string]string{"memory.high": "3"},
	})
	if got.CpuShares != 512 || got.CpuQuota != 1000 || got.MemoryLimitInBytes != 96<<20 || got.CpusetCpus != "0" ||
		len(got.HugepageLimits) != 2 || got.HugepageLimits[1].Limit != 0 || got.Unified["memory.high"] != "3" || got.Unified["memory.low"] != "2" {
		t.Errorf("merged: %v", got)
	}
	if old.MemoryLimitInBytes != 64<<20 || len(old.HugepageLimits) != 2 || old.Unified["memory.high"] != "1" {
		t.Errorf("the old limits were changed: %v", old)
	}
	if MergeResources(nil, nil) == nil {
		t.Error("nothing merged with nothing is nil")
	}
}

func TestPodResources(t *testing.T) {
	got := PodResources(
		&runtimeapi.LinuxContainerResources{CpuShares: 100, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 10},
		&runtimeapi.LinuxContainerResources{CpuShares: 10, CpuQuota: 10000, CpuPeriod: 50000, MemoryLimitInBytes: 5})
	if got.CpuShares != 110 || got.CpuQuota != 70000 || got.MemoryLimitInBytes != 15 {
		t.Errorf("sum: %v", got)
	}
	if got := PodResources(nil, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 5}); got.MemoryLimitInBytes != 0 {
		t.Errorf("containers without a limit, a pod with one: %v", got)
	}
}
