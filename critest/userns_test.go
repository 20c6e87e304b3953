package critest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// userPod gives a pod a user namespace of two ranges.
func userPod(c *runtimeapi.PodSandboxConfig) {
	m := []*runtimeapi.IDMapping{{HostId: 700000, Length: 1000}, {ContainerId: 1000, HostId: 900000, Length: 64536}}
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: ofPod, Uids: m, Gids: m}
}

func TestUserNamespaces(t *testing.T) {
	differs(t, "has no user namespaces")
	begin(t)
	features, err := raw.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if h := features.RuntimeHandlers; len(h) == 0 || !h[0].GetFeatures().GetUserNamespaces() {
		t.Skip("this kernel lacks something for user namespaces:", h)
	}
	if !features.Features.GetUserNamespacesHostNetwork() {
		t.Error("the feature user_namespaces_host_network is not told")
	}
	script := `tr -s " " < /proc/self/uid_map; echo x > /root-file; touch /dev/shm/x; echo > /dev/null; head -c 1 /dev/zero | wc -c
hostname >/dev/null; ls /sys/class/net | grep -x lo; cat /proc/keys | wc -c; stat -c %u / /root-file /etc/hosts /dev/shm /proc/1`
	want := "0 700000 1000\n 1000 900000 64536\n1\nlo\n0\n0\n0\n0\n0\n0"
	for name, network := range map[string]runtimeapi.NamespaceMode{"pod network": ofPod, "host network": ofNode} {
		for _, pid := range []runtimeapi.NamespaceMode{ofContainer, ofPod} {
			t.Run(name+", pid "+pid.String(), func(t *testing.T) {
				p := run(t, namespaces(network, pid, ofPod), userPod)
				script := script
				if pid == ofPod { // there it is the reaper's
					script = strings.Replace(script, " /proc/1", " /proc/self/.", 1)
				}
				if got := p.output(script, security(maskedAndReadonly)); got != want {
					t.Errorf("%q, want %q", got, want)
				}
			})
		}
	}
}

func TestUserNamespaceUsers(t *testing.T) {
	differs(t, "has no user namespaces")
	begin(t)
	p := run(t, podNetwork, userPod)
	user := security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtimeapi.Int64Value{Value: 1001}
		s.RunAsGroup = &runtimeapi.Int64Value{Value: 7}
	})
	// The streams belong to the user also when they are opened anew.
	if got := p.output("id -u; id -g; echo err > /dev/stderr; echo again > /dev/stdout", user); got != "1001\n7\nagain" {
		t.Errorf("%q", got)
	}
	c := p.start("sleep 1000", user)
	if got := c.exec(0, "sh", "-c", "id -u; cut -c 1-2 /proc/self/uid_map | wc -l; echo again > /dev/stdout"); strings.TrimSpace(got) != "1001\n2\nagain" {
		t.Errorf("in an exec: %q", got)
	}
	err := p.refused("true", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: 65536} }))
	if err == nil || !strings.Contains(err.Error(), "65536") {
		t.Errorf("an unmapped user: %v", err)
	}
}

// A user namespace does not survive its pod, and does survive the daemon.
func TestUserNamespaceAndRestart(t *testing.T) {
	differs(t, "has no user namespaces")
	begin(t)
	p := run(t, podNetwork, userPod)
	c := p.start("sleep 1000")
	if err := node.Restart(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := c.exec(0, "cat", "/proc/self/uid_map"); !strings.Contains(got, "700000") {
		t.Errorf("%q", got)
	}
	if got := p.output("cat /proc/self/uid_map"); !strings.Contains(got, "700000") {
		t.Errorf("a container that was made later: %q", got)
	}
}

func TestImageVolumes(t *testing.T) {
	differs(t, "has no image volumes")
	begin(t)
	p := run(t)
	ref := image(t, "layers")
	pulled, err := node.Images.ImageStatus(t.Context(), spec(ref), false)
	if err != nil {
		t.Fatal(err)
	}
	id := pulled.Image.Id
	of := func(sub string) containerOption {
		return mounts(&runtimeapi.Mount{ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: ref}, ImageSubPath: sub, Readonly: true})
	}
	if got := p.output("cat /v/t/replaced /v/t/kept; test -e /v/t/gone || echo gone; touch /v/x 2>/dev/null || echo read-only", of("")); got != "upper\nlower\ngone\nread-only" {
		t.Errorf("%q", got)
	}
	if got := p.output("cat /v/kept", of("t")); got != "lower" {
		t.Errorf("a directory: %q", got)
	}
	if err := p.refused("true", of("no/such/path")); err == nil || !strings.Contains(err.Error(), "no/such/path") {
		t.Errorf("a missing sub path: %v", err)
	}
	// The image keeps its data while a container has it mounted.
	c := p.start("sleep 1000", of(""))
	forget(t, ref)
	if got := c.exec(0, "cat", "/v/t/replaced"); got != "upper\n" {
		t.Errorf("after the image was removed: %q", got)
	}
	if got := c.status(); len(got.Mounts) != 1 || got.Mounts[0].GetImage().GetImage() != ref || got.Mounts[0].GetImage().GetImageRef() != id {
		t.Errorf("status %v, image %s", got.Mounts, id)
	}
	image(t, "layers")
	writable := &runtimeapi.Mount{ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: ref}}
	if err := p.refused("true", mounts(writable)); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "config.mounts[0].readonly") {
		t.Errorf("a writable image: %v", err)
	}
}

