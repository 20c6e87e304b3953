package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// realNetwork is a bridge with dual-stack addresses and host ports, as in
// deploy/cni, with the plugins' state in a directory of the test.
func realNetwork(t testing.TB, bridge string, subnet int, chained ...string) (*Network, string) {
	t.Helper()
	bin := needPlugins(t)
	dir := t.TempDir()
	conf, ipam := filepath.Join(dir, "conf"), filepath.Join(dir, "ipam")
	if err := os.Mkdir(conf, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(conf, "10.conflist"), fmt.Sprintf(`{"cniVersion":"1.0.0","name":"net","plugins":[
		{"type":"bridge","bridge":%q,"isGateway":true,"ipam":{"type":"host-local","dataDir":%q,
			"ranges":[[{"subnet":"10.%d.0.0/16"}],[{"subnet":"fd00:%d::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}%s]}`,
		bridge, ipam, subnet, subnet, strings.Join(append([]string{""}, chained...), ",")))
	t.Cleanup(func() {
		if link, err := netlink.LinkByName(bridge); err == nil {
			if err := netlink.LinkDel(link); err != nil {
				t.Error(err)
			}
		}
	})
	return open(t, Config{ConfDir: conf, BinDirs: []string{bin, dir}, CacheDir: filepath.Join(dir, "cache")}), ipam
}

const portmapNFT = `{"type":"portmap","backend":"nftables","snat":true,"capabilities":{"portMappings":true}}`

// reserved returns the addresses that host-local has given away.
func reserved(t testing.TB, ipam string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(ipam, "net"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var ips []string
	for _, entry := range entries {
		if name := entry.Name(); !strings.HasPrefix(name, "last_reserved") && name != "lock" {
			ips = append(ips, name)
		}
	}
	return ips
}

// serve answers one connection in the namespace with a word.
func serve(t *testing.T, netns, address string) {
	t.Helper()
	var listener net.Listener
	err := within(t, netns, func() (err error) {
		listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, "here")
			conn.Close()
		}
	})
	t.Cleanup(func() {
		listener.Close()
		group.Wait()
	})
}

func dial(ctx context.Context, address string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && line != "here\n" {
		err = fmt.Errorf("read %q", line)
	}
	return err
}

func TestBridge(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft")
	}
	n, ipam := realNetwork(t, "crt-a", 71, portmapNFT)
	before := links(t, "")
	var pods [2]Pod
	var atts [2]*Attachment
	for i := range pods {
		pods[i] = Pod{ID: fmt.Sprintf("pod%d", i), Name: "web", Namespace: "default", NetNS: newNetNS(t)}
	}
	pods[0].PortMappings = []*runtimeapi.PortMapping{{HostPort: 18080, ContainerPort: 80}, {HostPort: 18080, ContainerPort: 80, Protocol: runtimeapi.Protocol_UDP}}
	for i := range pods {
		var err error
		if atts[i], err = n.Attach(t.Context(), pods[i]); err != nil {
			t.Fatal(err)
		}
		if ips := atts[i].IPs; len(ips) != 2 || !strings.HasPrefix(ips[0], "10.71.") || !strings.HasPrefix(ips[1], "fd00:71::") {
			t.Fatalf("addresses %v", ips)
		}
		if !links(t, pods[i].NetNS)["eth0"] {
			t.Error("no eth0 in the pod")
		}
		if err := n.Check(t.Context(), pods[i], atts[i]); err != nil {
			t.Error(err)
		}
	}
	for _, ip := range atts[0].IPs {
		address := net.JoinHostPort(ip, "80")
		serve(t, pods[0].NetNS, address)
		if err := within(t, pods[1].NetNS, func() error { return dial(t.Context(), address) }); err != nil {
			t.Errorf("from pod to pod: %v", err)
		}
		if err := dial(t.Context(), address); err != nil {
			t.Errorf("from host to pod: %v", err)
		}
	}
	if err := dial(t.Context(), "10.71.0.1:18080"); err != nil {
		t.Errorf("through the host port: %v", err)
	}
	// One pod is detached as it should be, the other has lost its namespace.
	if err := n.Detach(t.Context(), pods[0], atts[0]); err != nil {
		t.Error(err)
	}
	if links(t, pods[0].NetNS)["eth0"] {
		t.Error("eth0 is left in the pod")
	}
	if err := dial(t.Context(), "10.71.0.1:18080"); err == nil {
		t.Error("the host port is left")
	}
	dropNetNS(t, pods[1].NetNS)
	if err := n.Detach(t.Context(), pods[1], atts[1]); err != nil {
		t.Error(err)
	}
	for i := range pods {
		if err := n.Detach(t.Context(), pods[i], atts[i]); err != nil {
			t.Errorf("a second time: %v", err)
		}
	}
	if left := reserved(t, ipam); len(left) > 0 {
		t.Errorf("addresses %v are left", left)
	}
	noVeths(t, before)
}

// noVeths waits for the kernel to take away the links of namespaces that have
// gone, which it does in the background.
func noVeths(t *testing.T, before map[string]bool) {
	t.Helper()
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(done)
		for range updates {
		}
	})
	for {
		left := 0
		for name := range links(t, "") {
			if strings.HasPrefix(name, "veth") && !before[name] {
				left++
			}
		}
		if left == 0 {
			return
		}
		<-updates
	}
}

