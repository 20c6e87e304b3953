package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func containerLimits() *specs.LinuxResources {
	shares, quota, period, limit := uint64(512), int64(50000), uint64(100000), int64(64<<20)
	return &specs.LinuxResources{
		Devices: defaultDeviceRules(),
		CPU:     &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period},
		Memory:  &specs.LinuxMemory{Limit: &limit, Swap: &limit},
	}
}

// testCgroups returns cgroups and a parent of this test's own, which is
// removed with all below it. It must then be gone from every hierarchy.
func testCgroups(t *testing.T) (*Cgroups, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make cgroups")
	}
	g, err := NewCgroups("cgroupfs")
	if err != nil {
		t.Fatal(err)
	}
	top := fmt.Sprintf("/cri-test-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))
	parent, err := g.at(top)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := parent.Remove(ctx); err != nil {
			t.Error(err)
		}
		if left := leftovers(g, top); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return g, top
}

func leftovers(g *Cgroups, p string) []string {
	var out []string
	for i := range g.hierarchies {
		if dir := g.hierarchies[i].dir + p; exists(dir) {
			out = append(out, dir)
		}
	}
	return out
}

func v1Only(t *testing.T, g *Cgroups) {
	t.Helper()
	if g.V2() {
		t.Skip("needs cgroup v1")
	}
}

