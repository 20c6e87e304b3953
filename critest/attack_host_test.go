package critest

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/images"
)

// CVE-2022-0811: a sysctl's name or value does not carry another one.
func TestSysctlsAreNotInjected(t *testing.T) {
	differs(t, "leaves the check to the kubelet")
	begin(t)
	read := func() string {
		t.Helper()
		var all []byte
		for _, name := range []string{"core_pattern", "domainname", "hostname", "shm_rmid_forced"} {
			text, err := os.ReadFile("/proc/sys/kernel/" + name)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, text...)
		}
		return string(all)
	}
	before := read()
	for name, value := range map[string]string{
		"kernel.core_pattern":                                "|/bin/touch " + images.Canary,
		"kernel.shm_rmid_forced":                             "1+kernel.core_pattern=|/evil",
		"kernel.shm_rmid_forced+kernel.core_pattern":         "1",
		"kernel.msgmax":                                      "8192\nkernel.core_pattern=|/evil",
		"kernel/shm_rmid_forced/../core_pattern":             "|/evil",
		"net.ipv4.../.../kernel/core_pattern":                "|/evil",
		"net/../kernel/core_pattern":                         "|/evil",
		"net.ipv4.ip_forward\x00/../../../kernel/modprobe":   "1",
		"../../etc/passwd":                                   "x",
		"fs.mqueue.msg_max":                                  "\x01",
		"kernel.modprobe":                                    "/evil",
		"vm.overcommit_memory":                               "1",
		"fs.mqueue/../../kernel/core_pattern":                "|/evil",
		strings.Repeat("net.ipv4.", 1000) + "tcp_syncookies": "1",
	} {
		config := podConfig(podNetwork, func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{name: value} })
		prepare(t, config)
		id, err := node.CRI.RunPodSandbox(t.Context(), config, "")
		if err == nil {
			t.Errorf("%q = %q was accepted", name[:min(len(name), 60)], value)
			if err := errors.Join(node.CRI.StopPodSandbox(t.Context(), id), node.CRI.RemovePodSandbox(t.Context(), id)); err != nil {
				t.Error(err)
			}
			continue
		}
		wantCode(t, err, codes.InvalidArgument, codes.Internal) // Internal: grpc's own, for what is no UTF-8
	}
	if after := read(); after != before {
		t.Errorf("the host has %q, it had %q", after, before)
	}
	untouched(t)
}

// CVE-2024-40635, CVE-2026-30892, CVE-2026-46680: ids that are no ids are refused, and
// never become root's.
func TestIdsOutOfRange(t *testing.T) {
	differs(t, "truncates them")
	begin(t)
	p := run(t)
	for _, id := range []int64{-1, -2147483648, 1<<31 - 1, 1 << 31, 1<<32 - 2, 1<<32 - 1, 1 << 32, 1<<32 + 1, 1<<63 - 1, -1 << 63} {
		value := &runtimeapi.Int64Value{Value: id}
		for what, change := range map[string]func(*runtimeapi.LinuxContainerSecurityContext){
			"user": func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = value },
			"group": func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, value
			},
			"groups": func(s *runtimeapi.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{id} },
		} {
			if id < 0 || id > 1<<31-1 { // the ids of the kernel's that files may have
				err := p.refusedOrRun(security(change))
				if err == nil && id != 1<<31 && id != 1<<32-2 {
					t.Errorf("%s %d was accepted", what, id)
				}
				continue
			}
			got := p.output("id -u; id -g; id -G", security(change))
			if !strings.Contains(got, strconv.FormatInt(id, 10)) {
				t.Errorf("%s %d: %q", what, id, got)
			}
		}
	}
	for _, name := range []string{"0x0", " 0", "+0", "00", "1e3", "４", "root\n", "4294967296", "-0"} {
		err := p.refusedOrRun(security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = name }))
		if err == nil {
			t.Errorf("user name %q was accepted", name)
		}
	}
}

