package builtin

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// Config says how the network looks.
type Config struct {
	Bridge  string         // name of the bridge, at most 15 bytes
	Owner   string         // who may use the bridge: written to its alias
	Subnets []netip.Prefix // at most one of each family, the primary one first
	MTU     int            // 0: that of the interface with the default route
}

// Bridge is the network. Its methods may be called at once.
type Bridge struct {
	config Config

	mu     sync.Mutex
	ipams  []*ipam
	leases map[string]*Lease
	ports  map[portKey]string // ids
	table  *table             // nil until the first lease needs it
	index  int                // of the link; 0: to be looked up or made
}

// New checks the configuration. Nothing is made before the first pod.
func New(config Config) (*Bridge, error) {
	b := &Bridge{config: config, leases: map[string]*Lease{}, ports: map[portKey]string{}}
	if config.Bridge == "" || len(config.Bridge) >= unix.IFNAMSIZ || strings.ContainsAny(config.Bridge, "/ :\x00") {
		return nil, fmt.Errorf("bridge %q: %w: it cannot be the name of an interface", config.Bridge, ErrInvalid)
	}
	return b, b.setSubnets(config.Subnets)
}

// SetSubnets lets the pods to come have addresses of other subnets; those
// that run keep theirs.
func (b *Bridge) SetSubnets(subnets []netip.Prefix) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.setSubnets(subnets); err != nil {
		return err
	}
	b.index = 0 // the bridge lacks the new gateways
	if b.table == nil {
		return nil
	}
	return b.rebuild()
}

func (b *Bridge) setSubnets(subnets []netip.Prefix) error {
	if err := CheckSubnets(subnets); err != nil {
		return err
	}
	b.config.Subnets = slices.Clone(subnets)
	old := b.ipams
	b.ipams = nil
	for _, p := range subnets {
		if i := slices.IndexFunc(old, func(a *ipam) bool { return a.subnet == p }); i >= 0 {
			b.ipams = append(b.ipams, old[i])
			continue
		}
		a := newIPAM(p)
		for id, l := range b.leases {
			for _, q := range l.Addresses {
				if p.Contains(q.Addr()) {
					a.restore(id, q.Addr())
				}
			}
		}
		b.ipams = append(b.ipams, a)
	}
	return nil
}

// Subnets returns what pods get addresses of.
func (b *Bridge) Subnets() []netip.Prefix {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.config.Subnets)
}

// Name is the bridge's.
func (b *Bridge) Name() string { return b.config.Bridge }

// Lease chooses addresses for a pod, and takes its host ports.
func (b *Bridge) Lease(id string, ports []Port) (*Lease, error) {
	return b.lease(id, &Lease{Ports: ports})
}

// LeasePorts takes host ports for a pod with addresses from elsewhere.
func (b *Bridge) LeasePorts(id string, targets []netip.Addr, ports []Port) (*Lease, error) {
	return b.lease(id, &Lease{Ports: ports, Targets: targets})
}

func (b *Bridge) lease(id string, l *Lease) (*Lease, error) {
	for i := range l.Ports {
		if err := l.Ports[i].check(); err != nil {
			return nil, err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(l.Targets) == 0 {
		for _, a := range b.ipams {
			addr, err := a.take(id)
			if err != nil {
				b.free(id, l)
				return nil, err
			}
			l.Addresses = append(l.Addresses, addr)
		}
	}
	for _, f := range l.forwards() {
		if owner, ok := b.conflict(f.portKey); ok {
			b.free(id, l)
			return nil, fmt.Errorf("host port %s: %w by sandbox %s", f.portKey, ErrTaken, owner)
		}
		b.ports[f.portKey] = id
	}
	b.leases[id] = l
	return l, nil
}

// conflict looks for who has the port on that address, or on all of them.
func (b *Bridge) conflict(k portKey) (string, bool) {
	if owner, ok := b.ports[k]; ok {
		return owner, true
	}
	for other, owner := range b.ports {
		if other.protocol == k.protocol && other.port == k.port && other.ip.Is4() == k.ip.Is4() &&
			(other.ip.IsUnspecified() || k.ip.IsUnspecified()) {
			return owner, true
		}
	}
	return "", false
}

// Restore takes over a lease of an earlier daemon.
func (b *Bridge) Restore(id string, l *Lease) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leases[id] = l
	for _, p := range l.Addresses {
		for _, a := range b.ipams {
			if a.subnet.Contains(p.Addr()) {
				a.restore(id, p.Addr())
			}
		}
	}
	for _, f := range l.forwards() {
		b.ports[f.portKey] = id
	}
}

// Prefix returns an address with the length of its subnet.
func (b *Bridge) Prefix(a netip.Addr) netip.Prefix {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.config.Subnets {
		if p.Contains(a) {
			return netip.PrefixFrom(a, p.Bits())
		}
	}
	return netip.PrefixFrom(a, a.BitLen())
}

// Resume makes the table anew for the leases that were restored: what the last
// daemon had in it, or somebody has done to it since, is not known.
func (b *Bridge) Resume() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.leases {
		if len(l.Ports) > 0 {
			return b.rebuild()
		}
	}
	return nil
}

// free gives back addresses and ports. The caller holds mu.
func (b *Bridge) free(id string, l *Lease) {
	for _, p := range l.Addresses {
		for _, a := range b.ipams {
			a.release(id, p.Addr())
		}
	}
	for _, f := range l.forwards() {
		if b.ports[f.portKey] == id {
			delete(b.ports, f.portKey)
		}
	}
	delete(b.leases, id)
}