// startIn runs a shell script that first joins c as a container's child does.
func startIn(t *testing.T, c *Cgroup, script string) *exec.Cmd {
	t.Helper()
	var join strings.Builder
	for _, p := range c.JoinPaths() {
		fmt.Fprintf(&join, "echo 0 > '%s' || exit 9\n", p)
	}
	cmd := exec.Command("/bin/sh", "-c", join.String()+"echo joined\n"+script)
	cmd.Stderr = os.Stderr
	dir, err := c.Dir()
	if err != nil {
		t.Fatal(err)
	}
	if dir != nil {
		defer dir.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := io.ReadFull(out, make([]byte, len("joined\n"))); err != nil {
		t.Fatal("the process did not join:", err)
	}
	return cmd
}

func readFile(t *testing.T, p string) string {
	t.Helper()
	data, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func (c *Cgroup) dirOf(controller string) string {
	for i := range c.places {
		if c.places[i].has(controller) {
			return c.places[i].dir
		}
	}
	return ""
}

func TestCgroupLimits(t *testing.T) {
	g, top := testCgroups(t)
	v1Only(t, g)
	r := containerLimits()
	pids := int64(77)
	r.Pids = &specs.LinuxPids{Limit: &pids}
	c, err := g.Create(top+"/pod/ctr", r)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.LeftOut) > 0 {
		t.Errorf("left out: %v", c.LeftOut)
	}
	for _, tt := range []struct{ controller, file, want string }{
		{"cpu", "cpu.shares", "512"},
		{"cpu", "cpu.cfs_quota_us", "50000"},
		{"memory", "memory.limit_in_bytes", "67108864"},
		{"pids", "pids.max", "77"},
		{"devices", "devices.list", "c *:* m\nb *:* m\nc 1:3 rwm\nc 1:5 rwm\nc 1:7 rwm\nc 1:8 rwm\nc 1:9 rwm\nc 5:0 rwm\nc 5:1 rwm\nc 5:2 rwm\nc 136:* rwm\nc 10:200 rwm"},
	} {
		dir := c.dirOf(tt.controller)
		if dir == "" {
			t.Logf("no %s controller here", tt.controller)
			continue
		}
		if got := readFile(t, filepath.Join(dir, tt.file)); got != tt.want {
			t.Errorf("%s = %q, want %q", tt.file, got, tt.want)
		}
	}
	if dir := c.dirOf("cpuset"); dir != "" {
		if readFile(t, dir+"/cpuset.cpus") == "" || readFile(t, dir+"/cpuset.mems") == "" {
			t.Error("the cpuset is empty")
		}
	}
	// A second call takes the cgroup as it is; Set changes single limits.
	again, err := g.Create(top+"/pod/ctr", r)
	if err != nil {
		t.Fatal(err)
	}
	limit := int64(32 << 20)
	if err := again.Set(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, c.dirOf("memory")+"/memory.limit_in_bytes"); got != "33554432" {
		t.Errorf("memory limit %s after Set", got)
	}
	if got := readFile(t, c.dirOf("devices")+"/devices.list"); strings.HasPrefix(got, "a ") || !strings.Contains(got, "c 1:3 rwm") {
		t.Errorf("device rules after Set: %q", got)
	}
}

// The rules written directly are those that the library would write.
func TestCgroupDeviceRules(t *testing.T) {
	g, top := testCgroups(t)
	v1Only(t, g)
	for name, rules := range map[string][]specs.LinuxDeviceCgroup{
		"default": defaultDeviceRules(), "all": allDeviceRules(),
		"deny one": append(allDeviceRules(), specs.LinuxDeviceCgroup{Allow: false, Type: "c", Major: new(int64), Access: "rw"}),
	} {
		r := &specs.LinuxResources{Devices: rules}
		direct, err := g.Create(top+"/direct", r)
		if err != nil {
			t.Fatal(name, err)
		}
		plain, err := g.Create(top+"/library", nil)
		if err != nil {
			t.Fatal(name, err)
		}
		if err := plain.Set(r); err != nil {
			t.Fatal(name, err)
		}
		got := strings.Split(readFile(t, direct.dirOf("devices")+"/devices.list"), "\n")
		want := strings.Split(readFile(t, plain.dirOf("devices")+"/devices.list"), "\n")
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: rules %q, the library's %q", name, got, want)
		}
		for _, c := range []*Cgroup{direct, plain} {
			if err := c.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCgroupCreateFails(t *testing.T) {
	g, top := testCgroups(t)
	v1Only(t, g)
	bad := []*specs.LinuxResources{
		{CPU: &specs.LinuxCPU{Cpus: "9999"}},
		{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "zz"}}},
		{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Access: "q"}}},
	}
	for _, r := range bad {
		if _, err := g.Create(top+"/a/b", r); err == nil {
			t.Errorf("%+v: no error", r)
		}
		if left := leftovers(g, top); len(left) > 0 {
			t.Fatalf("left behind: %v", left)
		}
	}
	// What was there before stays.
	if _, err := g.Create(top+"/a", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Create(top+"/a/b", bad[0]); err == nil {
		t.Error("no error")
	}
	if len(leftovers(g, top+"/a")) != len(g.hierarchies) || len(leftovers(g, top+"/a/b")) > 0 {
		t.Error("the parent is gone or the child left")
	}
	for _, p := range []string{"", "/", "relative", "/a/../../b", "/a\x00b", "/a\nb", "//", strings.Repeat("/a", 4000)} {
		if _, err := g.Create(p, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("path %.40q: error %v", p, err)
		}
		if _, err := g.Load(p); !errors.Is(err, ErrInvalid) {
			t.Errorf("path %.40q: error %v", p, err)
		}
	}
}

// Limits without a controller are named and the others set.
func TestCgroupLeftOut(t *testing.T) {
	g, top := testCgroups(t)
	v1Only(t, g)
	small := &Cgroups{}
	for _, h := range g.hierarchies {
		if h.has("pids") || h.has("memory") {
			small.hierarchies = append(small.hierarchies, h)
		}
	}
	r := containerLimits()
	r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}}
	r.Unified = map[string]string{"memory.high": "1"}
	c, err := small.Create(top, r)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"swap limit: the kernel does not account swap", "CPU limits: the kernel has no cpu controller here",
		"huge page limits: the kernel has no hugetlb controller here", "unified: the host has cgroup v1",
		"device rules: the kernel has no devices controller here",
	}
	if !slices.Equal(c.LeftOut, want) {
		t.Errorf("left out %q", c.LeftOut)
	}
	if got := readFile(t, c.dirOf("memory")+"/memory.limit_in_bytes"); got != "67108864" {
		t.Errorf("memory limit %s", got)
	}
}