// CVE-2022-29162: nothing is inheritable, whoever the process is and however it came.
func TestNoInheritableCapabilities(t *testing.T) {
	begin(t)
	p := run(t)
	const script = "awk '/CapInh|CapAmb/{print $2}' /proc/self/status"
	const none = "0000000000000000\n0000000000000000"
	for _, uid := range []int64{0, 1000} {
		for _, added := range [][]string{nil, {"SYS_ADMIN", "NET_RAW"}, {"ALL"}} {
			option := security(func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.RunAsUser = &runtimeapi.Int64Value{Value: uid}
				s.Capabilities = &runtimeapi.Capability{AddCapabilities: added}
			})
			if got := p.output(script, option); got != none {
				t.Errorf("user %d, %v: %q", uid, added, got)
			}
			c := p.start("sleep 1000", option)
			if got := strings.TrimSpace(c.exec(0, "sh", "-c", script)); got != none {
				t.Errorf("exec, user %d, %v: %q", uid, added, got)
			}
			c.remove()
		}
	}
}

// CVE-2025-31133, CVE-2025-52565: a running container exchanges its devices before
// somebody enters it.
func TestDevicesExchangedBeforeExec(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start(`cd /dev; mkdir /loot; for d in null console ptmx zero; do umount $d 2>/dev/null; rm -f $d; ln -s /loot/$d $d; : > /loot/$d; done
umount pts 2>/dev/null; ln -sf /loot/ptmx pts/ptmx; echo exchanged; sleep 1000`, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	}))
	c.prints("exchanged")
	var host os.FileInfo
	host, err := os.Stat(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	got, err := execSync(t.Context(), c.id, 20, "sh", "-c", "readlink /proc/self/fd/0; cat; wc -c < /loot/null")
	if err != nil || string(got.Stdout) != "/dev/null\n0\n" {
		t.Errorf("%v, %v", got, err)
	}
	var screen bytes.Buffer
	err = c.execStream("SPDY", remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: &screen, Tty: true}, "sh", "-c", "echo on-$(tty)")
	t.Logf("a terminal: %q, %v", screen.String(), err)
	if sizes := strings.TrimSpace(c.exec(0, "sh", "-c", "cat /loot/*")); sizes != "" {
		t.Errorf("the exchanged devices got %q", sizes)
	}
	if after, err := os.Stat(os.DevNull); err != nil || !os.SameFile(host, after) || after.Mode() != host.Mode() {
		t.Errorf("the host's null device: %v, %v", after, err)
	}
	untouched(t)
}

// CVE-2025-0750, CVE-2026-53489: a log's path does not climb, and what is at its name is
// not followed, at the start and when it is opened anew.
func TestLogIsNoLink(t *testing.T) {
	differs(t, "follows links")
	begin(t)
	p := run(t)
	for _, path := range []string{"../" + filepath.Base(images.Canary), "a/../../../x.log", images.Canary, "..", "x\x00.log", "link/x.log"} {
		if err := os.Symlink("/tmp", filepath.Join(p.config.LogDirectory, "link")); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
		config := containerConfig(t, "echo written", func(c *runtimeapi.ContainerConfig) { c.LogPath = path })
		id, err := node.CRI.CreateContainer(t.Context(), p.id, config, p.config)
		t.Logf("%q: %v", path, err)
		if err == nil {
			_ = node.CRI.StartContainer(t.Context(), id) // it may be refused here
			if err := node.CRI.RemoveContainer(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
		untouched(t)
		if _, err := os.Lstat("/tmp/x.log"); err == nil {
			t.Errorf("%q: the log is outside of its directory; removed: %v", path, os.Remove("/tmp/x.log"))
		}
	}
	link := func(c *runtimeapi.ContainerConfig) {
		if err := os.Symlink(images.Canary, filepath.Join(p.config.LogDirectory, c.LogPath)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.refusedOrRun(link); err == nil {
		t.Error("a link is the log")
	}
	untouched(t)
	c := p.start("while :; do echo line; usleep 10000; done")
	c.prints("line")
	if err := errors.Join(os.Remove(c.logPath()), os.Symlink(images.Canary, c.logPath())); err != nil {
		t.Fatal(err)
	}
	if err := node.CRI.ReopenContainerLog(t.Context(), c.id); err == nil {
		t.Error("a link was opened anew")
	}
	untouched(t)
}

// An image's environment is the workload's alone, and malformed parts of it are no others.
func TestHostileEnvironment(t *testing.T) {
	begin(t)
	p := run(t)
	err := p.refusedOrRun(withImage(t, "attack-environment"), func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"sh", "-c", "test \"$HOME\" != /stolen || echo STOLEN"}
	})
	t.Logf("%v", err)
	c := p.start("sleep 1000")
	if got := c.exec(0, "env"); strings.Contains(got, "evil") {
		t.Errorf("the environment of another container: %q", got)
	}
}

// listeners are the daemon's sockets: of TCP in the state of listening, and abstract.
func listeners(t *testing.T) (tcp, abstract []string) {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", node.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var inodes []string
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err == nil && strings.HasPrefix(link, "socket:[") {
			inodes = append(inodes, strings.Trim(link, "socket:[]"))
		}
	}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "unix"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", node.PID(), table))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(text), "\n") {
			f := strings.Fields(line)
			switch {
			case table == "unix" && len(f) > 7 && slices.Contains(inodes, f[6]) && strings.HasPrefix(f[7], "@"):
				abstract = append(abstract, f[7])
			case table == "unix" || len(f) < 10 || !slices.Contains(inodes, f[9]):
			case f[3] == "0A" || strings.HasPrefix(table, "udp"):
				tcp = append(tcp, table+" "+f[1])
			}
		}
	}
	return tcp, abstract
}

