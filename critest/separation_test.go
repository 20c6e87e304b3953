package critest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func hasSELinux() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}

func hasAppArmor() bool {
	on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && bytes.HasPrefix(on, []byte("Y"))
}

func needSELinux(t *testing.T) {
	t.Helper()
	on, err := os.ReadFile("/sys/fs/selinux/enforce")
	if err != nil || !bytes.HasPrefix(on, []byte("1")) {
		t.Skip("needs SELinux in enforcing mode: make test-vm")
	}
}

func needAppArmor(t *testing.T) {
	t.Helper()
	if !hasAppArmor() {
		t.Skip("needs AppArmor: make test-vm")
	}
}

const ownLabel = "tr -d '\\000' </proc/self/attr/current"

// fileLabel is the SELinux label of a file of the container, seen from the host.
func (c *container) fileLabel(path string) string {
	c.t.Helper()
	buf := make([]byte, 512)
	n, err := unix.Lgetxattr("/proc/"+strconv.Itoa(c.pid())+"/root"+path, "security.selinux", buf)
	if err != nil {
		c.t.Fatalf("label of %s: %v", path, err)
	}
	return strings.TrimRight(string(buf[:n]), "\x00")
}

// level is the MLS part of a label.
func level(label string) string {
	parts := strings.SplitN(label, ":", 4)
	return parts[len(parts)-1]
}

func TestSeparationLabels(t *testing.T) {
	needSELinux(t)
	begin(t)
	one, other := run(t), run(t)
	a, b, foreign := one.start("sleep 1000"), one.start("sleep 1000"), other.start("sleep 1000")
	label := strings.TrimSpace(a.exec(0, "sh", "-c", ownLabel))
	if !strings.HasPrefix(label, "system_u:system_r:container_t:s0:c") || !strings.Contains(level(label), ",") {
		t.Errorf("a container's process has the label %q", label)
	}
	if got := strings.TrimSpace(a.exec(0, "sh", "-c", "tr -d '\\000' </proc/1/attr/current")); got != label {
		t.Errorf("the exec has %q, the container %q", label, got)
	}
	if got := strings.TrimSpace(b.exec(0, "sh", "-c", ownLabel)); got != label {
		t.Errorf("another container of the pod has %q, not %q", got, label)
	}
	if got := strings.TrimSpace(foreign.exec(0, "sh", "-c", ownLabel)); got == label {
		t.Errorf("two pods have the label %q", got)
	}
	want := "system_u:object_r:container_file_t:" + level(label)
	for _, path := range []string{"/", "/bin/busybox", "/dev", "/dev/null", "/dev/shm", "/dev/pts", "/etc/hosts", "/dev/mqueue", "/etc/resolv.conf"} {
		if got := a.fileLabel(path); got != want {
			t.Errorf("%s has the label %q, want %q", path, got, want)
		}
	}
	asked := one.start("sleep 1000", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c7,c9"}
	}))
	if got := strings.TrimSpace(asked.exec(0, "sh", "-c", ownLabel)); got != "system_u:system_r:container_t:s0:c7,c9" {
		t.Errorf("asked for s0:c7,c9: %q", got)
	}
	err := one.refused("true", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.SelinuxOptions = &runtimeapi.SELinuxOption{Type: "no_such_type_t"}
	}))
	wantCode(t, err, codes.InvalidArgument)
}

// A volume with the label of one pod is not another's, though both are root.
func TestSeparationOfVolumes(t *testing.T) {
	needSELinux(t)
	begin(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "old"), []byte("old"), 0o644); err != nil { //nolint:gosec // what the label alone keeps
		t.Fatal(err)
	}
	stranger := run(t)
	const try = "cat /v/old >/dev/null 2>&1 && echo read; echo x >/v/new 2>/dev/null && echo written; true"
	plain := &runtimeapi.Mount{HostPath: dir, ContainerPath: "/v"}
	if got := stranger.output(try, foreign(plain)); got != "" {
		t.Errorf("a volume with the host's label: %q", got)
	}
	owner := run(t)
	relabel := &runtimeapi.Mount{HostPath: dir, ContainerPath: "/v", SelinuxRelabel: true}
	if got := owner.output(try, mounts(relabel)); got != "read\nwritten" {
		t.Errorf("its own volume: %q", got)
	}
	if got := stranger.output(try, foreign(plain)); got != "" {
		t.Errorf("another pod's volume: %q", got)
	}
	err := owner.refused("true", mounts(&runtimeapi.Mount{HostPath: "/etc", ContainerPath: "/v", SelinuxRelabel: true}))
	wantCode(t, err, codes.InvalidArgument)
}

