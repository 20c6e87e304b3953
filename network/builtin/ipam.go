package builtin

import (
	"fmt"
	"net/netip"
)

// maxHosts bounds what is used of a large IPv6 subnet.
const maxHosts = 1 << 20

// ipam knows which addresses of one subnet are in use. It gives them out in a
// circle: the longer an address rests, the surer its last pod is gone from
// every cache.
type ipam struct {
	subnet netip.Prefix
	last   netip.Addr
	hosts  int                   // usable ones, without the gateway
	used   map[netip.Addr]string // ids
}

// checkSubnet accepts what has room for a gateway and a pod.
func checkSubnet(p netip.Prefix) error {
	room := p.Addr().BitLen() - p.Bits()
	switch {
	case !p.IsValid() || p != p.Masked():
		return fmt.Errorf("subnet %s: %w: it is not the address of a network", p, ErrInvalid)
	case room < 3:
		return fmt.Errorf("subnet %s: %w: it has room for less than five addresses", p, ErrInvalid)
	case p.Addr().Is4In6() || p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsUnspecified():
		return fmt.Errorf("subnet %s: %w: no pod can have such an address", p, ErrInvalid)
	}
	return nil
}

// CheckSubnets tells why pods cannot have addresses of these, or nil.
func CheckSubnets(subnets []netip.Prefix) error {
	if len(subnets) == 0 || len(subnets) > 2 || len(subnets) == 2 && subnets[0].Addr().Is4() == subnets[1].Addr().Is4() {
		return fmt.Errorf("subnets %v: %w: one, or one of IPv4 and one of IPv6", subnets, ErrInvalid)
	}
	for _, p := range subnets {
		if err := checkSubnet(p); err != nil {
			return err
		}
	}
	return nil
}

func newIPAM(p netip.Prefix) *ipam {
	room := min(p.Addr().BitLen()-p.Bits(), 21)
	// Neither the network, the gateway nor a broadcast address.
	return &ipam{subnet: p, last: gatewayOf(p), hosts: min(1<<room-3, maxHosts), used: map[netip.Addr]string{}}
}

// gatewayOf is the address of the bridge in a subnet: the first one.
func gatewayOf(p netip.Prefix) netip.Addr { return p.Addr().Next() }

// take finds a free address.
func (a *ipam) take(id string) (netip.Prefix, error) {
	for range a.hosts {
		a.last = a.last.Next()
		if !a.subnet.Contains(a.last) || !a.subnet.Contains(a.last.Next()) {
			a.last = gatewayOf(a.subnet).Next()
		}
		if a.used[a.last] == "" {
			a.used[a.last] = id
			return netip.PrefixFrom(a.last, a.subnet.Bits()), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("subnet %s: %w: %d pods have one", a.subnet, ErrExhausted, len(a.used))
}

// restore marks an address as in use. The next ones follow it.
func (a *ipam) restore(id string, addr netip.Addr) {
	a.used[addr] = id
	if a.last.Less(addr) {
		a.last = addr
	}
}

func (a *ipam) release(id string, addr netip.Addr) {
	if a.used[addr] == id {
		delete(a.used, addr)
	}
}
