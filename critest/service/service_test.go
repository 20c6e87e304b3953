package service

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// One life of a node with the package, in order: every step needs those before.
func TestService(t *testing.T) {
	n := newNode(t)
	before := left(t)
	n.step("install", (*node).install)
	n.step("run", func(n *node) { n.pull(); n.run(); n.unharmed() })
	n.step("domain", (*node).domain)
	n.step("doctor", (*node).doctor)
	n.step("journal", (*node).fields)
	n.step("restart under load", (*node).restartUnderLoad)
	n.step("killed", (*node).killed)
	n.step("watchdog", (*node).watchdog)
	n.step("upgrade", (*node).upgrade)
	n.step("remove and install", (*node).reinstall)
	n.step("purge with a pod", (*node).purgeWithPod)
	n.step("purge", (*node).purge)
	n.step("nothing is left", func(n *node) {
		if after := left(n.T); len(after) > len(before) {
			n.Errorf("left behind: %q", after)
		}
	})
}

func (n *node) install() {
	n.command("dpkg", "-i", n.deb)
	n.ready()
	for _, want := range [][2]string{
		{"ActiveState", "active"},
		{"UnitFileState", "enabled"},
		{"Type", "notify"},
		{"Delegate", "yes"},
		{"KillMode", "process"},
		{"WatchdogUSec", "1min"},
		{"OOMScoreAdjust", "-999"},
		{"NRestarts", "0"},
		{"StatusErrno", "0"},
	} {
		if got := n.property(want[0]); got != want[1] {
			n.Errorf("%s=%s, want %s", want[0], got, want[1])
		}
	}
	if got := n.command("systemctl", "is-active", "cri-runtime.socket"); got != "active" {
		n.Errorf("the socket is %s", got)
	}
	adj, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", n.mainPID()))
	if err != nil || strings.TrimSpace(string(adj)) != "-999" {
		n.Errorf("oom_score_adj %s, %v", adj, err)
	}
	c, err := n.client.RuntimeConfig(n.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || c.Linux.CgroupDriver != runtimeapi.CgroupDriver_SYSTEMD {
		n.Errorf("the runtime reports %v, %v", c, err)
	}
}

// domain looks at the labels, where SELinux is.
func (n *node) domain() {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		n.Skip("without SELinux")
	}
	label := func(pid string) string {
		data, err := os.ReadFile("/proc/" + pid + "/attr/current")
		if err != nil {
			n.Fatal(err)
		}
		return string(bytes.TrimRight(data, "\x00\n"))
	}
	if got := label(strconv.Itoa(n.mainPID())); got != "system_u:system_r:container_engine_t:s0" {
		n.Errorf("the daemon has the label %s", got)
	}
	answer, err := n.client.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: n.ctr, Cmd: []string{"/bin/cat", "/proc/self/attr/current"}})
	if err != nil || !strings.HasPrefix(string(answer.GetStdout()), "system_u:system_r:container_t:s0:c") {
		n.Errorf("the container has the label %s, %v", answer.GetStdout(), err)
	}
	for path, want := range map[string]string{
		"/usr/bin/cri-runtime": "container_engine_exec_t", "/var/lib/cri-runtime": "container_var_lib_t",
		"/run/cri-runtime": "container_runtime_t", "/etc/cri-runtime/config.toml": "container_config_t",
	} {
		buf := make([]byte, 512)
		size, err := unix.Lgetxattr(path, "security.selinux", buf)
		if err != nil || !strings.Contains(string(buf[:max(size, 0)]), ":"+want+":") {
			n.Errorf("%s has the label %q (%v), want %s", path, buf[:max(size, 0)], err, want)
		}
	}
}

func (n *node) doctor() {
	out := n.command("cri-runtime", "doctor")
	n.Log(out)
	if strings.Contains(strings.ToLower(out), "not running") {
		n.Errorf("the daemon runs")
	}
}

// fields looks for a pod's life by the fields of the journal.
func (n *node) fields() {
	n.await("the pod's lines in the journal", func() bool {
		out := n.command("journalctl", "-b", "--no-pager", "-o", "json", "-u", unit, "POD="+n.pod)
		for line := range strings.Lines(out) {
			var entry struct {
				Pod      string `json:"POD"`
				Message  string `json:"MESSAGE"`
				Priority string `json:"PRIORITY"`
			}
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				continue
			}
			if entry.Pod == n.pod && entry.Message != "" && (entry.Priority == "6" || entry.Priority == "7") {
				return true
			}
		}
		return false
	})
}

