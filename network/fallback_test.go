package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/network/builtin"
)

// nodeNamespace puts the test's thread into a network namespace of its own, and
// returns the path of another one for a pod.
func nodeNamespace(t *testing.T) (pod string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	runtime.LockOSThread() // never unlocked: the thread and its namespace end with the test
	for range 2 {
		ns, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		if pod == "" {
			pod = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns))
		}
	}
	return pod
}

func (f *fakes) withBuiltin() {
	f.config.Fallback = true
	f.config.Builtin = builtin.Config{Bridge: "crit1", Owner: f.dir, Subnets: []netip.Prefix{netip.MustParsePrefix("10.79.0.0/24")}}
}

func hostPort(host, pod int32) []*runtimeapi.PortMapping {
	return []*runtimeapi.PortMapping{{HostPort: host, ContainerPort: pod}}
}

func TestFallback(t *testing.T) {
	path := nodeNamespace(t)
	f, ctx := newFakes(t), context.Background()
	f.withBuiltin()
	n := open(t, f.config)
	if s := n.Status(); !s.Ready || s.Name != builtinName || s.Bridge != "crit1" || len(s.Subnets) != 1 {
		t.Errorf("status %+v", s)
	}
	pod := Pod{ID: "one", NetNS: path, PortMappings: hostPort(8080, 80)}
	att, err := n.Attach(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	if att.Network != builtinName || len(att.IPs) != 1 || att.IPs[0] != "10.79.0.2" {
		t.Errorf("attachment %+v", att)
	}
	if err := n.Check(ctx, pod, att); err != nil {
		t.Error(err)
	}
	if _, err := n.Attach(ctx, Pod{ID: "two", NetNS: path, PortMappings: hostPort(8080, 80)}); !errors.Is(err, builtin.ErrTaken) {
		t.Errorf("a host port twice: %v", err)
	}
	// A configuration takes over at once; what is attached stays, and is
	// detached by who attached it, also by the next daemon.
	f.plugin("fake", good)
	f.conf("10-fake.conflist", `{"cniVersion":"1.0.0","name":"fake","plugins":[{"type":"fake"}]}`)
	if s := n.Status(); s.Name != "fake" || s.Bridge != "" {
		t.Errorf("status with a configuration: %+v", s)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = open(t, f.config)
	if _, err := netlink.LinkByName("crit1"); err != nil {
		t.Error("the bridge went while a pod was attached:", err)
	}
	if err := n.Check(ctx, pod, att); err != nil {
		t.Error("after a restart:", err)
	}
	for range 2 {
		if err := n.Detach(ctx, pod, att); err != nil {
			t.Fatal(err)
		}
	}
	if calls := f.calls(); strings.Contains(calls, "one") {
		t.Error("a plugin was called for a pod that it never attached:", calls)
	}
	f.empty()
}

// TestPortsWithoutPortmap opens a host port for a network whose plugins do not.
func TestPortsWithoutPortmap(t *testing.T) {
	path := nodeNamespace(t)
	f, ctx := newFakes(t), context.Background()
	f.withBuiltin()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil { // the way to the pod
		err = netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: netlink.NewIPNet([]byte{10, 9, 0, 2}), Scope: netlink.SCOPE_LINK})
	}
	if err != nil {
		t.Fatal(err)
	}
	f.plugin("fake", good)
	f.conf("10-fake.conflist", `{"cniVersion":"1.0.0","name":"fake","plugins":[{"type":"fake"}]}`)
	n := open(t, f.config)
	pod := Pod{ID: "one", NetNS: path, PortMappings: hostPort(8080, 80)}
	att, err := n.Attach(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	if got := openPorts(t); got != 1 {
		t.Errorf("%d ports are open, want 1", got)
	}
	if err := n.Detach(ctx, pod, att); err != nil {
		t.Fatal(err)
	}
	if got := openPorts(t); got != 0 {
		t.Errorf("%d ports are open after DEL", got)
	}
	f.empty()
}

// openPorts counts what leads to pods over IPv4.
func openPorts(t *testing.T) int {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	set, err := c.GetSetByName(&nftables.Table{Name: "cri-runtime-crit1", Family: nftables.TableFamilyINet}, "ports4")
	if err != nil {
		t.Fatal(err)
	}
	elements, err := c.GetSetElements(set)
	if err != nil {
		t.Fatal(err)
	}
	return len(elements)
}

func TestSetSubnets(t *testing.T) {
	path := nodeNamespace(t)
	f := newFakes(t)
	f.withBuiltin()
	n := open(t, f.config)
	want := []netip.Prefix{netip.MustParsePrefix("10.80.0.0/24")}
	if err := n.SetSubnets(want); err != nil {
		t.Fatal(err)
	}
	if err := n.SetSubnets([]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}); !errors.Is(err, builtin.ErrInvalid) {
		t.Errorf("loopback as the pods' subnet: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = open(t, f.config) // keeps it
	att, err := n.Attach(context.Background(), Pod{ID: "one", NetNS: path})
	if err != nil || att.IPs[0] != "10.80.0.2" {
		t.Errorf("attachment %+v, %v", att, err)
	}
	f.config.FixedSubnets = true
	if got := open(t, f.config).Status().Subnets; len(got) != 1 || got[0].String() != "10.79.0.0/24" {
		t.Errorf("an administrator's choice was overruled: %v", got)
	}
}
