package critest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/images"
)

// untouched fails the test when the host's canary was made.
func untouched(t *testing.T) {
	t.Helper()
	if _, err := os.Lstat(images.Canary); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the host was written to (%v); removed: %v", err, os.RemoveAll(images.Canary))
	}
}

// programs are the digests of what the daemon and its monitors run, by their names.
func programs(t *testing.T) map[string]string {
	t.Helper()
	table, err := harness.Table()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, p := range append(harness.Descendants(table, os.Getpid()), table[node.PID()]) {
		if p.PID != node.PID() && !strings.HasPrefix(p.Command, "cri-") {
			continue
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/exe", p.PID))
		if err != nil {
			continue // gone meanwhile
		}
		if strings.HasPrefix(p.Command, "cri-monitor") || strings.HasPrefix(p.Command, "cri-pause") {
			// That it is busy protects a program only as long as somebody runs it.
			const all = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
			if seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&all != all {
				t.Errorf("%s has seals %x, %v", p.Command, seals, err)
			}
		}
		sum := sha256.New()
		_, err = io.Copy(sum, f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		out[p.Command] = hex.EncodeToString(sum.Sum(nil))
	}
	return out
}

// overwrite tries to change the program of every process that is to be seen, by name
// and through a descriptor that was opened for reading, and says what it could do.
const overwrite = `for p in /proc/[0-9]*; do
name=$(cat $p/comm 2>/dev/null); case "$name" in cri-*) ;; *) continue ;; esac
{ echo x >> $p/exe; } 2>/dev/null && echo WROTE $name
{ echo x > $p/exe; } 2>/dev/null && echo TRUNCATED $name
{ exec 9<$p/exe; } 2>/dev/null && { { echo x >> /proc/self/fd/9; } 2>/dev/null && echo REOPENED $name; exec 9<&-; }
done; true`

// CVE-2019-5736. Containers run, and are entered by, the runtime's own program; others
// of the pod and of the host's PID namespace try to overwrite it all the while.
func TestProgramsAreNotOverwritten(t *testing.T) {
	differs(t, "has another program")
	begin(t)
	root := func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }
	for _, test := range []struct {
		name       string
		pod        podOption
		privileged bool
		attempts   string
	}{
		{"own PID namespace", namespaces(ofNode, ofContainer, ofPod), false, overwrite},
		{"shared PID namespace", namespaces(ofNode, ofPod, ofPod), false, overwrite},
		{"PID namespace of the host", namespaces(ofNode, ofNode, ofPod), false, overwrite},
		// It may do what it likes to the host, but not change what other monitors run.
		{"privileged", namespaces(ofNode, ofNode, ofPod), true, strings.ReplaceAll(overwrite, "cri-*)", "cri-monitor|cri-pause)")},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := run(t, test.pod, func(c *runtimeapi.PodSandboxConfig) {
				if test.privileged {
					root(c)
				}
			})
			may := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = test.privileged })
			attacker := p.start("touch /ready; while :; do "+test.attempts+"; done", may)
			victim := p.start("sleep 1000", withImage(t, "attack-self-exe"), may,
				func(c *runtimeapi.ContainerConfig) { c.Command = []string{"sleep", "1000"} })
			before := programs(t)
			if before["cri-monitor"] == "" || before["cri-runtime"] == "" && before["cri-runtime-rac"] == "" && before["cri-runtime-san"] == "" {
				t.Fatalf("programs %v", before)
			}
			for _, command := range []string{"/proc/self/exe", "/evil", "/script"} {
				for range 5 {
					config := containerConfig(t, "", withImage(t, "attack-self-exe"), func(c *runtimeapi.ContainerConfig) { c.Command = []string{command} }, may)
					config.Linux.SecurityContext.NamespaceOptions = p.config.Linux.SecurityContext.NamespaceOptions
					id, err := node.CRI.CreateContainer(t.Context(), p.id, config, p.config)
					if err != nil {
						t.Fatal(err)
					}
					c := &container{t: t, id: id, pod: p, config: config}
					if err := node.CRI.StartContainer(t.Context(), id); err == nil {
						c.wait()
					}
					c.remove()
					if _, err := execSync(t.Context(), victim.id, 10, command); err != nil {
						t.Logf("exec %s: %v", command, err)
					}
				}
			}
			if stdout, stderr, err := readLog(attacker.logPath()); err != nil || stdout != "" {
				t.Errorf("the attacker says %q, %q, %v", stdout, stderr, err)
			}
			for name, sum := range programs(t) {
				if want, ok := before[name]; ok && sum != want {
					t.Errorf("%s was changed", name)
				}
			}
			victim.exec(0, "true")
		})
	}
}

