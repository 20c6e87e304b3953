package builtin

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// Snapshot returns all leases by sandbox.
func (b *Bridge) Snapshot() map[string]*Lease {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.leases)
}

// Audit compares leases with one another, with the ports of the bridge and with
// the table of host ports; nothing is changed. Of the sandboxes in unsure an
// interface may be there or not. Without a daemon (serving) a reboot may have
// taken everything.
func Audit(config Config, leases map[string]*Lease, unsure map[string]bool, serving bool) (ledger.Findings, error) {
	a := &auditor{config: config, leases: leases, unsure: unsure, serving: serving}
	a.conflicts()
	if err := a.interfaces(); err != nil {
		return a.findings, err
	}
	return a.findings, a.table()
}

const remedyTable = "restart the daemon, which makes the table anew"

type auditor struct {
	config   Config
	leases   map[string]*Lease
	unsure   map[string]bool
	serving  bool
	findings ledger.Findings
}

// conflicts looks for what two pods have.
func (a *auditor) conflicts() {
	ips, ports := map[netip.Addr]string{}, map[portKey]string{}
	for _, id := range slices.Sorted(maps.Keys(a.leases)) {
		for _, p := range a.leases[id].Addresses {
			if other, ok := ips[p.Addr()]; ok {
				a.findings.Add(p.Addr().String(), fmt.Sprintf("sandboxes %s and %s both have this address", other, id), "stop and remove both")
			}
			ips[p.Addr()] = id
		}
		for _, f := range a.leases[id].forwards() {
			if other, ok := ports[f.portKey]; ok {
				a.findings.Add(f.portKey.String(), fmt.Sprintf("sandboxes %s and %s both have this host port", other, id), "stop and remove both")
			}
			ports[f.portKey] = id
		}
	}
}

// The kernel removes a pod's interface some time after its namespace: what belongs
// to nobody is looked at again before it is found.
const (
	strayPause = 50 * time.Millisecond
	strayLooks = 40
)

// interfaces compares the bridge's ports with the leases.
func (a *auditor) interfaces() error {
	for look := 1; ; look++ {
		links, err := netlink.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list interfaces: %w", err)
		}
		strays, missing := a.compareInterfaces(links)
		if len(strays) > 0 && look < strayLooks {
			<-time.After(strayPause)
			continue
		}
		for _, name := range strays {
			a.findings.Add(name, "this interface on bridge "+a.config.Bridge+" belongs to no sandbox", "remove it by ip link del")
		}
		for _, name := range slices.Sorted(maps.Keys(missing)) {
			a.findings.Add(name, fmt.Sprintf("this interface of sandbox %s is not on bridge %s", missing[name], a.config.Bridge), "stop and remove the sandbox")
		}
		return nil
	}
}

// compareInterfaces returns the bridge's ports that belong to no lease, and those that are missing with their pod's id.
func (a *auditor) compareInterfaces(links []netlink.Link) (strays []string, missing map[string]string) {
	wanted := map[string]string{}
	for id, l := range a.leases {
		if len(l.Addresses) > 0 {
			wanted[hostName(id)] = id
		}
	}
	open := map[string]bool{} // those that may be there or not
	for id := range a.unsure {
		open[hostName(id)] = true
	}
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == a.config.Bridge })
	for _, l := range links {
		name := l.Attrs().Name
		if i < 0 || l.Attrs().MasterIndex != links[i].Attrs().Index || open[name] {
			continue
		}
		if wanted[name] == "" && strings.HasPrefix(name, "veth") {
			strays = append(strays, name)
		}
		delete(wanted, name)
	}
	maps.DeleteFunc(wanted, func(name, _ string) bool { return open[name] || !a.serving })
	return strays, wanted
}

// table compares the elements of the maps of host ports with the leases.
func (a *auditor) table() error {
	t := newTable(a.config.Bridge)
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	wanted, open := map[string]string{}, map[string]bool{} // sandboxes by element; those that may be missing
	for id, l := range a.leases {
		err := t.each(l, func(set *nftables.Set, elements []nftables.SetElement) error {
			for _, e := range elements {
				wanted[elementName(set, &e)] = id
				open[elementName(set, &e)] = a.unsure[id]
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list nftables tables: %w", err)
	}
	var sets []*nftables.Set
	if slices.ContainsFunc(tables, func(other *nftables.Table) bool { return other.Name == t.name }) {
		sets = []*nftables.Set{t.sets[0].any, t.sets[0].one, t.sets[0].self, t.sets[1].any, t.sets[1].one, t.sets[1].self}
	}
	for _, set := range sets {
		elements, err := c.GetSetElements(set)
		if err != nil {
			a.findings.Add("nftables table "+t.name, "set "+set.Name+" cannot be listed: "+err.Error(), remedyTable)
		}
		for _, e := range elements {
			name := elementName(set, &e)
			if wanted[name] == "" && len(a.unsure) == 0 {
				a.findings.Add("nftables table "+t.name, "element "+name+" belongs to no sandbox", remedyTable)
			}
			delete(wanted, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		if !open[name] && a.serving {
			a.findings.Add("nftables table "+t.name, fmt.Sprintf("element %s of sandbox %s is not there", name, wanted[name]), remedyTable)
		}
	}
	return nil
}

func elementName(set *nftables.Set, e *nftables.SetElement) string {
	return fmt.Sprintf("%s %x %x", set.Name, e.Key, bytes.TrimRight(e.Val, "\x00"))
}