// restartUnderLoad restarts the service while clients come and go: each of them is served.
func (n *node) restartUnderLoad() {
	ctx, cancel := context.WithCancel(n.Context())
	defer cancel()
	var served, dialled atomic.Int64
	var load sync.WaitGroup
	for range 3 {
		load.Go(func() {
			for ctx.Err() == nil {
				if err := ask(); err != nil {
					n.Errorf("a client was not served: %v", err)
					return
				}
				served.Add(1)
			}
		})
	}
	load.Go(func() {
		pace := time.NewTicker(10 * time.Millisecond) // the queue has a bound
		defer pace.Stop()
		for ctx.Err() == nil {
			<-pace.C
			conn, err := (&net.Dialer{}).DialContext(context.Background(), "unix", socket)
			if err != nil {
				n.Errorf("a connection was refused: %v", err)
				return
			}
			dialled.Add(1)
			_ = conn.Close()
		}
	})
	for range 3 {
		pid := n.mainPID()
		n.command("systemctl", "restart", unit)
		if n.mainPID() == pid {
			n.Error("the daemon is the same")
		}
		at := served.Load()
		n.await("clients to be served", func() bool { return n.Failed() || served.Load() > at+3 })
	}
	cancel()
	load.Wait()
	n.Logf("%d calls on connections of their own, %d bare connections", served.Load(), dialled.Load())
	n.unharmed()
}

func ask() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience*harness.Slowness())
	defer cancel()
	conn, err := dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{})
	return err
}

func (n *node) killed() {
	pid := n.mainPID()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		n.Fatal(err)
	}
	n.await("systemd to start the daemon again", func() bool { now := n.mainPID(); return now != pid && now != 0 })
	n.ready()
	n.unharmed()
}

// watchdog stops the daemon, which is then no more able to say that it is alive.
func (n *node) watchdog() {
	dir := "/run/systemd/system/" + unit + ".d"
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // read by systemd
		n.Fatal(err)
	}
	seconds := int(2 * harness.Slowness())
	if err := os.WriteFile(filepath.Join(dir, "watchdog.conf"), fmt.Appendf(nil, "[Service]\nWatchdogSec=%d\n", seconds), 0o644); err != nil { //nolint:gosec // so is this
		n.Fatal(err)
	}
	n.command("systemctl", "daemon-reload")
	n.command("systemctl", "restart", unit)
	n.ready()
	pid := n.mainPID()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		n.Fatal(err)
	}
	n.await("the watchdog to end the daemon that stands still", func() bool { now := n.mainPID(); return now != pid && now != 0 })
	n.ready()
	n.unharmed()
	if err := os.RemoveAll(dir); err != nil {
		n.Fatal(err)
	}
	n.command("systemctl", "daemon-reload")
	n.command("systemctl", "restart", unit)
	n.ready()
}

func (n *node) upgrade() {
	pid := n.mainPID()
	n.command("dpkg", "-i", n.deb)
	n.ready()
	if n.mainPID() == pid {
		n.Error("the old daemon serves after an upgrade")
	}
	n.unharmed()
}

// reinstall takes the package away below a running pod, and puts it back.
func (n *node) reinstall() {
	n.command("dpkg", "-r", "cri-runtime")
	if _, err := os.Stat(socket); err == nil {
		n.Error("the socket is there without the package")
	}
	if _, err := os.Stat("/usr/bin/cri-runtime"); err == nil {
		n.Error("the daemon is there without the package")
	}
	n.command("dpkg", "-i", n.deb)
	n.ready()
	n.unharmed()
}

func (n *node) purgeWithPod() {
	out := n.command("dpkg", "-P", "cri-runtime")
	if !strings.Contains(out, "pods are left") {
		n.Errorf("purging says %q", out)
	}
	if _, err := os.Stat("/var/lib/cri-runtime/containers/" + n.ctr); err != nil {
		n.Errorf("the container's record is gone: %v", err)
	}
	n.command("dpkg", "-i", n.deb)
	n.ready()
	n.unharmed()
}

func (n *node) purge() {
	if _, err := n.client.RemovePodSandbox(n.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: n.pod}, grpc.WaitForReady(true)); err != nil {
		n.Fatal(err)
	}
	n.command("systemctl", "stop", "kubepods-critest.slice", "kubepods.slice")
	n.command("dpkg", "-P", "cri-runtime")
	if err := os.RemoveAll("/var/log/pods/critest"); err != nil {
		n.Error(err)
	}
}