// CVE-2024-21626: descriptors of the runtime's are no way out, as the working directory
// of the request, of the image and of what is run in the container.
func TestWorkingDirectoryStaysInside(t *testing.T) {
	begin(t)
	p := run(t)
	secret := "secret-" + node.Tag
	if err := os.WriteFile(images.Canary, []byte(secret), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(images.Canary) })
	const script = `pwd; for up in . ../.. ../../../../../.. /proc/self/cwd/../../../../..; do cat $up` + images.Canary + ` $up/critest-canary; done 2>/dev/null; true`
	try := func(what string, options ...containerOption) {
		t.Helper()
		config := containerConfig(t, script, options...)
		id, err := node.CRI.CreateContainer(t.Context(), p.id, config, p.config)
		if err != nil {
			return
		}
		c := &container{t: t, id: id, pod: p, config: config}
		defer c.remove()
		if node.CRI.StartContainer(t.Context(), id) != nil {
			return
		}
		if r := c.wait(); strings.Contains(r.stdout, secret) || strings.Contains(r.stdout, node.Dir) {
			t.Errorf("%s: outside: %q", what, r.stdout)
		}
	}
	workDir := func(dir string) containerOption {
		return func(c *runtimeapi.ContainerConfig) { c.WorkingDir = dir }
	}
	for fd := range 40 {
		try(fmt.Sprintf("descriptor %d", fd), workDir(fmt.Sprintf("/proc/self/fd/%d", fd)))
	}
	for _, dir := range []string{
		"/proc/self/fd/3/../../../..", "/proc/1/root", "/proc/self/cwd/../../../..", "/proc/thread-self/root/..",
		"/proc/" + strconv.Itoa(node.PID()) + "/root", "/dev/fd/7", "/../../../../../..", "/tmp/../../../..",
	} {
		try(dir, workDir(dir))
	}
	sh := func(c *runtimeapi.ContainerConfig) { c.Command = []string{"sh", "-c", script} }
	try("image's", withImage(t, "attack-workdir"), sh)
	try("link of the image", withImage(t, "attack-workdir"), sh, workDir("/link"))
	c := p.start("sleep 1000")
	for fd := range 40 {
		got, err := execSync(t.Context(), c.id, 10, "sh", "-c", fmt.Sprintf("cd /proc/self/fd/%d 2>/dev/null && { %s; }; cd -P /proc/$PPID/fd/%d 2>/dev/null && { %s; }; true", fd, script, fd, script))
		if err != nil || strings.Contains(string(got.GetStdout()), secret) {
			t.Errorf("exec, descriptor %d: %v, %v", fd, got, err)
		}
	}
}

// CVE-2019-19921, CVE-2023-27561, CVE-2025-52881: what an image has at /proc and /sys
// gets nothing of what is written to the kernel's files there.
func TestDecoysInPlaceOfProc(t *testing.T) {
	differs(t, "is not what is tested")
	begin(t)
	p := run(t)
	const script = `stat -f -c %T /proc/ /sys/; find /decoy -type f -size +0; readlink /proc /sys; cat /proc/self/attr/current >/dev/null 2>&1; true`
	decoys := withImage(t, "attack-decoys")
	config := containerConfig(t, "", decoys, func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"sh", "-c", script}
		c.Linux.Resources.OomScoreAdj = 700
		maskedAndReadonly(c.Linux.SecurityContext)
	})
	id, err := node.CRI.CreateContainer(t.Context(), p.id, config, p.config)
	if err != nil {
		t.Logf("refused: %v", err)
		wantCode(t, err, codes.InvalidArgument, codes.FailedPrecondition, codes.Internal, codes.Unknown)
		return
	}
	c := &container{t: t, id: id, pod: p, config: config}
	if err := node.CRI.StartContainer(t.Context(), id); err != nil {
		t.Logf("refused: %v", err)
		return
	}
	r := c.wait()
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if len(lines) < 2 || lines[0] != "proc" || lines[1] != "sysfs" || strings.Contains(r.stdout, "/decoy/self") {
		t.Errorf("%+v", r)
	}
}

