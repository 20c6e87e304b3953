package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

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

// A cgroup whose last process ends meanwhile goes; with one that stays it is left.
func TestCgroupRemoveIdle(t *testing.T) {
	g, top := testCgroups(t)
	c, err := g.Create(top+"/idle", nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := startIn(t, c, "sleep 1000")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.RemoveIdleUntil(ended); err != nil {
		t.Fatal(err)
	}
	if full, err := c.Populated(); err != nil || !full {
		t.Fatalf("populated: %v, %v", full, err)
	}
	removed := make(chan error)
	go func() { removed <- c.RemoveIdleUntil(t.Context()) }()
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := <-removed; err != nil {
		t.Fatal(err)
	}
	if _, err := g.Load(top + "/idle"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Load: %v", err)
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
			if err == nil && c.dirOf("cpuset") != "" && !g.V2() { // with v2 an empty list is the parent's
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
