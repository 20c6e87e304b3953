package builtin

import (
	"fmt"
	"net/netip"
	"slices"
)

// Lease is what one pod has of the network. It is kept as JSON.
type Lease struct {
	Addresses []netip.Prefix `json:"addresses,omitempty"` // of the pod with the length of the subnet; the primary one first
	Ports     []Port         `json:"ports,omitempty"`
	// Targets are the pod's addresses where another network gave them; the
	// lease is then for host ports only.
	Targets []netip.Addr `json:"targets,omitempty"`
}

// Port is a port of the host that leads to one of the pod.
type Port struct {
	Protocol string     `json:"protocol"` // tcp, udp or sctp
	HostIP   netip.Addr `json:"hostIP"`   // invalid or unspecified: every address of the host of that family, or of both
	Host     uint16     `json:"host"`
	Pod      uint16     `json:"pod"`
}

// targets are the addresses that host ports lead to.
func (l *Lease) targets() []netip.Addr {
	out := slices.Clone(l.Targets)
	for _, p := range l.Addresses {
		out = append(out, p.Addr())
	}
	return out
}

// portKey is what can be taken once.
type portKey struct {
	protocol string
	ip       netip.Addr // unspecified: every one of that family
	port     uint16
}

func (k portKey) String() string {
	return netip.AddrPortFrom(k.ip, k.port).String() + "/" + k.protocol
}

// forward is one host port of one family.
type forward struct {
	portKey
	to netip.AddrPort
}

// forwards are the lease's host ports by family, for the families that the
// pod has an address of.
func (l *Lease) forwards() []forward {
	var out []forward
	for _, p := range l.Ports {
		seen := map[bool]bool{}
		for _, to := range l.targets() {
			ip := p.HostIP
			if seen[to.Is4()] || ip.IsValid() && !ip.IsUnspecified() && ip.Is4() != to.Is4() {
				continue
			}
			if ip.IsValid() && ip.IsUnspecified() && ip.Is4() != to.Is4() && ip.Is4() {
				continue // 0.0.0.0 is IPv4's; :: takes both, as a socket's does
			}
			if !ip.IsValid() || ip.IsUnspecified() {
				ip = netip.IPv6Unspecified()
				if to.Is4() {
					ip = netip.IPv4Unspecified()
				}
			}
			seen[to.Is4()] = true
			out = append(out, forward{portKey{p.Protocol, ip, p.Host}, netip.AddrPortFrom(to, p.Pod)})
		}
	}
	return out
}

// check refuses what the kernel's table cannot hold.
func (p *Port) check() error {
	if protocolNumber(p.Protocol) == 0 || p.Host == 0 || p.Pod == 0 {
		return fmt.Errorf("host port %d to %d/%s: %w", p.Host, p.Pod, p.Protocol, ErrInvalid)
	}
	return nil
}
