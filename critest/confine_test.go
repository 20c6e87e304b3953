package critest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Clients older than the field seccomp send a string.
func TestDeprecatedSeccompPath(t *testing.T) {
	begin(t)
	p := run(t)
	path := func(s string) containerOption {
		return security(func(c *runtimeapi.LinuxContainerSecurityContext) {
			c.SeccompProfilePath = s //nolint:staticcheck // SA1019: what is tested
		})
	}
	file := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(file, []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	const read = "awk '/^Seccomp:/{print $2}' /proc/self/status"
	for s, want := range map[string]string{"": "0", "unconfined": "0", "runtime/default": "2", "docker/default": "2", "localhost/" + file: "2"} {
		if got := p.output(read, path(s)); got != want {
			t.Errorf("%q: mode %s, want %s", s, got, want)
		}
	}
	err := p.refused("true", path("some-profile"))
	wantCode(t, err, codes.InvalidArgument)
	if err == nil || !strings.Contains(err.Error(), "some-profile") {
		t.Errorf("error %v does not name the profile", err)
	}
}

func TestAmbientCapabilities(t *testing.T) {
	differs(t, "has no ambient capabilities")
	begin(t)
	p := run(t)
	c := p.start("sleep 1000", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"CHOWN"}}
	}))
	// An exec is of the same kind as the container's own process.
	const script = "touch /tmp/x; chown 4711 /tmp/x; stat -c %u /tmp/x; awk '/CapAmb|CapEff/{print $2}' /proc/self/status; tr '\\0' ' ' </proc/1/cmdline; awk '/CapAmb|CapEff/{print $2}' /proc/1/status"
	const one = "0000000000000001\n"
	if got := c.exec(0, "sh", "-c", script); got != "4711\n"+one+one+"sleep 1000 "+one+one {
		t.Errorf("%q", got)
	}
}

// What CRI expects of a kernel without AppArmor and SELinux.
func TestWithoutSecurityModules(t *testing.T) {
	if hasAppArmor() || hasSELinux() {
		t.Skip("the kernel has AppArmor or SELinux")
	}
	differs(t, "ignores a profile that cannot be loaded")
	begin(t)
	p := run(t)
	type context = runtimeapi.LinuxContainerSecurityContext
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) func(*context) {
		return func(s *context) { s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref} }
	}
	old := func(name string) func(*context) {
		return func(s *context) { s.ApparmorProfile = name } //nolint:staticcheck // SA1019: what is tested
	}
	for name, change := range map[string]func(*context){
		"default": profile(runtimeapi.SecurityProfile_RuntimeDefault, ""), "unconfined": profile(runtimeapi.SecurityProfile_Unconfined, ""),
		"old default": old("runtime/default"), "old unconfined": old("unconfined"), "SELinux": func(s *context) {
			s.SelinuxOptions = &runtimeapi.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0:c1"}
		},
	} {
		if got := p.output("echo ran", security(change)); got != "ran" {
			t.Errorf("%s: %q", name, got)
		}
	}
	for name, change := range map[string]func(*context){
		"localhost": profile(runtimeapi.SecurityProfile_Localhost, "my-profile"), "old localhost": old("localhost/my-profile"),
	} {
		if err := p.refused("true", security(change)); err == nil || !strings.Contains(err.Error(), "my-profile") {
			t.Errorf("%s: %v", name, err)
		}
	}
	volume := &runtimeapi.Mount{HostPath: t.TempDir(), ContainerPath: "/v", SelinuxRelabel: true}
	if got := p.output("touch /v/x && echo written", mounts(volume)); got != "written" {
		t.Errorf("relabel: %q", got)
	}
}

func TestRecursiveReadOnly(t *testing.T) {
	differs(t, "has no recursive read-only mounts")
	begin(t)
	p := run(t)
	base := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", "mkdir "+base+"/sub && mount -t tmpfs critest "+base+"/sub").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", base+"/sub").Run() }) // TempDir's removal fails when it does
	const script = "touch /v/x 2>/dev/null && echo top; touch /v/sub/x 2>/dev/null && echo sub; true"
	const private, slave, shared = runtimeapi.MountPropagation_PROPAGATION_PRIVATE, runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	for _, test := range []struct {
		readonly, recursive bool
		propagation         runtimeapi.MountPropagation
		want                string // "!" is a refusal
	}{
		{false, false, private, "top\nsub"},
		{true, false, private, "sub"},
		{true, true, private, ""},
		{false, true, private, "!"},
		{true, true, slave, "!"},
		{true, true, shared, "!"},
	} {
		m := mounts(&runtimeapi.Mount{
			HostPath: base, ContainerPath: "/v", Readonly: test.readonly, RecursiveReadOnly: test.recursive, Propagation: test.propagation,
		})
		if test.want != "!" {
			if got := p.output(script, m); got != test.want {
				t.Errorf("%+v: %q", test, got)
			}
			continue
		}
		err := p.refused("true", m)
		wantCode(t, err, codes.InvalidArgument)
		if err == nil || !strings.Contains(err.Error(), "config.mounts[0].recursive_read_only") {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

// exchange swaps two paths, again and again, until the returned function is called.
func exchange(t *testing.T, a, b string) (stop func()) {
	t.Helper()
	done := make(chan struct{})
	var swaps sync.WaitGroup
	swaps.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				t.Logf("%d exchanges", n)
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				t.Errorf("exchange: %v", err)
				return
			}
		}
	})
	return sync.OnceFunc(func() {
		close(done)
		swaps.Wait()
	})
}