func TestMountOptions(t *testing.T) {
	differs(t, "has no mount options")
	begin(t)
	p := run(t)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "run"), []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	m := &runtimeapi.Mount{HostPath: host, ContainerPath: "/v", MountOptions: []string{"noexec", "nodev", "nosuid"}}
	if got := p.output("/v/run 2>/dev/null || echo refused; grep ' /v ' /proc/mounts | grep -c 'nosuid,nodev,noexec'; touch /v/x", mounts(m)); got != "refused\n1" {
		t.Errorf("%q", got)
	}
	m.MountOptions = []string{"exec"}
	if err := p.refused("true", mounts(m)); err == nil || !strings.Contains(err.Error(), "mount_options") {
		t.Errorf("exec: %v", err)
	}
}

// What an image has at /dev, /proc and /sys leads nowhere: CVE-2019-19921,
// CVE-2023-27561, CVE-2026-41579.
func TestLinksInPlaceOfMountPoints(t *testing.T) {
	begin(t)
	p := run(t)
	before, err := os.ReadDir("/tmp")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link-dev", "link-proc", "link-sys"} {
		config := containerConfig(t, "", withImage(t, name), func(c *runtimeapi.ContainerConfig) { c.Command = []string{"sleep", "1000"} })
		id, err := node.CRI.CreateContainer(t.Context(), p.id, config, p.config)
		if err == nil {
			err = node.CRI.StartContainer(t.Context(), id)
			t.Logf("%s: start: %v", name, err)
			err = node.CRI.RemoveContainer(t.Context(), id)
		}
		t.Logf("%s: %v", name, err)
		for _, made := range []string{"null", "self", "class", "pts", "fs"} {
			if _, err := os.Lstat("/tmp/" + made); err == nil {
				t.Errorf("%s: /tmp/%s was made on the host", name, made)
			}
		}
	}
	if after, err := os.ReadDir("/tmp"); err == nil && len(after) > len(before)+20 {
		t.Errorf("%d entries in /tmp, there were %d", len(after), len(before))
	}
}

// Volumes and labels of an image select no path and no command: CVE-2022-23648, CVE-2026-53488.
func TestClaimsOfAnImage(t *testing.T) {
	differs(t, "mounts anonymous volumes")
	begin(t)
	p := run(t)
	script := "grep -c . /proc/self/mountinfo; ls -d /data 2>/dev/null; true"
	got := p.output(script, withImage(t, "claims"), func(c *runtimeapi.ContainerConfig) { c.Command = []string{"sh", "-c", script} })
	want := p.output(script)
	if got != want {
		t.Errorf("%q, without claims %q", got, want)
	}
	if _, err := os.Lstat("/tmp/critest-canary"); err == nil {
		t.Error("the host's /tmp was written to")
	}
}

// CVE-2023-25809.
func TestCgroupFilesAreReadOnly(t *testing.T) {
	begin(t)
	p := run(t)
	got := p.output("for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/x 2>/dev/null && echo made $d; done; echo done")
	if got != "done" {
		t.Errorf("%q", got)
	}
}

// CVE-2024-21626: a descriptor's magic link is no working directory.
func TestWorkingDirectoryThroughDescriptor(t *testing.T) {
	begin(t)
	p := run(t)
	for _, dir := range []string{"/proc/self/fd/7", "/proc/self/fd/8", "/proc/self/fd/3"} {
		config := containerConfig(t, "ls; pwd", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = dir })
		id, err := node.CRI.CreateContainer(t.Context(), p.id, config, p.config)
		if err != nil {
			continue // refused
		}
		if err := node.CRI.StartContainer(t.Context(), id); err == nil {
			t.Errorf("%s is the working directory", dir)
		}
		if err := node.CRI.RemoveContainer(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}
