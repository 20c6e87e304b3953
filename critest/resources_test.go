package critest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

func resources(r *runtimeapi.LinuxContainerResources) containerOption {
	return func(c *runtimeapi.ContainerConfig) { c.Linux.Resources = r }
}

// cgroups finds the container's cgroup on the host, in one hierarchy or in all.
func (c *container) cgroups(hierarchy string) []string {
	c.t.Helper()
	var out []string
	for _, below := range []string{"/*", "/*/*"} { // the second with systemd: there is a scope in the pod's slice
		found, err := filepath.Glob("/sys/fs/cgroup" + hierarchy + c.pod.config.Linux.CgroupParent + below + c.id + "*")
		if err != nil {
			c.t.Fatal(err)
		}
		out = append(out, found...)
	}
	return out
}

// cgroupFile reads a file of the container's cgroup, whose name depends on the version.
func (c *container) cgroupFile(v1, v2 string) string {
	c.t.Helper()
	paths := make([]string, 0, 16)
	for _, dir := range c.cgroups("/*") {
		paths = append(paths, filepath.Join(dir, v1))
	}
	for _, dir := range c.cgroups("") {
		paths = append(paths, filepath.Join(dir, v2))
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			c.t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	c.t.Fatalf("no %s or %s in a cgroup of %s", v1, v2, c.id)
	return ""
}

func TestResources(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("sleep 1000", resources(&runtimeapi.LinuxContainerResources{
		CpuShares: 512, CpuQuota: 20_000, CpuPeriod: 50_000, MemoryLimitInBytes: 96 << 20, OomScoreAdj: 777, CpusetCpus: "0",
	}))
	for _, test := range []struct{ v1, v2, want1, want2 string }{
		{"cpu.shares", "cpu.weight", "512", "59"},
		{"cpu.cfs_quota_us", "cpu.max", "20000", "20000 50000"},
		{"cpu.cfs_period_us", "cpu.max", "50000", "20000 50000"},
		{"memory.limit_in_bytes", "memory.max", "100663296", "100663296"},
		{"cpuset.cpus", "cpuset.cpus", "0", "0"},
	} {
		if got := c.cgroupFile(test.v1, test.v2); got != test.want1 && got != test.want2 {
			t.Errorf("%s: %q, want %q", test.v1, got, test.want1)
		}
	}
	if got := strings.TrimSpace(c.exec(0, "cat", "/proc/1/oom_score_adj")); got != "777" {
		t.Errorf("oom_score_adj %s, want 777", got)
	}
	if got := c.exec(0, "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"); strings.TrimSpace(got) != "100663296" {
		t.Errorf("the container sees %q as its limit", got)
	}
	if r := c.status().GetResources().GetLinux(); !peer && (r.GetMemoryLimitInBytes() != 96<<20 || r.GetCpuShares() != 512) {
		t.Errorf("resources in the status: %v", r)
	}
}

func TestOOMKilled(t *testing.T) {
	begin(t)
	p := run(t)
	limit := resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 24 << 20, OomScoreAdj: 500})
	r := p.finish("exec dd if=/dev/zero of=/dev/null bs=200M count=1", limit)
	if r.code != 137 || r.reason != "OOMKilled" {
		t.Errorf("code %d, reason %q, want 137, OOMKilled", r.code, r.reason)
	}
	if r := p.finish("exit 3", limit); r.reason != "Error" {
		t.Errorf("without running out of memory: reason %q", r.reason)
	}
}

func TestOOMScore(t *testing.T) {
	begin(t)
	p := run(t)
	for _, score := range []int64{0, 2, 1000} {
		got := p.output("cat /proc/self/oom_score_adj", resources(&runtimeapi.LinuxContainerResources{OomScoreAdj: score}))
		if want := map[int64]string{0: "0", 2: "2", 1000: "1000"}[score]; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestProcessesStayInTheirCgroup(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("sleep 1001 & sleep 1002 & wait")
	c.exec(0, "sh", "-c", "for i in $(seq 200); do test $(pidof sleep | wc -w) = 2 && exit 0; usleep 20000; done; exit 1")
	if got := strings.Fields(c.cgroupFile("cgroup.procs", "cgroup.procs")); len(got) != 3 {
		t.Errorf("%d processes in the cgroup, want 3", len(got))
	}
	// No hierarchy of version 1 may be forgotten.
	for _, h := range []string{"memory", "pids", "cpu", "devices", "freezer"} {
		if _, err := os.Stat("/sys/fs/cgroup/" + h); err != nil {
			continue
		}
		found := c.cgroups("/" + h)
		if len(found) != 1 {
			t.Errorf("%s: %q", h, found)
			continue
		}
		data, err := os.ReadFile(filepath.Join(found[0], "cgroup.procs"))
		if err != nil || len(strings.Fields(string(data))) != 3 {
			t.Errorf("%s: processes %q (%v), want 3", h, data, err)
		}
	}
}

func TestMemoryOfManyProcessesIsFreed(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("for i in $(seq 50); do sleep 1000 & done; echo up; wait")
	c.prints("up")
	c.stop(0)
	if err := harness.Until(t.Context(), patience, "all processes to be gone", func() bool {
		table, err := harness.Table()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range harness.Descendants(table, os.Getpid()) {
			if d.Command == "sleep" && d.State != 'Z' && !peer {
				return false
			}
		}
		return true
	}); err != nil {
		t.Error(err)
	}
}

// Every container that lost a process for want of memory says so, whether its
// first process was the one or only failed for it; LONG=1 counts a hundred of each.
func TestOOMKilledIsNeverMissed(t *testing.T) {
	differs(t, "misses some")
	begin(t)
	rounds := 10
	if os.Getenv("LONG") != "" {
		rounds = 100
	}
	p := run(t)
	limit := resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 24 << 20, OomScoreAdj: 500})
	const hog = "dd if=/dev/zero of=/dev/null bs=200M count=1"
	for _, kind := range []struct {
		name, script string
		code         int32
	}{
		{"the first process is killed", "exec " + hog, 137},
		{"a child is killed, the first process fails", hog + "; exit 3", 3},
		{"a child in the background is killed", hog + " & wait $!; exit 4", 4},
	} {
		right := 0
		for range rounds {
			r := p.finish(kind.script, limit)
			if r.reason == "OOMKilled" && r.code == kind.code {
				right++
				continue
			}
			t.Errorf("%s: code %d, reason %q", kind.name, r.code, r.reason)
		}
		t.Logf("%s: %d of %d", kind.name, right, rounds)
	}
}