// TestBridgeConfigGone: DEL needs nothing but what ADD left.
func TestBridgeConfigGone(t *testing.T) {
	n, ipam := realNetwork(t, "crt-b", 72)
	for i, att := range []bool{true, false} {
		pod := Pod{ID: fmt.Sprintf("pod%d", i), Name: "web", Namespace: "default", NetNS: newNetNS(t)}
		write(t, n.config.ConfDir+"/10.conflist", strings.ReplaceAll(readString(t, n.config.ConfDir+"/10.conflist"), `"name":"other"`, `"name":"net"`))
		a, err := n.Attach(t.Context(), pod)
		if err != nil {
			t.Fatal(err)
		}
		write(t, n.config.ConfDir+"/10.conflist", strings.ReplaceAll(readString(t, n.config.ConfDir+"/10.conflist"), `"name":"net"`, `"name":"other"`))
		if !att {
			a = nil
		}
		if err := n.Detach(t.Context(), pod, a); err != nil {
			t.Error(err)
		}
		if left := reserved(t, ipam); len(left) > 0 {
			t.Errorf("addresses %v are left", left)
		}
		if links(t, pod.NetNS)["eth0"] {
			t.Error("eth0 is left in the pod")
		}
	}
}

func readString(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestBridgeHalfway: what the first plugins of the chain did is undone.
func TestBridgeHalfway(t *testing.T) {
	n, ipam := realNetwork(t, "crt-c", 73, `{"type":"half"}`)
	script := "#!/bin/sh\n[ $CNI_COMMAND = DEL ] || exit 1\n"
	if err := os.WriteFile(filepath.Join(n.config.BinDirs[1], "half"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	before := links(t, "")
	pod := Pod{ID: "pod0", Name: "web", Namespace: "default", NetNS: newNetNS(t)}
	_, err := n.Attach(t.Context(), pod)
	if err == nil || !strings.Contains(err.Error(), "ADD by plugin half") {
		t.Fatalf("%v", err)
	}
	if left := reserved(t, ipam); len(left) > 0 {
		t.Errorf("addresses %v are left", left)
	}
	noVeths(t, before)
}

func TestBridgeManyAtOnce(t *testing.T) {
	n, ipam := realNetwork(t, "crt-d", 74)
	before := links(t, "")
	const count = 20
	var group sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]string{}
	for i := range count {
		pod := Pod{ID: fmt.Sprintf("pod%d", i), Name: "web", Namespace: "default", NetNS: newNetNS(t)}
		group.Go(func() {
			att, err := n.Attach(t.Context(), pod)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			for _, ip := range att.IPs {
				if other := seen[ip]; other != "" {
					t.Errorf("%s and %s both have %s", pod.ID, other, ip)
				}
				seen[ip] = pod.ID
			}
			mu.Unlock()
			if err := n.Detach(t.Context(), pod, att); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if left := reserved(t, ipam); len(left) > 0 {
		t.Errorf("addresses %v are left", left)
	}
	noVeths(t, before)
}

// TestExampleConflist: the example that is installed is one that works.
func TestExampleConflist(t *testing.T) {
	bin := needPlugins(t)
	dir, err := filepath.Abs("../deploy/cni")
	if err != nil {
		t.Fatal(err)
	}
	n := open(t, Config{ConfDir: dir, BinDirs: []string{bin}})
	if err := n.Ready(); err != nil {
		t.Error(err)
	}
	if s := n.Status(); s.Name != "cri-runtime" || len(s.Refused) > 0 {
		t.Errorf("%+v", s)
	}
}

// BenchmarkAttach measures what Attach and Detach take beyond the plugin: the
// plugin is a program that does next to nothing.
func BenchmarkAttach(b *testing.B) {
	f := newFakes(b)
	f.plugin("p", good)
	f.conf("10.conflist", listOf("net", "p"))
	n := open(b, f.config)
	pod := f.pod("a1")
	for b.Loop() {
		att, err := n.Attach(b.Context(), pod)
		if err != nil {
			b.Fatal(err)
		}
		if err := n.Detach(b.Context(), pod, att); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	total := b.Elapsed()
	plugin := timePlugin(b, f.config.BinDirs[0]+"/p", "ADD") + timePlugin(b, f.config.BinDirs[0]+"/p", "DEL")
	b.ReportMetric(float64(total.Microseconds())/float64(b.N)-plugin, "overhead-us/op")
}

// timePlugin returns the microseconds of one bare run.
func timePlugin(b *testing.B, path, verb string) float64 {
	b.Helper()
	const runs = 100
	start := time.Now()
	for range runs {
		cmd := exec.Command(path)
		cmd.Env = []string{"CNI_COMMAND=" + verb, "PATH=" + defaultPath}
		cmd.Stdin = strings.NewReader(listOf("net", "p"))
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%s: %v", out, err)
		}
	}
	return float64(time.Since(start).Microseconds()) / runs
}

func BenchmarkBridge(b *testing.B) {
	n, _ := realNetwork(b, "crt-e", 75)
	pod := Pod{ID: "pod", Name: "web", Namespace: "default", NetNS: newNetNS(b)}
	for b.Loop() {
		att, err := n.Attach(b.Context(), pod)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := n.Detach(b.Context(), pod, att); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
