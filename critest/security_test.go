package critest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestReadonlyRootfs(t *testing.T) {
	begin(t)
	p := run(t)
	ro := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true })
	if r := p.finish("echo x > /file", ro); r.code == 0 || !strings.Contains(r.stderr, "Read-only file system") {
		t.Errorf("%+v", r)
	}
	p.output("echo x > /dev/shm/file && echo x > /dev/null", ro)
	p.output("echo x > /file && cat /file")
}

func TestCapabilities(t *testing.T) {
	begin(t)
	p := run(t)
	const chown, netRaw, sysAdmin, sysTime = 0, 13, 21, 25
	has := func(list string, n uint) bool {
		var mask uint64
		for _, c := range strings.TrimSpace(list) {
			mask <<= 4
			mask |= uint64(strings.IndexRune("0123456789abcdef", c))
		}
		return mask&(1<<n) != 0
	}
	read := func(option containerOption) string {
		return p.output("awk '/CapEff/{print $2}' /proc/self/status", option)
	}
	caps := func(c *runtimeapi.Capability) containerOption {
		return security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Capabilities = c })
	}
	def := read(caps(nil))
	if !has(def, chown) || has(def, sysAdmin) || has(def, sysTime) {
		t.Errorf("default capabilities %s", def)
	}
	if got := read(caps(&runtimeapi.Capability{DropCapabilities: []string{"ALL"}})); strings.Trim(got, "0") != "" {
		t.Errorf("without any: %s", got)
	}
	got := read(caps(&runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_RAW"}}))
	if !has(got, netRaw) || has(got, chown) {
		t.Errorf("only NET_RAW: %s", got)
	}
	got = read(caps(&runtimeapi.Capability{AddCapabilities: []string{"SYS_TIME"}, DropCapabilities: []string{"CHOWN"}}))
	if !has(got, sysTime) || has(got, chown) {
		t.Errorf("SYS_TIME instead of CHOWN: %s", got)
	}
	bound := p.output("awk '/CapBnd/{print $2}' /proc/self/status", caps(&runtimeapi.Capability{DropCapabilities: []string{"ALL"}}))
	if strings.Trim(bound, "0") != "" {
		t.Errorf("the bounding set keeps %s", bound)
	}
	user := p.output("awk '/CapEff/{print $2}' /proc/self/status", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	}))
	if strings.Trim(user, "0") != "" {
		t.Errorf("another user than root has %s", user)
	}
	if peer {
		return // it leaves unknown ones out
	}
	if err := p.refused("true", caps(&runtimeapi.Capability{AddCapabilities: []string{"NO_SUCH_CAPABILITY"}})); err == nil {
		t.Error("an unknown capability was accepted")
	}
}

func TestNoNewPrivileges(t *testing.T) {
	begin(t)
	p := run(t)
	script := "awk '/NoNewPrivs/{print $2}' /proc/self/status"
	for _, on := range []bool{false, true} {
		option := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NoNewPrivs = on })
		want := map[bool]string{false: "0", true: "1"}[on]
		if got := p.output(script, option); got != want {
			t.Errorf("no_new_privs %v: %s", on, got)
		}
		c := p.start("sleep 1000", option)
		if got := strings.TrimSpace(c.exec(0, "sh", "-c", script)); got != want {
			t.Errorf("no_new_privs %v: %s in an exec", on, got)
		}
	}
}

// maskedAndReadonly are the kubelet's defaults.
func maskedAndReadonly(s *runtimeapi.LinuxContainerSecurityContext) {
	s.MaskedPaths = []string{
		"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
		"/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/no/such/path",
	}
	s.ReadonlyPaths = []string{"/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

func TestMaskedAndReadonlyPaths(t *testing.T) {
	begin(t)
	p := run(t)
	script := `cat /proc/keys | wc -c; ls /sys/firmware | wc -l
echo x 2>/dev/null > /proc/sysrq-trigger && echo written; echo x 2>/dev/null > /proc/sys/kernel/domainname && echo written; true`
	if got := p.output(script, security(maskedAndReadonly)); got != "0\n0" {
		t.Errorf("%q, want empty and no writing", got)
	}
	if got := p.output("echo x 2>/dev/null > /sys/kernel/profiling && echo written; true", security(maskedAndReadonly)); got != "" {
		t.Errorf("/sys is writable: %q", got)
	}
}

func TestPrivileged(t *testing.T) {
	begin(t)
	config := func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }
	p := run(t, config)
	privileged := security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Privileged = true
		maskedAndReadonly(s)
	})
	got := p.output(`awk '/CapEff/{print $2} /Seccomp:/{print $2}' /proc/self/status
mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo mounted
test -w /sys/kernel/profiling && echo sys`, privileged)
	lines := strings.Split(got, "\n")
	self, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if len(lines) != 4 || !strings.Contains(string(self), "CapEff:\t"+lines[0]+"\n") || lines[1] != "0" || lines[2] != "mounted" || lines[3] != "sys" {
		t.Errorf("%q", got)
	}
	if !peer {
		if err := run(t).refused("true", privileged); err == nil {
			t.Error("a privileged container came up in a pod that is not privileged")
		}
	}
}

func TestSeccomp(t *testing.T) {
	begin(t)
	p := run(t)
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) containerOption {
		return security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		})
	}
	read := "awk '/^Seccomp:/{print $2}' /proc/self/status; unshare -U true 2>/dev/null && echo unshared; true"
	const def, off, local = runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined, runtimeapi.SecurityProfile_Localhost
	if got := p.output(read, profile(def, "")); got != "2" {
		t.Errorf("RuntimeDefault: %q", got)
	}
	if got := p.output(read, profile(off, "")); !strings.HasPrefix(got, "0") {
		t.Errorf("Unconfined: %q", got)
	}
	c := p.start("sleep 1000", profile(def, ""))
	if got := strings.TrimSpace(c.exec(0, "sh", "-c", read)); got != "2" {
		t.Errorf("RuntimeDefault in an exec: %q", got)
	}
	file := filepath.Join(t.TempDir(), "profile.json")
	text := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := p.finish("mkdir /tmp/x", profile(local, file)); r.code == 0 || !strings.Contains(r.stderr, "No space left") {
		t.Errorf("Localhost: %+v", r)
	}
	for _, bad := range []string{"", "relative.json", "/no/such/profile.json", filepath.Dir(file)} {
		if err := p.refused("true", profile(local, bad)); err == nil {
			t.Errorf("profile %q was accepted", bad)
		}
	}
}
