package oci

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const unifiedEnv = "CRI_TEST_UNIFIED"

// TestCgroupUnified runs the cgroup tests once more with cgroup v2, on a host
// that has v1: in a mount namespace of its own where a directory of the hybrid
// host's v2 hierarchy is all of /sys/fs/cgroup. That has no controllers, so limits
// are left out; everything else is what a v2 host does.
func TestCgroupUnified(t *testing.T) {
	if os.Getenv(unifiedEnv) != "" {
		t.Skip("this is the inner run")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root for a mount namespace")
	}
	const hybrid = cgroupRoot + "/unified"
	if unifiedOnly() || !isCgroupFS(hybrid, unix.CGROUP2_SUPER_MAGIC) {
		t.Skip("needs a host with cgroup v1 and v2")
	}
	dir := fmt.Sprintf("%s/cri-test-%d-v2", hybrid, os.Getpid())
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const script = `mount --bind "$1" "$2" && exec "$0" -test.run '^TestCgroup' -test.v`
	cmd := exec.Command("/bin/sh", "-c", script, self, dir, cgroupRoot)
	cmd.Env = append(os.Environ(), unifiedEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"TestCgroupJoinKillRemove", "TestCgroupSub", "TestCgroupRemoveBusy", "TestCgroupV2"} {
		if !strings.Contains(string(out), "--- PASS: "+name+" ") {
			t.Errorf("%s did not run with cgroup v2\n%s", name, out)
		}
	}
}

func TestCgroupV2(t *testing.T) {
	g, top := testCgroups(t)
	if !g.V2() {
		t.Skip("needs cgroup v2")
	}
	r := containerLimits()
	r.Unified = nil
	c, err := g.Create(top+"/pod/ctr", r)
	if err != nil {
		t.Fatal(err)
	}
	for _, controller := range []string{"memory", "cpu"} {
		named := slices.ContainsFunc(c.LeftOut, func(s string) bool { return strings.Contains(s, "no "+controller+" controller") })
		if named == g.has(controller) {
			t.Errorf("controller %s: %v, left out %q", controller, g.has(controller), c.LeftOut)
		}
	}
	if len(c.JoinPaths()) != 0 {
		t.Errorf("join paths %v", c.JoinPaths())
	}
	// The device rules are a BPF program on the directory.
	cmd := startIn(t, c, "exec 2>/dev/null; (: < /dev/null) || exit 11; (: < /dev/kmsg) && exit 12; exit 0")
	if err := cmd.Wait(); err != nil && exists("/dev/kmsg") {
		t.Errorf("device rules: %v", err)
	}
	// What was made for a container that could not be is removed up to what was there.
	if _, err := g.Create(top+"/x/y", &specs.LinuxResources{Unified: map[string]string{"no.such": "1"}}); err == nil {
		t.Error("no error")
	}
	if exists(filepath.Join(cgroupRoot, top, "x")) {
		t.Error("a parent was left behind")
	}
	if !exists(filepath.Join(cgroupRoot, top, "pod")) {
		t.Error("what was there before is gone")
	}
}

// A service's own cgroup has processes. What is made below it for others stays a domain that
// processes can be cloned into, when it is made anew as well.
func TestCgroupPlainBelowProcesses(t *testing.T) {
	g, top := testCgroups(t)
	service, err := g.MakePlain(top + "/service")
	if err != nil {
		t.Fatal(err)
	}
	own := startIn(t, service, "exec sleep 1000")
	for range 2 {
		plain, err := g.MakePlain(top + "/service/monitors")
		if err != nil {
			t.Fatal(err)
		}
		if err := startIn(t, plain, "exit 0").Wait(); err != nil {
			t.Error(err)
		}
		if !g.V2() {
			continue
		}
		kind, err := os.ReadFile(filepath.Join(cgroupRoot, top, "service/monitors/cgroup.type"))
		if err != nil || string(kind) != "domain\n" {
			t.Errorf("the cgroup is %q, %v", kind, err)
		}
	}
	if err := own.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = own.Wait() // it was killed
}