// CVE-2021-30465: who shares a volume exchanges the directory that another volume is
// mounted on for a link. Nothing is made or mounted where the link leads on the host.
func TestMountTargetsExchanged(t *testing.T) {
	differs(t, "is not what is tested")
	begin(t)
	p := run(t)
	inner, victim := t.TempDir(), t.TempDir()
	for name, to := range map[string]string{"absolute": victim, "climbing": strings.Repeat("../", 40) + victim[1:], "magic": "/proc/self/root" + victim, "root": "/"} {
		t.Run(name, func(t *testing.T) {
			q := *p
			q.t = t
			shared := t.TempDir()
			link := filepath.Join(shared, "link")
			if err := errors.Join(os.Mkdir(filepath.Join(shared, "sub"), 0o755), os.Symlink(to, link)); err != nil {
				t.Fatal(err)
			}
			stop := exchange(t, filepath.Join(shared, "sub"), link)
			defer stop()
			volumes := mounts(&runtimeapi.Mount{HostPath: shared, ContainerPath: "/v"}, &runtimeapi.Mount{HostPath: inner, ContainerPath: "/v/sub/in"})
			created, refusal := 0, error(nil)
			for range 15 {
				config := containerConfig(t, "sleep 1000", volumes)
				config.Linux.SecurityContext.NamespaceOptions = p.config.Linux.SecurityContext.NamespaceOptions
				id, err := node.CRI.CreateContainer(t.Context(), p.id, config, p.config)
				if err != nil {
					refusal = err
				} else {
					created++
					(&container{t: t, id: id, pod: &q, config: config}).remove()
				}
			}
			stop()
			t.Logf("%d of 15 created; %v", created, refusal)
			for _, process := range []string{"self", strconv.Itoa(node.PID())} {
				table, err := os.ReadFile("/proc/" + process + "/mountinfo")
				if err != nil || strings.Contains(string(table), inner) {
					t.Errorf("%v: the volume is mounted on the host", err)
				}
			}
			if entries, err := os.ReadDir(victim); err != nil || len(entries) > 0 {
				t.Errorf("made on the host: %v, %v", entries, err)
			}
			if _, err := os.Lstat("/in"); err == nil {
				t.Error("/in was made on the host")
			}
		})
	}
}

// CVE-2023-6476, CVE-2024-3154: annotations that mean something to other runtimes mean
// nothing here, neither the pod's nor the container's.
func TestAnnotationsSelectNothing(t *testing.T) {
	differs(t, "acts on some of its own")
	begin(t)
	annotations := map[string]string{
		"io.kubernetes.cri-o.UnifiedCgroup.c":              "pids.max=7;memory.max=8388608",
		"io.kubernetes.cri-o.UnifiedCgroup":                "pids.max=7",
		"io.kubernetes.cri-o.Devices":                      "/dev/full:/dev/annotated:rwm",
		"io.kubernetes.cri-o.userns-mode":                  "auto:size=65536",
		"io.kubernetes.cri-o.umask":                        "0777",
		"io.kubernetes.cri-o.ShmSize":                      "1",
		"io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel":    "true",
		"org.systemd.property.TasksMax":                    "7",
		"org.systemd.property.ExecStartPre":                "[('/bin/touch', ['/tmp/critest-canary'], true)]",
		"run.oci.hooks.stdout":                             "/tmp/critest-canary",
		"run.oci.handler":                                  "wasm",
		"cdi.k8s.io/critest":                               "vendor.example/thing=one",
		"seccomp.security.alpha.kubernetes.io/pod":         "localhost//no/such/profile.json",
		"container.apparmor.security.beta.kubernetes.io/c": "localhost/none",
		"security.alpha.kubernetes.io/sysctls":             "kernel.domainname=annotated",
	}
	const script = `ls /dev; umask; ulimit -a; cat /proc/self/limits /proc/self/uid_map /proc/sys/kernel/domainname
cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null
df /dev/shm | tail -n 1 | awk '{print $2}'; awk '/Cap|Secc|NoNew/' /proc/self/status`
	plain := run(t).output(script)
	p := run(t, func(c *runtimeapi.PodSandboxConfig) { c.Annotations = annotations })
	got := p.output(script, func(c *runtimeapi.ContainerConfig) { c.Annotations = annotations })
	if got != plain {
		t.Errorf("with annotations:\n%s\nwithout:\n%s", got, plain)
	}
	if _, err := os.Lstat("/tmp/critest-canary"); err == nil {
		t.Error("the host's /tmp was written to")
	}
}
