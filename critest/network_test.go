package critest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

func TestPodNetwork(t *testing.T) {
	begin(t)
	a, b := run(t, podNetwork), run(t, podNetwork)
	ipA, ipB := a.status().Network.GetIp(), b.status().Network.GetIp()
	for _, ip := range []string{ipA, ipB} {
		if !strings.HasPrefix(ip, node.Subnet()+".") {
			t.Fatalf("address %q is not of %s.0/24", ip, node.Subnet())
		}
	}
	if ipA == ipB {
		t.Fatalf("both pods have %s", ipA)
	}
	server := a.start("", withImage(t, "web"))
	if got := a.output("ip -4 addr show lo | grep -c LOWER_UP; ip -4 addr show eth0 | awk '/inet/{print $2}'"); got != "1\n"+ipA+"/24" {
		t.Errorf("links: %q", got)
	}
	fetch := "for i in $(seq 100); do wget -qO- http://" + ipA + ":8080/ && exit 0; usleep 50000; done; exit 1"
	if got := b.output(fetch); !strings.Contains(got, "It works") {
		t.Errorf("the other pod reads %q", got)
	}
	if got := get(t, ipA+":8080"); !strings.Contains(got, "It works") {
		t.Errorf("the host reads %q", got)
	}
	server.stop(10)
	if code := server.status().ExitCode; code != 0 {
		t.Errorf("the server's exit code is %d", code)
	}
}

// TestVerboseStatusChecksTheNetwork: the plugins' CHECK is in the verbose status.
func TestVerboseStatusChecksTheNetwork(t *testing.T) {
	differs(t, "runs no CHECK")
	begin(t)
	p := run(t, podNetwork)
	shown := func() (info struct{ Network, NetNS string }) {
		t.Helper()
		answer, err := node.CRI.PodSandboxStatus(t.Context(), p.id, true)
		if err == nil {
			err = json.Unmarshal([]byte(answer.Info["info"]), &info)
		}
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	info := shown()
	if info.Network != "ok" {
		t.Errorf("network %q, want ok", info.Network)
	}
	rename := func(from, to string) {
		t.Helper()
		script := "ip link set " + from + " down && ip link set " + from + " name " + to
		if out, err := exec.CommandContext(t.Context(), "nsenter", "--net="+info.NetNS, "sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	rename("eth0", "other")
	if got := shown().Network; !strings.Contains(got, "CHECK by plugin bridge") || !strings.Contains(got, "eth0") {
		t.Errorf("without eth0: %q", got)
	}
	rename("other", "eth0") // the plugin's DEL leaves rules behind without it
}

func get(t *testing.T, address string) (body string) {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	if err := harness.Until(t.Context(), patience, "an answer of "+address, func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/", nil)
		if err != nil {
			return false
		}
		answer, err := client.Do(req)
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		data, err := io.ReadAll(answer.Body)
		body = string(data)
		return err == nil
	}); err != nil {
		t.Fatal(err)
	}
	return body
}

func TestHostPort(t *testing.T) {
	begin(t)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	p := run(t, podNetwork, func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 8080, HostPort: int32(port)}}
	})
	p.start("", withImage(t, "web"))
	if got := get(t, fmt.Sprintf("%s.1:%d", node.Subnet(), port)); !strings.Contains(got, "It works") {
		t.Errorf("through the host port: %q", got)
	}
}

