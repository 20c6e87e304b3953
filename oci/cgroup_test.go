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

func TestCgroupJoinKillRemove(t *testing.T) {
	g, top := testCgroups(t)
	c, err := g.Create(top+"/pod/ctr", containerLimits())
	if err != nil {
		t.Fatal(err)
	}
	cmd := startIn(t, c, "sleep 1000 & wait")
	joined := readFile(t, fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	for _, line := range strings.Split(joined, "\n") {
		// Of a hybrid host only one side is used.
		if strings.HasPrefix(line, "0::") == g.V2() && !strings.HasSuffix(line, top+"/pod/ctr") {
			t.Errorf("the process is in %q", line)
		}
	}
	if full, err := c.Populated(); err != nil || !full {
		t.Errorf("populated: %v, %v", full, err)
	}
	pids, err := c.Procs()
	if err != nil || !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("processes %v, %v", pids, err)
	}
	loaded, err := g.Load(top + "/pod/ctr")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(loaded.JoinPaths(), c.JoinPaths()) {
		t.Error("Load gives other paths")
	}
	if err := loaded.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process ended well")
	}
	if err := loaded.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(g, top+"/pod/ctr"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := c.Remove(t.Context()); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
	if _, err := g.Load(top + "/pod/ctr"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Load: %v", err)
	}
	if full, err := c.Populated(); err != nil || full {
		t.Errorf("populated after removal: %v, %v", full, err)
	}
	if err := c.Kill(); err != nil {
		t.Errorf("Kill after removal: %v", err)
	}
}

// Remove alone is enough for a cgroup with processes, those of execs too, and
// with cgroups that the container made.
func TestCgroupRemoveBusy(t *testing.T) {
	g, top := testCgroups(t)
	c, err := g.Create(top+"/ctr", containerLimits())
	if err != nil {
		t.Fatal(err)
	}
	sub, err := c.Sub("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	first := startIn(t, c, "sleep 1000")
	second := startIn(t, sub, "sleep 1000")
	if err := os.Mkdir(c.places[0].dir+"/own", 0o755); err != nil {
		t.Fatal(err)
	}
	if pids, err := sub.Procs(); err != nil || !slices.Contains(pids, second.Process.Pid) || slices.Contains(pids, first.Process.Pid) {
		t.Errorf("processes of the exec: %v, %v", pids, err)
	}
	if pids, err := c.Procs(); err != nil || !slices.Contains(pids, second.Process.Pid) || !slices.Contains(pids, first.Process.Pid) {
		t.Errorf("processes of the container: %v, %v", pids, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []*exec.Cmd{first, second} {
		if err := cmd.Wait(); err == nil {
			t.Error("a process survived")
		}
	}
}

// Killing an exec leaves the container alone.
func TestCgroupSub(t *testing.T) {
	g, top := testCgroups(t)
	c, err := g.Create(top+"/ctr", nil)
	if err != nil {
		t.Fatal(err)
	}
	sub, err := c.Sub("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	if !g.V2() {
		differ := 0
		for i, p := range sub.JoinPaths() {
			if p != c.JoinPaths()[i] {
				differ++
			}
		}
		if differ != 1 || len(sub.JoinPaths()) != len(c.JoinPaths()) {
			t.Errorf("paths of the exec %v", sub.JoinPaths())
		}
	}
	init := startIn(t, c, "sleep 1000")
	execd := startIn(t, sub, "sleep 1000 & sleep 1000 & wait")
	if err := sub.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := execd.Wait(); err == nil {
		t.Error("the exec ended well")
	}
	if err := sub.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := init.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the container died with its exec: %v", err)
	}
	for _, name := range []string{"", "..", "a/b", "a\nb"} {
		if _, err := c.Sub(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("Sub(%q): %v", name, err)
		}
	}
}

// Processes that fork as fast as they can are all caught.
func TestCgroupKillForkBomb(t *testing.T) {
	g, top := testCgroups(t)
	pids := int64(60)
	c, err := g.Create(top, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &pids}})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.LeftOut) > 0 {
		t.Skip("needs a pids controller to bound the bomb:", c.LeftOut)
	}
	cmd := startIn(t, c, "exec 2>/dev/null; f() { f & f & wait; }; while :; do f; done")
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.Remove(ctx); err != nil {
		t.Fatal(err)
	}
}