// CVE-2024-5154: files that the runtime gives a container are mounted or written inside
// of its root, whatever the image has there.
func TestFilesOfTheRuntimeStayInside(t *testing.T) {
	begin(t)
	for _, network := range []runtimeapi.NamespaceMode{ofNode, ofPod} {
		p := run(t, namespaces(network, ofContainer, ofPod), func(c *runtimeapi.PodSandboxConfig) {
			if network == ofPod {
				c.Hostname = "attacked"
			}
		})
		volume, hosts := t.TempDir(), filepath.Join(t.TempDir(), "hosts")
		if err := os.WriteFile(hosts, []byte("given\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		config := containerConfig(t, "", withImage(t, "attack-written-files"), func(c *runtimeapi.ContainerConfig) {
			c.Command = []string{"sleep", "1000"}
			mounts(&runtimeapi.Mount{HostPath: volume, ContainerPath: "/volume"}, &runtimeapi.Mount{HostPath: hosts, ContainerPath: "/etc/hosts"})(c)
			c.Linux.SecurityContext.NamespaceOptions = p.config.Linux.SecurityContext.NamespaceOptions
		})
		id, err := node.CRI.CreateContainer(t.Context(), p.id, config, p.config)
		if err == nil {
			c := &container{t: t, id: id, pod: p, config: config}
			if err := node.CRI.StartContainer(t.Context(), id); err == nil {
				if got := c.exec(0, "sh", "-c", "cat /etc/hosts; echo x > /volume/x"); got != "given\n" {
					t.Errorf("/etc/hosts: %q", got)
				}
			}
			c.remove()
		}
		t.Logf("%v: %v", network, err)
		untouched(t)
		table, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || strings.Contains(string(table), images.Canary) {
			t.Errorf("%v: mounted on the host", err)
		}
	}
}

// CVE-2022-4318, CVE-2026-15809: no byte of an image's passwd file or of an environment
// gets into a passwd file.
func TestHomeIsNotInjected(t *testing.T) {
	begin(t)
	p := run(t)
	err := p.refused("", withImage(t, "attack-home-control"), func(c *runtimeapi.ContainerConfig) { c.Command = []string{"true"} })
	if !peer {
		wantCode(t, err, codes.InvalidArgument, codes.FailedPrecondition)
	}
	plain := p.output("sha256sum /etc/passwd /etc/group")
	for _, home := range []string{"/x\nroot2::0:0::/:/bin/sh", "/x\\nroot2::0:0::/:/bin/sh", "/x\r\nroot2::0:0::/:/bin/sh", ":0:0:"} {
		for _, uid := range []int64{0, 1000, 4242} {
			c := p.start("sha256sum /etc/passwd /etc/group; sleep 1000", environment([]*runtimeapi.KeyValue{{Key: "HOME", Value: []byte(home)}}),
				security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: uid} }))
			c.prints("/etc/group")
			if got := strings.TrimSpace(c.exec(0, "sha256sum", "/etc/passwd", "/etc/group")); got != plain {
				t.Errorf("HOME %q, user %d: %q, want %q", home, uid, got, plain)
			}
			c.remove()
		}
	}
}

// CVE-2025-4437, CVE-2026-47262: user files that never end, never answer, or are large.
func TestEndlessUserFiles(t *testing.T) {
	differs(t, "reads them")
	begin(t)
	p := run(t)
	sh := func(c *runtimeapi.ContainerConfig) { c.Command = []string{"true"} }
	peak := func() int {
		t.Helper()
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", node.PID()))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(status), "VmHWM:")
		kib, err := strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			t.Fatal(err)
		}
		return kib
	}
	names := []string{"attack-passwd-endless", "attack-passwd-fifo", "passwd-huge"}
	for _, name := range names {
		image(t, name)
	}
	before := peak()
	for _, name := range names {
		if err := p.refused("", withImage(t, name), sh); err == nil {
			t.Errorf("%s: no error", name)
		}
		// A number needs no file, but these are asked for its groups.
		err := p.refusedOrRun(withImage(t, name), sh, security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1000} }))
		t.Logf("%s with a number: %v", name, err)
	}
	if after := peak(); after > before+48<<10 {
		t.Errorf("the daemon's memory grew from %d to %d KiB", before, after)
	}
}

// refusedOrRun runs a container to its end, or returns why it was refused.
func (p *pod) refusedOrRun(options ...containerOption) error {
	p.t.Helper()
	config := containerConfig(p.t, "true", options...)
	id, err := node.CRI.CreateContainer(p.t.Context(), p.id, config, p.config)
	if err != nil {
		return err
	}
	c := &container{t: p.t, id: id, pod: p, config: config}
	defer c.remove()
	if err := node.CRI.StartContainer(p.t.Context(), id); err != nil {
		return err
	}
	c.wait()
	return nil
}