func TestNetworkNotReady(t *testing.T) {
	begin(t)
	ready := func() bool {
		s, err := node.CRI.Status(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range s.Status.Conditions {
			if c.Type == "NetworkReady" {
				return c.Status
			}
		}
		t.Fatal("no condition NetworkReady")
		return false
	}
	restore := func() {
		if err := node.WriteConflist(node.Conflist()); err != nil {
			t.Error(err)
		}
		if err := harness.Until(context.Background(), patience, "the network to be ready again", ready); err != nil {
			t.Error(err)
		}
	}
	defer restore()
	for _, bad := range []string{"", "{", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"no-such-plugin"}]}`} {
		if peer && bad != "" {
			continue // it keeps the last good configuration
		}
		if err := node.WriteConflist(bad); err != nil {
			t.Fatal(err)
		}
		if err := harness.Until(t.Context(), patience, "NetworkReady to become false", func() bool { return !ready() }); err != nil {
			t.Errorf("configuration %q: %v", bad, err)
		}
		p := run(t) // needs no network
		p.output("true")
	}
}

func TestPodOfAMissingPluginCanBeRemoved(t *testing.T) {
	differs(t, "keeps such pods")
	begin(t)
	defer func() {
		if err := node.WriteConflist(node.Conflist()); err != nil {
			t.Error(err)
		}
		sweep(t)
		if err := harness.Until(context.Background(), patience, "the network to be ready again", func() bool {
			s, err := node.CRI.Status(context.Background(), false)
			return err == nil && s.Status.Conditions[0].Status && s.Status.Conditions[1].Status
		}); err != nil {
			t.Error(err)
		}
	}()
	if err := node.WriteConflist(`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"no-such-plugin"}]}`); err != nil {
		t.Fatal(err)
	}
	if err := harness.Until(t.Context(), patience, "RunPodSandbox to fail", func() bool {
		config := podConfig(podNetwork)
		prepare(t, config)
		id, err := node.CRI.RunPodSandbox(t.Context(), config, "")
		if err != nil {
			return true
		}
		(&pod{t: t, id: id}).remove()
		return false
	}); err != nil {
		t.Error(err)
	}
	sweep(t)
}

func TestFailedAttachLeavesNothing(t *testing.T) {
	begin(t)
	defer func() {
		if err := node.WriteConflist(node.Conflist()); err != nil {
			t.Error(err)
		}
		if err := harness.Until(context.Background(), patience, "pods to come up again", func() bool {
			config := podConfig(podNetwork)
			prepare(t, config)
			id, err := node.CRI.RunPodSandbox(context.Background(), config, "")
			if err != nil {
				return false
			}
			(&pod{t: t, id: id}).remove()
			return true
		}); err != nil {
			t.Error(err)
		}
	}()
	// The bridge comes first and succeeds, the second plugin fails: its own
	// configuration is wrong in a way that only ADD finds.
	text := strings.Replace(node.Conflist(), `{"type":"portmap"`,
		`{"type":"tuning","sysctl":{"net.ipv4.conf.no-such-device.forwarding":"1"}},{"type":"portmap"`, 1)
	if err := node.WriteConflist(text); err != nil {
		t.Fatal(err)
	}
	if err := harness.Until(t.Context(), patience, "ADD to fail", func() bool {
		config := podConfig(podNetwork)
		prepare(t, config)
		id, err := node.CRI.RunPodSandbox(t.Context(), config, "")
		if err != nil {
			return true
		}
		(&pod{t: t, id: id}).remove()
		return false
	}); err != nil {
		t.Error(err)
	}
	sweep(t)
	if left, err := filepath.Glob(filepath.Join(node.Dir, "ipam", "*", node.Subnet()+".*")); err != nil || len(left) > 0 {
		t.Errorf("leases %q (%v)", left, err)
	}
}

// sweep removes, as the kubelet would, the pods whose set-up failed and that
// may stay visible as not ready until their network is detached.
func sweep(t *testing.T) {
	t.Helper()
	var last error
	if err := harness.Until(t.Context(), patience, "failed pods to be removed", func() bool {
		list, err := node.CRI.ListPodSandbox(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		left := 0
		for _, p := range list {
			if p.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				continue
			}
			left++
			if last = node.CRI.StopPodSandbox(t.Context(), p.Id); last == nil {
				last = node.CRI.RemovePodSandbox(t.Context(), p.Id)
			}
		}
		return left == 0
	}); err != nil {
		t.Errorf("%v: %v", err, last)
	}
}
