package critest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func needUnified(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		t.Skip("needs a host with cgroup v2 alone: make test-vm")
	}
}

// unified asks for files of cgroup v2 by their names.
func unified(keys map[string]string) containerOption {
	return resources(&runtimeapi.LinuxContainerResources{Unified: keys})
}

// rootDisk is the number of the device that has the root file system.
func rootDisk(t *testing.T) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
}

func TestUnifiedKeys(t *testing.T) {
	needUnified(t)
	begin(t)
	disk := rootDisk(t)
	p := run(t)
	for _, test := range []struct{ key, value, want string }{
		{"memory.high", "50331648", "50331648"},
		{"memory.min", "1048576", "1048576"},
		{"memory.low", "2097152", "2097152"},
		{"memory.max", "67108864", "67108864"},
		{"memory.swap.max", "0", "0"},
		{"memory.oom.group", "1", "1"},
		{"cpu.idle", "1", "1"},
		{"cpu.weight", "77", "77"},
		{"cpu.max", "30000 60000", "30000 60000"},
		{"cpu.uclamp.min", "12.50", "12.50"},
		{"cpu.uclamp.max", "75.00", "75.00"},
		{"io.max", disk + " rbps=1048576 wiops=120", disk + " rbps=1048576 wbps=max riops=max wiops=120"},
		{"io.weight", "default 50", "default 50"},
		{"pids.max", "55", "55"},
		{"cpuset.cpus", "0", "0"},
		{"hugetlb.2MB.max", "4194304", "4194304"},
	} {
		t.Run(test.key, func(t *testing.T) {
			q := *p
			q.t = t
			plain := q.start("sleep 1000")
			defer plain.remove()
			if _, err := os.Stat(filepath.Join(plain.cgroups("")[0], test.key)); err != nil {
				err := q.refused("true", unified(map[string]string{test.key: test.value}))
				if err == nil || !strings.Contains(err.Error(), test.key) {
					t.Errorf("the kernel has no such file, and the error is %v", err)
				}
				return
			}
			c := q.start("sleep 1000", unified(map[string]string{test.key: test.value}))
			defer c.remove()
			if got := c.cgroupFile(test.key, test.key); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
	err := p.refused("true", unified(map[string]string{"misc.max": "no-such-resource 1"}))
	if err == nil || !strings.Contains(err.Error(), "misc.max") {
		t.Errorf("a resource that the kernel does not know: %v", err)
	}
}

func TestUnifiedHugepages(t *testing.T) {
	needUnified(t)
	begin(t)
	if _, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-2048kB"); err != nil {
		t.Skip("needs huge pages of 2 MiB")
	}
	p := run(t)
	c := p.start("sleep 1000", resources(&runtimeapi.LinuxContainerResources{
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 6 << 20}},
	}))
	for _, file := range []string{"hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"} {
		if got := c.cgroupFile(file, file); got != "6291456" {
			t.Errorf("%s: %q", file, got)
		}
	}
}

// With memory.oom.group all of a container ends with one process of it, as the kubelet wants.
func TestUnifiedOOMOfTheGroup(t *testing.T) {
	needUnified(t)
	begin(t)
	p := run(t)
	const script = "dd if=/dev/zero of=/dev/null bs=200M count=1; sleep 1000"
	limits := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 24 << 20, Unified: map[string]string{"memory.oom.group": "1"}}
	if r := p.finish(script, resources(limits)); r.code != 137 || r.reason != "OOMKilled" {
		t.Errorf("code %d, reason %q, want 137, OOMKilled", r.code, r.reason)
	}
}

// Devices are allowed by a program on the cgroup, not by what the container may make.
func TestUnifiedDevices(t *testing.T) {
	needUnified(t)
	begin(t)
	if hasSELinux() {
		t.Skip("the policy allows a container no nodes, whatever their device")
	}
	p := run(t)
	const script = `cd /tmp; mknod null c 1 3; mknod kmsg c 1 11; mknod disk b %s %s
for d in null kmsg disk; do (: <$d) 2>/dev/null && echo $d opens; done; true`
	major, minor, _ := strings.Cut(rootDisk(t), ":")
	text := fmt.Sprintf(script, major, minor)
	nodes := security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"MKNOD"}}
	})
	if got := p.output(text, nodes); got != "null opens" {
		t.Errorf("%q", got)
	}
	c := p.start("sleep 1000", nodes)
	if got := strings.TrimSpace(c.exec(0, "sh", "-c", text)); got != "null opens" {
		t.Errorf("in an exec: %q", got)
	}
	// An update of other limits leaves the program where it is.
	if err := c.update(&runtimeapi.LinuxContainerResources{CpuShares: 512}); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(c.exec(0, "sh", "-c", "cd /tmp; (: <disk) 2>/dev/null && echo opens; true")); got != "" {
		t.Errorf("after an update the disk %s", got)
	}
}

func TestUnifiedPressure(t *testing.T) {
	needUnified(t)
	begin(t)
	if _, err := os.ReadFile("/proc/pressure/cpu"); err != nil {
		t.Skipf("needs pressure stall information: %v", err)
	}
	p := run(t)
	c := p.start("while :; do :; done & while :; do :; done & while :; do :; done & wait",
		resources(&runtimeapi.LinuxContainerResources{CpuQuota: 2000, CpuPeriod: 20_000}))
	await(t, "the container to wait for processors", func() bool {
		s, err := node.CRI.ContainerStats(t.Context(), c.id)
		if err != nil {
			t.Fatal(err)
		}
		if s.GetMemory().GetPsi().GetFull() == nil || s.GetIo().GetPsi().GetSome() == nil {
			t.Fatalf("no pressure of memory or devices: %v", s)
		}
		return s.GetCpu().GetPsi().GetSome().GetTotal() > 0
	})
	s, err := node.CRI.PodSandboxStats(t.Context(), p.id)
	if err != nil {
		t.Fatal(err)
	}
	if s.GetLinux().GetCpu().GetPsi().GetSome().GetTotal() == 0 {
		t.Errorf("pressure of the pod: %v", s.GetLinux().GetCpu())
	}
}

func TestUnifiedTreeInTheContainer(t *testing.T) {
	needUnified(t)
	begin(t)
	const script = "cat /proc/self/cgroup; mkdir /sys/fs/cgroup/x 2>/dev/null && echo made && rmdir /sys/fs/cgroup/x; true"
	p := run(t)
	if got := p.output(script); got != "0::/" {
		t.Errorf("a container sees and may do %q", got)
	}
	q := run(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	got := q.output(script, security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }))
	if !strings.HasSuffix(got, "\nmade") {
		t.Errorf("a privileged container sees and may do %q", got)
	}
}
