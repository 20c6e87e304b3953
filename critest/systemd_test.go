package critest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func bySystemd() bool { return os.Getenv("CRITEST_CGROUP_DRIVER") == "systemd" }

func needSystemd(t *testing.T) {
	t.Helper()
	if !bySystemd() {
		t.Skip("needs systemd and CRITEST_CGROUP_DRIVER=systemd: make test-vm")
	}
}

func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "systemctl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// hostCgroup is where systemd has the container's first process.
func (c *container) hostCgroup() string {
	c.t.Helper()
	data, err := os.ReadFile("/proc/" + strconv.Itoa(c.pid()) + "/cgroup")
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if fields[0] == "0" || fields[1] == "name=systemd" {
			if fields[2] != "/" {
				return fields[2]
			}
		}
	}
	c.t.Fatalf("no cgroup of systemd's: %s", data)
	return ""
}

func TestSystemdScope(t *testing.T) {
	needSystemd(t)
	begin(t)
	p := run(t)
	limits := resources(&runtimeapi.LinuxContainerResources{CpuQuota: 30_000, CpuPeriod: 60_000, MemoryLimitInBytes: 96 << 20, CpuShares: 512})
	a, b := p.start("sleep 1000", limits), p.start("sleep 1000")
	unit := "cri-runtime-" + p.id + ".scope"
	scope := p.config.Linux.CgroupParent + "/" + unit
	for _, c := range []*container{a, b} {
		if got := c.hostCgroup(); got != scope+"/"+filepath.Base(got) {
			t.Errorf("the container is in %s, not below %s", got, scope)
		}
	}
	shown := systemctl(t, "show", unit, "-p", "Delegate", "-p", "ActiveState", "-p", "Slice", "-p", "TasksMax", "-p", "ControlGroup")
	for _, want := range []string{"Delegate=yes", "ActiveState=active", "TasksMax=infinity", "ControlGroup=" + scope, "Slice=" + filepath.Base(p.config.Linux.CgroupParent)} {
		if !strings.Contains(shown+"\n", want+"\n") {
			t.Errorf("the unit has no %s:\n%s", want, shown)
		}
	}
	check := func(when string) {
		t.Helper()
		for _, test := range []struct{ v1, v2, want1, want2 string }{
			{"cpu.cfs_quota_us", "cpu.max", "30000", "30000 60000"},
			{"memory.limit_in_bytes", "memory.max", "100663296", "100663296"},
			{"cpu.shares", "cpu.weight", "512", "59"},
		} {
			if got := a.cgroupFile(test.v1, test.v2); got != test.want1 && got != test.want2 {
				t.Errorf("%s: %s is %q", when, test.v2, got)
			}
		}
	}
	check("at first")
	// systemd writes its own tree anew, not what is delegated.
	systemctl(t, "daemon-reload")
	systemctl(t, "set-property", "--runtime", filepath.Base(p.config.Linux.CgroupParent), "CPUWeight=50", "MemoryMax=1G")
	check("after systemd has set the slice anew")
	if err := b.update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}); err != nil {
		t.Error(err)
	}
	if got := b.cgroupFile("memory.limit_in_bytes", "memory.max"); got != "67108864" {
		t.Errorf("an update set %q", got)
	}
	restart(t, syscall.SIGKILL, func() {})
	a.exec(0, "true")
	a.stop(0)
	b.stop(0)
	await(t, "the scope to end with its last process", func() bool {
		return !strings.Contains(systemctl(t, "show", unit, "-p", "ActiveState"), "=active")
	})
	if got := p.output("echo again", limits); got != "again" {
		t.Errorf("another container in a scope made anew: %q", got)
	}
}

// An administrator's systemctl ends a pod's containers; they are reported as ended.
func TestSystemdScopeStopped(t *testing.T) {
	needSystemd(t)
	begin(t)
	p := run(t)
	c := p.start("trap 'exit 7' TERM; while :; do sleep 1; done")
	systemctl(t, "stop", "cri-runtime-"+p.id+".scope")
	r := c.wait()
	if r.code != 7 && r.code != 137 && r.code != 143 {
		t.Errorf("%+v", r)
	}
	if got := p.output("echo again"); got != "again" {
		t.Errorf("another container: %q", got)
	}
}
