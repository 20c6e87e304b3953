package critest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	ofPod       = runtimeapi.NamespaceMode_POD
	ofContainer = runtimeapi.NamespaceMode_CONTAINER
	ofNode      = runtimeapi.NamespaceMode_NODE
)

func hostNamespace(t *testing.T, kind string) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestNamespaces(t *testing.T) {
	for _, test := range []struct {
		network, pid, ipc runtimeapi.NamespaceMode
		host              []string // shared with the host
		pod               []string // shared by the containers only
		own               []string
	}{
		{ofNode, ofContainer, ofPod, []string{"net"}, []string{"ipc"}, []string{"pid", "mnt"}},
		{ofPod, ofContainer, ofPod, nil, []string{"net", "ipc", "uts"}, []string{"pid", "mnt"}},
		{ofPod, ofPod, ofPod, nil, []string{"net", "ipc", "uts", "pid"}, []string{"mnt"}},
		{ofNode, ofNode, ofNode, []string{"net", "pid", "ipc"}, nil, []string{"mnt"}},
		{ofPod, ofNode, ofNode, []string{"pid", "ipc"}, []string{"net", "uts"}, []string{"mnt"}},
	} {
		t.Run(fmt.Sprintf("net %s pid %s ipc %s", test.network, test.pid, test.ipc), func(t *testing.T) {
			begin(t)
			p := run(t, namespaces(test.network, test.pid, test.ipc))
			script := `for n in net pid ipc uts mnt; do echo $n $(readlink /proc/self/ns/$n); done; sleep 1000`
			read := func() map[string]string {
				c := p.start(script)
				c.prints("mnt:[")
				out, _, err := readLog(c.logPath())
				if err != nil {
					t.Fatal(err)
				}
				seen := map[string]string{}
				for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
					kind, link, _ := strings.Cut(line, " ")
					seen[kind] = link
				}
				return seen
			}
			first, second := read(), read()
			for _, kind := range []string{"net", "pid", "ipc", "uts", "mnt"} {
				host := hostNamespace(t, kind)
				switch {
				case slices.Contains(test.host, kind):
					if first[kind] != host {
						t.Errorf("%s: %s, the host's is %s", kind, first[kind], host)
					}
				case slices.Contains(test.pod, kind):
					if first[kind] == host || first[kind] != second[kind] {
						t.Errorf("%s: %s and %s, want one of the pod, not the host's %s", kind, first[kind], second[kind], host)
					}
				case slices.Contains(test.own, kind):
					if first[kind] == host || first[kind] == second[kind] {
						t.Errorf("%s: %s and %s, want one each, not the host's %s", kind, first[kind], second[kind], host)
					}
				}
			}
		})
	}
}

func TestSharedPIDNamespaceHasAReaper(t *testing.T) {
	differs(t, "the pause image here does not reap")
	begin(t)
	p := run(t, namespaces(ofNode, ofPod, ofPod))
	// The inner shell's child is an orphan when the shell ends, and must be
	// reaped by PID 1 of the pod.
	c := p.start(`sh -c 'sh -c "echo orphan \$\$; exec sleep 0.05" & exit 0'; sleep 1000`)
	c.prints("orphan")
	one := strings.TrimSpace(c.exec(0, "cat", "/proc/1/comm"))
	if want := "cri-pause"; one != want {
		t.Errorf("PID 1 is %q, want %q", one, want)
	}
	if got := c.exec(0, "sh", "-c", `for i in $(seq 200); do grep -q "^State:.Z" /proc/[0-9]*/status 2>/dev/null || { echo none; exit 0; }; usleep 50000; done; echo zombies`); strings.TrimSpace(got) != "none" {
		t.Errorf("%s remain", got)
	}
	other := p.start("sleep 1234")
	if ps := c.exec(0, "ps", "-o", "args"); !strings.Contains(ps, "sleep 1234") {
		t.Errorf("the other container's process is not to be seen in %q", ps)
	}
	other.stop(0)
	if c.status().State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Error("stopping one container stopped the other")
	}
}

func TestContainerPIDNamespace(t *testing.T) {
	begin(t)
	p := run(t)
	if got := p.output("echo $$; ps -o pid,args | wc -l"); !strings.HasPrefix(got, "1\n") {
		t.Errorf("the command's pid is not 1: %q", got)
	}
}

func TestHostPIDNamespace(t *testing.T) {
	begin(t)
	p := run(t, namespaces(ofNode, ofNode, ofPod))
	want := fmt.Sprint(os.Getpid())
	if got := p.output("test -d /proc/" + want + " && grep -c . /proc/" + want + "/cmdline"); got == "" {
		t.Error("the host's processes are not to be seen")
	}
}

