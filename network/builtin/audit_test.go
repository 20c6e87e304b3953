package builtin

import (
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// wantFinding wants one that says so, or none at all.
func wantFinding(t *testing.T, name string, findings ledger.Findings, want string) {
	t.Helper()
	found := want == ""
	for _, f := range findings {
		if found = found || strings.Contains(f.String(), want); want == "" || f.Path == "" || f.Remedy == "" {
			t.Errorf("%s: found: %s", name, f)
		}
	}
	if !found {
		t.Errorf("%s: not found: %q in %v", name, want, findings)
	}
}

// TestAuditFinds breaks one thing at a time; the check names it, with a remedy.
func TestAuditFinds(t *testing.T) {
	h := newHost(t)
	web := Port{Protocol: "tcp", Host: 8080, Pod: 80}
	h.pod("a", web)
	h.pod("b")
	healthy := h.b.Snapshot()
	with := func(id string, l *Lease) map[string]*Lease {
		out := maps.Clone(healthy)
		out[id] = l
		if l == nil {
			delete(out, id)
		}
		return out
	}
	elsewhere := []netip.Prefix{netip.MustParsePrefix("10.77.0.9/24")}
	for _, c := range []struct {
		name   string
		want   string // nothing is to be found when it is ""
		leases map[string]*Lease
		unsure map[string]bool
		quiet  bool // no daemon runs
		damage func(t *testing.T) (mend func())
	}{
		{name: "nothing", leases: healthy},
		{name: "address twice", want: "10.77.0.2: sandboxes a and c both have this address", leases: with("c", &Lease{Addresses: healthy["a"].Addresses})},
		{name: "host port twice", want: ":8080/tcp: sandboxes a and c both have this host port", leases: with("c", &Lease{Addresses: elsewhere, Ports: []Port{web}})},
		{name: "interface of nobody", want: hostName("b") + ": this interface on bridge crit0 belongs to no sandbox", leases: with("b", nil)},
		{name: "interface that is being made", leases: with("b", nil), unsure: map[string]bool{"b": true}},
		{name: "no interface", want: hostName("c") + ": this interface of sandbox c is not on bridge crit0", leases: with("c", &Lease{Addresses: elsewhere})},
		{name: "no interface, no daemon", leases: with("c", &Lease{Addresses: elsewhere}), quiet: true},
		{name: "interface off the bridge", want: hostName("b") + ": this interface of sandbox b is not on bridge crit0", leases: healthy, damage: func(t *testing.T) func() {
			t.Helper()
			link, err := netlink.LinkByName(hostName("b"))
			if err != nil {
				t.Fatal(err)
			}
			bridge, err := netlink.LinkByName("crit0")
			if err = errors.Join(err, netlink.LinkSetNoMaster(link)); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := netlink.LinkSetMaster(link, bridge); err != nil {
					t.Error(err)
				}
			}
		}},
		{name: "element of nobody", want: "belongs to no sandbox", leases: with("a", &Lease{Addresses: healthy["a"].Addresses})},
		{name: "no element", want: "of sandbox b is not there", leases: with("b", &Lease{Addresses: healthy["b"].Addresses, Ports: []Port{{Protocol: "udp", Host: 53, Pod: 53}}})},
	} {
		// Not a test of its own: this thread is in the namespace.
		mend := func() {}
		if c.damage != nil {
			mend = c.damage(t)
		}
		findings, err := Audit(testConfig(), c.leases, c.unsure, !c.quiet)
		if err != nil {
			t.Fatal(err)
		}
		wantFinding(t, c.name, findings, c.want)
		mend()
	}
	if err := errors.Join(h.b.Release("a"), h.b.Release("b"), h.b.Close()); err != nil {
		t.Error(err)
	}
}

// A table of our name that is not what we make.
func TestAuditForeignTable(t *testing.T) {
	newHost(t)
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: newTable("crit0").name})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	findings, err := Audit(testConfig(), nil, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	wantFinding(t, "foreign table", findings, "cannot be listed")
	c.DelTable(table)
	if err := c.Flush(); err != nil {
		t.Error(err)
	}
}
