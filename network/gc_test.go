package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/network/builtin"
)

func only(ids ...string) func() ([]string, error) {
	return func() ([]string, error) { return ids, nil }
}

// TestGCGivesWay: an ADD that comes while the plugins collect does not wait for
// them, and they are asked again.
func TestGCGivesWay(t *testing.T) {
	f := newFakes(t)
	f.plugin("p", `if [ $CNI_COMMAND = GC ] && [ ! -e "$d/quick" ]; then sleep 1000 & echo $! >"$d/child.new"; mv "$d/child.new" "$d/child"; wait; fi
`+good)
	f.conf("10.conflist", `{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"p"}]}`)
	n := open(t, f.config)
	collected := make(chan error, 1)
	go func() { collected <- n.GC(context.Background(), only("a1")) }()
	child := waitFor(t, filepath.Join(f.dir, "child"))
	if err := n.GC(t.Context(), only("a1")); !errors.Is(err, ErrBusy) {
		t.Errorf("beside another GC: %v", err)
	}
	pod := f.pod("a1")
	att, err := n.Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-collected; !errors.Is(err, ErrBusy) {
		t.Errorf("GC that gave way: %v", err)
	}
	gone(t, child)
	write(t, f.dir+"/quick", "")
	if err := n.GC(t.Context(), only("a1")); err != nil {
		t.Error(err)
	}
	if err := n.Detach(t.Context(), pod, att); err != nil {
		t.Error(err)
	}
	if calls := f.calls(); strings.Count(calls, "GC") != 2 || strings.Count(calls, "DEL") != 1 {
		t.Errorf("calls %s", calls)
	}
	f.empty()
}

// TestGCDisabled: a network that others use too says so.
func TestGCDisabled(t *testing.T) {
	f := newFakes(t)
	f.plugin("p", good)
	f.conf("10.conflist", `{"cniVersion":"1.1.0","name":"net","disableGC":true,"plugins":[{"type":"p"}]}`)
	n := open(t, f.config)
	if _, err := n.Attach(t.Context(), f.pod("stale")); err != nil {
		t.Fatal(err)
	}
	if err := n.GC(t.Context(), only()); err != nil {
		t.Error(err)
	}
	// What is our own is detached nevertheless.
	if calls := f.calls(); strings.Contains(calls, "GC") || !strings.Contains(calls, "DEL p stale") {
		t.Errorf("calls %s", calls)
	}
	f.empty()
}

// TestBridgeGC: the address of a pod that no sandbox has is given back after a
// restart, by plugins that know the verb GC or not; others keep theirs, also one whose ADD
// runs meanwhile.
func TestBridgeGC(t *testing.T) {
	for i, version := range []string{"1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			n, ipam := realNetwork(t, []string{"crt-f", "crt-g"}[i], 76+i)
			conf := n.config.ConfDir + "/10.conflist"
			write(t, conf, strings.Replace(readString(t, conf), "1.0.0", version, 1))
			before := links(t, "")
			live, stale, lost := namedPod(t, "live"), namedPod(t, "stale"), namedPod(t, "lost")
			kept := map[string]*Attachment{}
			for _, pod := range []Pod{live, stale, lost} {
				att, err := n.Attach(t.Context(), pod)
				if err != nil {
					t.Fatal(err)
				}
				kept[pod.ID] = att
			}
			// libcni's cache tells of it.
			if err := os.Remove(n.recordPath(lost.ID)); err != nil {
				t.Fatal(err)
			}
			dropNetNS(t, lost.NetNS)
			n = open(t, n.config)
			added := namedPod(t, "added")
			type outcome struct {
				att *Attachment
				err error
			}
			adding := make(chan outcome, 1)
			go func() {
				att, err := n.Attach(context.Background(), added)
				adding <- outcome{att, err}
			}()
			for {
				err := n.GC(t.Context(), only(live.ID, added.ID))
				if err == nil {
					break
				}
				if !errors.Is(err, ErrBusy) {
					t.Fatal(err)
				}
			}
			add := <-adding
			if add.err != nil {
				t.Fatal(add.err)
			}
			kept[added.ID] = add.att
			if err := n.GC(t.Context(), only(live.ID, added.ID)); err != nil {
				t.Fatal(err)
			}
			want := slices.Sorted(slices.Values(slices.Concat(kept[live.ID].IPs, add.att.IPs)))
			if got := slices.Sorted(slices.Values(reserved(t, ipam))); !slices.Equal(got, want) {
				t.Errorf("addresses %v, want %v", got, want)
			}
			if links(t, stale.NetNS)["eth0"] {
				t.Error("eth0 is left in the stale pod")
			}
			for _, pod := range []Pod{live, added} {
				if err := n.Check(t.Context(), pod, kept[pod.ID]); err != nil {
					t.Error(err)
				}
				if err := n.Detach(t.Context(), pod, kept[pod.ID]); err != nil {
					t.Error(err)
				}
			}
			noVeths(t, before)
		})
	}
}