func TestHostname(t *testing.T) {
	begin(t)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	onHost := run(t)
	if got := onHost.output("hostname"); got != host {
		t.Errorf("host network: %q, want %q", got, host)
	}
	p := run(t, podNetwork)
	want := p.config.Hostname
	if got := p.output("hostname; cat /etc/hostname; echo $HOSTNAME"); got != want+"\n"+want+"\n"+want {
		t.Errorf("pod network: %q, want %q three times", got, want)
	}
}

func TestResolvConf(t *testing.T) {
	begin(t)
	dns := &runtimeapi.DNSConfig{
		Servers: []string{"10.96.0.10", "fd00::10"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:5", "edns0"},
	}
	want := "search a.example b.example\nnameserver 10.96.0.10\nnameserver fd00::10\noptions ndots:5 edns0"
	for _, option := range []podOption{podNetwork, func(*runtimeapi.PodSandboxConfig) {}} {
		p := run(t, option, func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig = dns })
		got := strings.Split(p.output("cat /etc/resolv.conf"), "\n")
		lines := strings.Split(want, "\n")
		slices.Sort(got)
		slices.Sort(lines)
		if !slices.Equal(got, lines) {
			t.Errorf("resolv.conf %q, want %q", got, lines)
		}
	}
	hostFile, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Skip("the host has no resolv.conf:", err)
	}
	if got := run(t).output("cat /etc/resolv.conf"); got != strings.TrimSpace(string(hostFile)) {
		t.Errorf("without DNSConfig: %q, want the host's", got)
	}
}

func TestHostsFile(t *testing.T) {
	begin(t)
	p := run(t, podNetwork)
	if got := p.output("cat /etc/hosts"); !strings.Contains(got, "localhost") {
		t.Errorf("/etc/hosts: %q", got)
	}
}

func TestSharedMemory(t *testing.T) {
	begin(t)
	p := run(t)
	if got := p.output(`df -k /dev/shm | tail -1 | awk '{print $2}'; stat -c %a /dev/shm; echo one > /dev/shm/x`); got != "65536\n1777" {
		t.Errorf("/dev/shm: %q, want 64 MiB and mode 1777", got)
	}
	if got := p.output("cat /dev/shm/x"); got != "one" {
		t.Errorf("the other container reads %q", got)
	}
	if r := run(t).finish("cat /dev/shm/x"); r.code == 0 {
		t.Error("another pod sees the file")
	}
	if _, err := os.Stat("/dev/shm/x"); err == nil {
		t.Error("the host sees the file")
	}
}

func TestSysctls(t *testing.T) {
	begin(t)
	p := run(t, podNetwork, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.Sysctls = map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "1017", "kernel.shm_rmid_forced": "1", "net.ipv4.ping_group_range": "0 17",
		}
	})
	got := p.output("cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shm_rmid_forced net/ipv4/ping_group_range")
	if want := "1017\n1\n0\t17"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	host, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil || strings.TrimSpace(string(host)) == "1017" {
		t.Errorf("the host's value is %s (%v)", host, err)
	}
}

// What a root file system lies upon cannot be reached, and it is no prison that the kernel would
// take for a chroot: user namespaces can be made in it, the container's mount namespace can be joined.
func TestNothingBelowTheRoot(t *testing.T) {
	begin(t)
	p := run(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	c := p.start("sleep 1000", security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }))
	root := fmt.Sprintf("/proc/%d/root/", c.pid())
	want, err := os.Stat(root)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.Stat(root + "tmp/../../../..")
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(got, want) {
		t.Error("'..' leads out of the root")
	}
	c.exec(0, "unshare", "-U", "true")
	c.exec(0, "unshare", "-m", "sh", "-c", "mkdir -p /tmp/new && mount --bind / /tmp/new && cd /tmp/new && mkdir -p tmp/old && pivot_root . tmp/old && umount -l /tmp/old && ls /bin/busybox")
	joined := c.exec(0, "nsenter", "--mount=/proc/self/ns/mnt", "ls", "/")
	if plain := c.exec(0, "ls", "/"); joined != plain {
		t.Errorf("who joins the namespace sees %q, want %q", joined, plain)
	}
	// Even who takes the root away finds nothing of the host.
	out := c.exec(0, "unshare", "-m", "sh", "-c", "umount -l /; nsenter --mount=/proc/self/ns/mnt ls / >/dev/null 2>&1 || echo nothing")
	if strings.TrimSpace(out) != "nothing" {
		t.Errorf("below the root: %q", out)
	}
}
