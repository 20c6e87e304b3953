package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mappings are those of two ranges, so that one line is not enough.
func mappings() []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{
		{ContainerId: 0, HostId: 200000, Length: 1000}, {ContainerId: 1000, HostId: 300000, Length: 64536},
	}
}

// userPod runs a sandbox with a user namespace.
func (f *fixture) userPod(net, pid runtimeapi.NamespaceMode) *Sandbox {
	f.t.Helper()
	if p := f.store.Features().UserNamespaces.Problem; p != "" {
		f.t.Skip("needs user namespaces: ", p)
	}
	config := f.podConfig("user", net, pid)
	config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
		Mode: runtimeapi.NamespaceMode_POD, Uids: mappings(), Gids: mappings(),
	}
	config.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1"}
	if net == runtimeapi.NamespaceMode_POD {
		config.Linux.Sysctls["net.ipv4.ip_unprivileged_port_start"] = "1017"
	}
	b, err := f.store.Run(context.Background(), config, "")
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

func TestUserNamespace(t *testing.T) {
	f := setUp(t)
	for _, mode := range []struct{ net, pid runtimeapi.NamespaceMode }{
		{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER},
		{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD},
		{runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER},
	} {
		t.Run(fmt.Sprintf("net %s pid %s", mode.net, mode.pid), func(t *testing.T) {
			g := *f
			g.t = t
			b := g.userPod(mode.net, mode.pid)
			c, err := b.CreateContainer(context.Background(), containerConfig("c", mode.pid, "sh", "-c", forever), f.image)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(context.Background()); err != nil {
				t.Fatal(err)
			}
			if got := g.exec(c, "cat", "/proc/self/uid_map"); strings.Join(strings.Fields(got), " ") != "0 200000 1000 1000 300000 64536" {
				t.Errorf("uid_map %q", got)
			}
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Status().PID))
			if err != nil || !strings.Contains(string(status), "\nUid:\t200000\t") || !strings.Contains(string(status), "\nGid:\t200000\t") {
				t.Errorf("%v: %s", err, status)
			}
			got := g.exec(c, "sh", "-c", "echo x > /file && ls -ln / /etc/hosts /dev/null /dev/shm | cat && echo y > /dev/null && cat /proc/sys/kernel/shm_rmid_forced")
			if !strings.HasSuffix(got, "\n1") || strings.Contains(got, " 65534 ") && !strings.Contains(got, "/dev/null") {
				t.Errorf("%s", got)
			}
			info, err := os.Stat(filepath.Join(c.root(), "upper", "file"))
			if err != nil || ownerOf(info) != (owner{200000, 200000}) {
				t.Errorf("%v: the file belongs to %v", err, info)
			}
			if mode.net == runtimeapi.NamespaceMode_POD {
				if got := g.exec(c, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"); got != "1017" {
					t.Errorf("sysctl: %s", got)
				}
			}
			g.restart()
			*f = g
			if c, err = f.store.Container(c.id); err != nil {
				t.Fatal(err)
			}
			if got := g.exec(c, "cat", "/proc/self/uid_map"); !strings.Contains(got, "200000") {
				t.Errorf("after a restart: uid_map %q", got)
			}
			b, err = f.store.Sandbox(b.id)
			if err != nil || b.Status().State != sandboxReady {
				t.Error(err, b.Status().State)
			}
			if err := b.Remove(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
}

func ownerOf(info os.FileInfo) owner {
	st := info.Sys().(*syscall.Stat_t)
	return owner{int(st.Uid), int(st.Gid)}
}