// A frozen container dies as well.
func TestCgroupKillFrozen(t *testing.T) {
	g, top := testCgroups(t)
	v1Only(t, g)
	c, err := g.Create(top, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := c.dirOf("freezer")
	if dir == "" {
		t.Skip("needs a freezer controller")
	}
	cmd := startIn(t, c, "exec sleep 1000")
	if err := os.WriteFile(dir+"/freezer.state", []byte("FROZEN"), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process survived")
	}
}

// Remove ends with its context and says what it waited for.
func TestCgroupRemoveCancelled(t *testing.T) {
	g, top := testCgroups(t)
	c, err := g.Create(top, nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := startIn(t, c, "exec sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Remove(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	_ = cmd.Wait()
}

func TestCgroupOOMFile(t *testing.T) {
	g, top := testCgroups(t)
	limit := int64(8 << 20)
	c, err := g.Create(top, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.OOMFile()
	if err != nil {
		t.Fatal(err)
	}
	if f == nil {
		t.Skip("needs a memory controller")
	}
	defer f.Close()
	cmd := startIn(t, c, `exec sh -c 'x=x; while :; do x="$x$x"; done'`)
	if err := cmd.Wait(); err == nil {
		t.Fatal("the process was not killed")
	}
	// The descriptor outlives the cgroup's last process.
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), "oom_kill 1") {
		t.Errorf("%s", data)
	}
}

// Several containers of one pod may be the first at once.
func TestCgroupConcurrentCreate(t *testing.T) {
	g, top := testCgroups(t)
	errs := make(chan error)
	const n = 20
	for i := range n {
		go func() {
			c, err := g.Create(fmt.Sprintf("%s/pod/%d", top, i), containerLimits())
			if err == nil && c.dirOf("cpuset") != "" {
				if cpus, readErr := os.ReadFile(c.dirOf("cpuset") + "/cpuset.cpus"); readErr != nil || len(cpus) < 2 {
					err = fmt.Errorf("cpuset %q: %w", cpus, readErr)
				}
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestNewCgroupsDriver(t *testing.T) {
	if _, err := NewCgroups("nonsense"); !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v", err)
	}
	if exists("/run/systemd/system") {
		t.Skip("systemd runs here")
	}
	if _, err := NewCgroups("systemd"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("error %v", err)
	}
}

func TestCgroupPath(t *testing.T) {
	for _, tt := range []struct {
		in      string
		systemd bool
		want    string // "": an error
	}{
		{"/kubepods/pod1/c1", false, "/kubepods/pod1/c1"},
		{"/kubepods//pod1/", false, "/kubepods/pod1"},
		{"kubepods-burstable-pod1.slice:cri:c1", true, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-c1.scope"},
		{"kubepods.slice:cri:c1", true, "/kubepods.slice/cri-c1.scope"},
		{":cri:c1", true, "/system.slice/cri-c1.scope"},
		{"-.slice:cri:c1", true, "/cri-c1.scope"},
		{"a.slice::c1", true, "/a.slice/c1.scope"},
		{"a.slice:cri:a-b.slice", true, "/a.slice/a-b.slice"},
		{"kubepods-besteffort.slice", true, "/kubepods.slice/kubepods-besteffort.slice"},
		{"/a/b", true, "/a/b"},
		{"a.slice:cri:c1", false, ""},
		{"a.slice:cri", true, ""},
		{"a.slice:cri:c1:d", true, ""},
		{"a.slice:cri:", true, ""},
		{"a.slice:cri:../x", true, ""},
		{"a.slice:c/r:x", true, ""},
		{"a/b.slice:cri:x", true, ""},
		{"a:cri:x", true, ""},
		{"a--b.slice:cri:x", true, ""},
		{"-a.slice:cri:x", true, ""},
		{".slice:cri:x", true, ""},
		{"-.slice", true, ""},
		{"a\n.slice:cri:x", true, ""},
		{"/", true, ""},
		{"", true, ""},
	} {
		got, err := cgroupPath(tt.in, tt.systemd)
		if got := map[bool]string{true: got}[err == nil]; got != tt.want || (tt.want == "" && !errors.Is(err, ErrInvalid)) {
			t.Errorf("cgroupPath(%q, %v) = %q, %v; want %q", tt.in, tt.systemd, got, err, tt.want)
		}
	}
}

func FuzzCgroupPath(f *testing.F) {
	f.Add("kubepods-burstable-pod1.slice:cri:c1", true)
	f.Add("/a/../b", false)
	f.Fuzz(func(t *testing.T, in string, systemd bool) {
		got, err := cgroupPath(in, systemd)
		if err == nil && (!strings.HasPrefix(got, "/") || got == "/" || filepath.Clean(got) != got || strings.ContainsRune(got, 0)) {
			t.Errorf("cgroupPath(%q, %v) = %q", in, systemd, got)
		}
	})
}