// CVE-2020-15257 and its kind: a pod on the host's network reaches one loopback port,
// where nothing but the streams of whoever has their tokens is served.
func TestNothingOfOursOnTheHostsNetwork(t *testing.T) {
	differs(t, "serves on abstract sockets")
	begin(t)
	p := run(t)
	c := p.start("sleep 1000")
	o := remotecommand.StreamOptions{Stdout: &bytes.Buffer{}}
	address := c.execURL(o, "true")
	host, rest, _ := strings.Cut(strings.TrimPrefix(address, "http://"), "/")
	tcp, abstract := listeners(t)
	if len(tcp) != 1 || !strings.HasPrefix(tcp[0], "tcp 0100007F:") {
		t.Errorf("the daemon listens at %q, want one port of 127.0.0.1", tcp)
	}
	if len(abstract) > 0 {
		t.Errorf("abstract sockets %q", abstract)
	}
	if info, err := os.Stat(node.Socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the CRI socket: %v, %v", info, err)
	}
	if got := c.exec(0, "sh", "-c", "grep -c '@.*cri' /proc/net/unix; ls "+node.Dir+" /run/cri-runtime 2>/dev/null; true"); strings.TrimSpace(got) != "0" {
		t.Errorf("in the container: %q", got)
	}
	token := rest[strings.LastIndex(rest, "/")+1:]
	for _, path := range []string{
		"", "metrics", "debug/pprof/", "debug/pprof/heap", "exec", "exec/", "exec/" + strings.Repeat("A", len(token)), "exec/" + token[1:],
		"exec/" + token[1:] + "/..", "exec/" + strings.ToLower(token) + "x", "exec/%2e%2e/exec/" + token[:4], "healthz", "images", "control",
	} {
		got, err := execSync(t.Context(), c.id, 20, "sh", "-c",
			fmt.Sprintf("printf 'GET /%s HTTP/1.1\\r\\nHost: x\\r\\nOrigin: http://evil.example\\r\\nConnection: close\\r\\n\\r\\n' | nc %s | head -n 1", strings.ReplaceAll(path, "%", "%%"), strings.Replace(host, ":", " ", 1)))
		if err != nil || !strings.Contains(string(got.Stdout), " 404 ") && !strings.Contains(string(got.Stdout), " 400 ") && !strings.Contains(string(got.Stdout), " 301 ") && !strings.Contains(string(got.Stdout), " 307 ") {
			t.Errorf("GET /%s: %v, %v", path, got, err)
		}
	}
	// Guesses have taken nothing away: the token is good for its owner, once.
	if err := stream(t.Context(), "SPDY", address, o); err != nil {
		t.Errorf("the owner's stream after the guesses: %v", err)
	}
	for _, transport := range []string{"SPDY", "WebSocket"} {
		if err := stream(t.Context(), transport, address, o); err == nil {
			t.Errorf("%s: a token was good twice", transport)
		}
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}