func TestSeparationFromTheHost(t *testing.T) {
	needSELinux(t)
	begin(t)
	p := run(t)
	host := mounts(&runtimeapi.Mount{HostPath: "/etc", ContainerPath: "/host", Readonly: true})
	const read = "cat /host/shadow >/dev/null 2>&1 && echo read || echo denied"
	if got := p.output(read, host); got != "denied" {
		t.Errorf("/etc/shadow: %q", got)
	}
	denials := audit(t, "-g", "denied.*container_t")
	if !strings.Contains(denials, "shadow") {
		t.Errorf("the audit log does not show that shadow was read: %s", denials)
	}
	privileged := run(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.Privileged = true
	})
	all := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })
	if got := privileged.output(ownLabel+"; echo; "+read, host, all); got != "system_u:system_r:spc_t:s0\nread" {
		t.Errorf("privileged: %q", got)
	}
	sees := run(t, namespaces(runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_POD))
	if got := sees.output(ownLabel); !strings.Contains(got, ":spc_t:") {
		t.Errorf("with the host's PID namespace: %q", got)
	}
}

// audit returns the kernel's audit messages of this boot.
func audit(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "journalctl", append([]string{"-b", "-o", "cat", "--no-pager", "_TRANSPORT=audit", "--case-sensitive"}, args...)...).CombinedOutput()
	if err != nil && len(out) > 0 {
		t.Logf("journalctl: %v: %s", err, out)
	}
	return string(out)
}

// A whole life with everything in it: nothing that the daemon does may be denied.
func TestSeparationDeniesTheDaemonNothing(t *testing.T) {
	needSELinux(t)
	begin(t)
	p := run(t, podNetwork)
	volume := &runtimeapi.Mount{HostPath: t.TempDir(), ContainerPath: "/v", SelinuxRelabel: true}
	c := p.start("echo hello; sleep 1000", mounts(volume))
	c.prints("hello")
	c.exec(0, "sh", "-c", "echo x >/v/x; echo y >/dev/shm/y; echo z >/tmp/z")
	c.stop(1)
	c.remove()
	p.remove()
	for line := range strings.Lines(audit(t, "-g", "avc.*denied")) {
		if strings.Contains(line, "scontext=system_u:system_r:container_engine_t") || strings.Contains(line, "scontext=system_u:system_r:container_runtime_t") {
			t.Errorf("denied: %s", line)
		}
	}
}

func TestSeparationByAppArmor(t *testing.T) {
	needAppArmor(t)
	begin(t)
	p := run(t)
	c := p.start("sleep 1000")
	const own = "cat /proc/self/attr/apparmor/current"
	if got := strings.TrimSpace(c.exec(0, "sh", "-c", own)); got != "cri-runtime-default (enforce)" {
		t.Errorf("an exec's profile: %q", got)
	}
	if got := strings.TrimSpace(c.exec(0, "cat", "/proc/1/attr/apparmor/current")); got != "cri-runtime-default (enforce)" {
		t.Errorf("a container's profile: %q", got)
	}
	// The profile denies mounts to a process that has the capability.
	admin := security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	})
	const mount = "mount -t tmpfs none /tmp 2>/dev/null && echo mounted || echo denied"
	if got := p.output(mount, admin); got != "denied" {
		t.Errorf("mount under the default profile: %q", got)
	}
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) containerOption {
		return security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
			s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		})
	}
	if got := p.output(mount, profile(runtimeapi.SecurityProfile_Unconfined, "")); got != "mounted" {
		t.Errorf("mount unconfined: %q", got)
	}
	err := p.refused("true", profile(runtimeapi.SecurityProfile_Localhost, "critest-missing"))
	wantCode(t, err, codes.InvalidArgument)
	if err == nil || !strings.Contains(err.Error(), "critest-missing") {
		t.Errorf("error %v does not name the profile", err)
	}
	loadProfile(t, "critest-local", "profile critest-local flags=(attach_disconnected,mediate_deleted) {\n file,\n capability,\n mount,\n signal,\n deny /tmp/secret w,\n}\n")
	local := profile(runtimeapi.SecurityProfile_Localhost, "critest-local")
	if got := p.output(own+"; touch /tmp/secret 2>/dev/null && echo written || echo denied", local); got != "critest-local (enforce)\ndenied" {
		t.Errorf("localhost profile: %q", got)
	}
}

func loadProfile(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "apparmor_parser", "-Kr", file).CombinedOutput(); err != nil {
		t.Fatalf("load %s: %v: %s", name, err, out)
	}
	t.Cleanup(func() { _ = exec.Command("apparmor_parser", "-R", file).Run() })
}