func namedPod(t *testing.T, id string) Pod {
	t.Helper()
	return Pod{ID: id, Name: "web", Namespace: "default", NetNS: newNetNS(t)}
}

// TestBridgeCheck: CHECK finds what somebody has taken away, and changes nothing.
func TestBridgeCheck(t *testing.T) {
	n, ipam := realNetwork(t, "crt-h", 78)
	pod := namedPod(t, "pod")
	att, err := n.Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Check(t.Context(), pod, att); err != nil {
		t.Error(err)
	}
	if err := within(t, pod.NetNS, func() error {
		link, err := netlink.LinkByName(ifName)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	}); err != nil {
		t.Fatal(err)
	}
	held := reserved(t, ipam)
	if err := n.Check(t.Context(), pod, att); err == nil || !strings.Contains(err.Error(), ifName) || !strings.Contains(err.Error(), "CHECK by plugin bridge") {
		t.Errorf("without the interface: %v", err)
	}
	if now := reserved(t, ipam); len(held) != 2 || !slices.Equal(held, now) || links(t, pod.NetNS)[ifName] {
		t.Errorf("CHECK changed something: %v, %v", held, now)
	}
	if err := n.Detach(t.Context(), pod, att); err != nil {
		t.Error(err)
	}
	for _, text := range []string{`{"cniVersion":"0.3.1","name":"net","plugins":[{"type":"bridge"}]}`, `{"cniVersion":"1.0.0","name":"net","disableCheck":true,"plugins":[{"type":"bridge"}]}`} {
		if err := n.Check(t.Context(), pod, &Attachment{Network: "net", Config: []byte(text)}); !errors.Is(err, ErrNotChecked) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestBridgeHostPorts: without portmap our rules open a host port, with it they
// open none beside its own.
func TestBridgeHostPorts(t *testing.T) {
	for i, chained := range [][]string{nil, {portmapNFT}} {
		name := []string{"without portmap", "with portmap"}[i]
		t.Run(name, func(t *testing.T) {
			bridge := []string{"crt-i", "crt-j"}[i]
			plain, ipam := realNetwork(t, bridge, 79+i, chained...)
			config := plain.config
			config.CacheDir = filepath.Join(t.TempDir(), "cache")
			config.Builtin = builtin.Config{Bridge: bridge + "-own", Owner: t.Name(), Subnets: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24")}}
			n := open(t, config)
			pod := namedPod(t, "pod")
			pod.PortMappings = []*runtimeapi.PortMapping{{HostPort: 18081, ContainerPort: 80}}
			att, err := n.Attach(t.Context(), pod)
			if err != nil {
				t.Fatal(err)
			}
			serve(t, pod.NetNS, att.IPs[0]+":80")
			gateway := strings.Join(strings.Split(att.IPs[0], ".")[:2], ".") + ".0.1"
			if err := dial(t.Context(), gateway+":18081"); err != nil {
				t.Errorf("through the host port: %v", err)
			}
			rec, err := n.readRecord(pod.ID)
			if err != nil || rec == nil {
				t.Fatalf("record %v, %v", rec, err)
			}
			if ours := rec.Lease != nil && len(rec.Lease.Ports) == 1; ours != (len(chained) == 0) {
				t.Errorf("our rules: %v with the chain %v", ours, chained)
			}
			if err := n.Check(t.Context(), pod, att); err != nil {
				t.Error(err)
			}
			if err := n.Detach(t.Context(), pod, att); err != nil {
				t.Error(err)
			}
			if err := dial(t.Context(), gateway+":18081"); err == nil {
				t.Error("the host port is left")
			}
			if left := reserved(t, ipam); len(left) > 0 {
				t.Errorf("addresses %v are left", left)
			}
		})
	}
}