// Release closes the pod's host ports and frees what it has; its interface
// goes with its namespace. A pod without a lease is no error.
func (b *Bridge) Release(id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.leases[id]
	if l == nil {
		return nil
	}
	if len(l.Ports) > 0 { // after a restart the table is that of the last daemon, and made anew
		delete(b.leases, id) // a rebuild leaves it out
		if err := b.change(func(t *table) error { return t.remove(l) }); err != nil {
			b.leases[id] = l
			return fmt.Errorf("close host ports: %w", err)
		}
	}
	b.free(id, l)
	return nil
}

// Leases tells how many pods have one.
func (b *Bridge) Leases() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.leases)
}

// Close removes the bridge and the table if no pod needs them.
func (b *Bridge) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.leases) > 0 {
		return nil
	}
	// An earlier daemon may have made the table and lost its last pod after that.
	errs := []error{newTable(b.config.Bridge).drop()}
	b.table = nil
	fault.Point("close.table.dropped")
	if link, err := b.find(); err == nil && link != nil {
		errs = append(errs, netlink.LinkDel(link))
	}
	b.index = 0
	return errors.Join(errs...)
}

// find returns the bridge if it is there, nil if not.
func (b *Bridge) find() (netlink.Link, error) {
	link, err := netlink.LinkByName(b.config.Bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil //nolint:nilnil // there is no such link
	}
	if err != nil {
		return nil, fmt.Errorf("look for bridge %s: %w", b.config.Bridge, err)
	}
	if b.halfMade(link) {
		if err := netlink.LinkSetAlias(link, b.config.Owner); err != nil {
			return nil, fmt.Errorf("make bridge %s: %w", b.config.Bridge, err)
		}
		return link, nil
	}
	if link.Type() != "bridge" || link.Attrs().Alias != b.config.Owner {
		return nil, fmt.Errorf("bridge %s: %w: it is a %s of %q; choose another name by network.bridge, or remove it",
			b.config.Bridge, ErrTaken, link.Type(), link.Attrs().Alias)
	}
	return link, nil
}

// halfMade tells whether a daemon was killed between the making of the bridge
// and of its alias: nobody has brought it up, and its address is the one that
// make gives it.
func (b *Bridge) halfMade(link netlink.Link) bool {
	a := link.Attrs()
	return link.Type() == "bridge" && a.Alias == "" && a.Flags&net.FlagUp == 0 &&
		a.HardwareAddr.String() == hardwareAddr(gatewayOf(b.config.Subnets[0])).String()
}

// ready sees that the bridge is there. The caller holds mu.
func (b *Bridge) ready() error {
	if b.index != 0 {
		return nil
	}
	link, err := b.find()
	if err != nil {
		return err
	}
	if link == nil {
		if link, err = b.make(); err != nil {
			return err
		}
	}
	for _, p := range b.config.Subnets {
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gatewayOf(p), p.Bits())), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("give bridge %s the address %s: %w", b.config.Bridge, addr.IPNet, err)
		}
	}
	fault.Point("bridge.addressed")
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up bridge %s: %w", b.config.Bridge, err)
	}
	if err := b.setSysctls(); err != nil {
		return err
	}
	b.index = link.Attrs().Index
	return nil
}

func (b *Bridge) make() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = b.config.Bridge, b.config.MTU
	if attrs.MTU == 0 {
		attrs.MTU = uplinkMTU()
	}
	// A bridge without one takes the lowest of its ports', which changes with them.
	attrs.HardwareAddr = hardwareAddr(gatewayOf(b.config.Subnets[0]))
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", b.config.Bridge, err)
	}
	fault.Point("bridge.made")
	link, err := netlink.LinkByName(b.config.Bridge)
	if err == nil {
		err = netlink.LinkSetAlias(link, b.config.Owner)
	}
	if err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", b.config.Bridge, err)
	}
	return link, nil
}

// setSysctls lets the host route for the pods, and clients on the host reach
// host ports by 127.0.0.1.
func (b *Bridge) setSysctls() error {
	conf := "/proc/sys/net/%s/conf/" + b.config.Bridge
	values := [][2]string{}
	for _, p := range b.config.Subnets {
		if p.Addr().Is4() {
			values = append(values, [2]string{"/proc/sys/net/ipv4/ip_forward", "1"},
				[2]string{fmt.Sprintf(conf, "ipv4") + "/route_localnet", "1"})
			continue
		}
		values = append(values, [2]string{"/proc/sys/net/ipv6/conf/all/forwarding", "1"},
			[2]string{fmt.Sprintf(conf, "ipv6") + "/accept_ra", "0"})
	}
	for _, v := range values {
		if err := setSysctl(v[0], v[1]); err != nil {
			return err
		}
	}
	return nil
}

func setSysctl(path, value string) error {
	old, err := os.ReadFile(filepath.Clean(path))
	if err == nil && strings.TrimSpace(string(old)) != value {
		err = os.WriteFile(path, []byte(value), 0)
	}
	if err != nil {
		return fmt.Errorf("set %s to %s: %w", strings.TrimPrefix(path, "/proc/sys/"), value, err)
	}
	return nil
}

// uplinkMTU is that of the way out, or Ethernet's.
func uplinkMTU() int {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err == nil {
		for _, r := range routes {
			if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
				continue
			}
			if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
				return link.Attrs().MTU
			}
		}
	}
	return 1500
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// hardwareAddr follows from the address: whoever remembers the one of an
// earlier pod at the same address remembers the right one.
func hardwareAddr(a netip.Addr) net.HardwareAddr {
	raw := a.AsSlice()
	return append(net.HardwareAddr{0x0a, 0x58}, raw[len(raw)-4:]...)
}
