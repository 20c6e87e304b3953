package critest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mounts are volumes with the container's label, as the kubelet asks for them.
func mounts(m ...*runtimeapi.Mount) containerOption {
	return func(c *runtimeapi.ContainerConfig) {
		for i := range m {
			m[i].SelinuxRelabel = m[i].SelinuxRelabel || hasSELinux() && strings.HasPrefix(m[i].HostPath, os.TempDir()+"/")
		}
		c.Mounts = m
	}
}

// foreign are volumes that keep the label that they have.
func foreign(m ...*runtimeapi.Mount) containerOption {
	return func(c *runtimeapi.ContainerConfig) { c.Mounts = m }
}

func TestMounts(t *testing.T) {
	begin(t)
	p := run(t)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	rw := &runtimeapi.Mount{HostPath: host, ContainerPath: "/data"}
	ro := &runtimeapi.Mount{HostPath: host, ContainerPath: "/data", Readonly: true}
	if got := p.output("cat /data/file; echo new > /data/new", mounts(rw)); got != "host" {
		t.Errorf("%q", got)
	}
	if data, err := os.ReadFile(filepath.Join(host, "new")); err != nil || string(data) != "new\n" {
		t.Errorf("written by the container: %q, %v", data, err)
	}
	if r := p.finish("echo x > /data/ro", mounts(ro)); r.code == 0 || !strings.Contains(r.stderr, "Read-only") {
		t.Errorf("read-only: %+v", r)
	}
	file := &runtimeapi.Mount{HostPath: filepath.Join(host, "file"), ContainerPath: "/deep/new/file"}
	if got := p.output("cat /deep/new/file", mounts(file)); got != "host" {
		t.Errorf("a file: %q", got)
	}
	nested := filepath.Join(host, "inner")
	if err := os.Mkdir(nested, 0o755); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "x"), []byte("other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// The inner one comes first in the list and must still be on top.
	got := p.output("cat /data/file /data/inner/x", mounts(&runtimeapi.Mount{HostPath: other, ContainerPath: "/data/inner"}, rw))
	if got != "host\nother" {
		t.Errorf("nested: %q", got)
	}
	over := &runtimeapi.Mount{HostPath: filepath.Join(host, "file"), ContainerPath: "/etc/hosts"}
	if got := p.output("cat /etc/hosts", mounts(over)); got != "host" {
		t.Errorf("over /etc/hosts: %q", got)
	}
}

func TestMountThroughSymlinkStaysInside(t *testing.T) {
	begin(t)
	p := run(t)
	host := t.TempDir()
	// t/absolute is a link to /t/kept in the image.
	got := p.output("ls -d /t/dangling /nowhere/at/all 2>&1; touch /nowhere/at/all/y && echo inside", withImage(t, "layers"),
		mounts(&runtimeapi.Mount{HostPath: host, ContainerPath: "/t/dangling"}),
		func(c *runtimeapi.ContainerConfig) {
			c.Command = []string{"sh", "-c", "touch /t/dangling/y && echo inside"}
		})
	if !strings.Contains(got, "inside") {
		t.Errorf("%q", got)
	}
	if _, err := os.Stat("/nowhere"); err == nil {
		t.Error("the mount point was made on the host")
	}
}

func TestMissingMountSource(t *testing.T) {
	differs(t, "makes the directory")
	begin(t)
	p := run(t)
	missing := filepath.Join(t.TempDir(), "not", "there")
	err := p.refused("true", mounts(&runtimeapi.Mount{HostPath: missing, ContainerPath: "/data"}))
	if err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("error %v, want one that names %s", err, missing)
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("the directory was made")
	}
}

func TestMountRefused(t *testing.T) {
	begin(t)
	p := run(t)
	dir := t.TempDir()
	for name, m := range map[string]*runtimeapi.Mount{
		"relative target": {HostPath: dir, ContainerPath: "../../etc"},
		"no target":       {HostPath: dir},
		"no source":       {ContainerPath: "/data"},
	} {
		if peer {
			continue
		}
		if err := p.refused("true", mounts(m)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestMountPropagation(t *testing.T) {
	begin(t)
	p := run(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	base := t.TempDir()
	shell := func(script string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}
	shell("mount -t tmpfs critest " + base + " && mount --make-rshared " + base + " && mkdir " + base + "/sub")
	t.Cleanup(func() {
		_ = exec.Command("umount", "-R", base).Run() // TempDir's removal fails when it does
	})
	for _, test := range []struct {
		mode   runtimeapi.MountPropagation
		sees   bool
		spills bool
	}{
		{runtimeapi.MountPropagation_PROPAGATION_PRIVATE, false, false},
		{runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false},
		{runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true},
	} {
		t.Run(test.mode.String(), func(t *testing.T) {
			q := *p
			q.t = t
			c := q.start("sleep 1000", mounts(&runtimeapi.Mount{HostPath: base, ContainerPath: "/base", Propagation: test.mode}),
				security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }))
			defer c.remove()
			shell("mount -t tmpfs late " + base + "/sub")
			seen := strings.Contains(c.exec(0, "cat", "/proc/mounts"), "late /base/sub")
			shell("umount " + base + "/sub")
			if seen != test.sees {
				t.Errorf("a later mount of the host is seen: %v, want %v", seen, test.sees)
			}
			c.exec(0, "sh", "-c", "mkdir -p /base/mine && mount -t tmpfs mine /base/mine")
			table, err := os.ReadFile("/proc/self/mounts")
			if err != nil {
				t.Fatal(err)
			}
			if spilled := strings.Contains(string(table), "mine "+base+"/mine"); spilled != test.spills {
				t.Errorf("a mount of the container is seen on the host: %v, want %v", spilled, test.spills)
			}
			c.exec(0, "umount", "/base/mine")
		})
	}
}

func TestPropagationNeedsASharedSource(t *testing.T) {
	begin(t)
	p := run(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	base := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", "mount -t tmpfs critest "+base+" && mount --make-private "+base).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", base).Run() })
	err := p.refused("true", mounts(&runtimeapi.Mount{
		HostPath: base, ContainerPath: "/base", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL,
	}), security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }))
	if err == nil {
		t.Error("no error")
	}
}

func TestRootfsIsTheContainersOwn(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("echo mine > /x; sleep 1000")
	c.exec(0, "sh", "-c", "for i in $(seq 200); do test -e /x && exit 0; usleep 50000; done; exit 1")
	if r := p.finish("cat /x"); r.code == 0 {
		t.Error("another container of the same image sees the file")
	}
	if got := strings.TrimSpace(c.exec(0, "cat", "/x")); got != "mine" {
		t.Errorf("%q", got)
	}
}

func TestHostMountsAreHidden(t *testing.T) {
	begin(t)
	p := run(t)
	got := p.output("cat /proc/self/mountinfo")
	for _, line := range strings.Split(got, "\n") {
		if f := strings.Fields(line); len(f) < 5 || strings.HasPrefix(f[4], node.Dir) {
			t.Errorf("mount %q", line)
		}
	}
	if n := strings.Count(got, "\n"); n > 60 {
		t.Errorf("%d mounts", n)
	}
}
