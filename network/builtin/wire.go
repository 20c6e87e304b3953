package builtin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// Wire connects the pod's network namespace, pinned at path, to the bridge:
// an interface name with the lease's addresses and default routes, and the
// host ports. If it fails the interface goes with the namespace and the ports
// with Release.
func (b *Bridge) Wire(_ context.Context, id, path, name string, l *Lease, rates Rates) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.wire(id, path, name, l, rates)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		// Somebody has removed the bridge.
		b.index = 0
		err = b.wire(id, path, name, l, rates)
	}
	if err != nil {
		return err
	}
	fault.Point("veth.shaped")
	return b.open(l)
}

func (b *Bridge) wire(id, path, name string, l *Lease, rates Rates) error {
	if err := b.ready(); err != nil {
		return err
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer ns.Close()
	if err := b.addVeth(hostName(id), name, ns, l); err != nil {
		return err
	}
	fault.Point("veth.up")
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	defer h.Close()
	if err := b.configure(h, name, l); err != nil {
		return err
	}
	fault.Point("veth.configured")
	return rates.apply(h, name, hostName(id))
}

// Check tells what is missing of a pod's attachment on the host.
func (b *Bridge) Check(id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.leases[id] == nil {
		return fmt.Errorf("sandbox %s has no lease: %w", id, ErrInvalid)
	}
	bridge, err := b.find()
	if err != nil {
		return err
	}
	if bridge == nil {
		return fmt.Errorf("bridge %s is gone: %w", b.config.Bridge, unix.ENODEV)
	}
	link, err := netlink.LinkByName(hostName(id))
	if err != nil {
		return fmt.Errorf("look for interface %s: %w", hostName(id), err)
	}
	if at := link.Attrs(); at.MasterIndex != bridge.Attrs().Index || at.Flags&net.FlagUp == 0 {
		return fmt.Errorf("interface %s is down or no port of bridge %s: %w", at.Name, b.config.Bridge, unix.ENOLINK)
	}
	return nil
}

// hostName is the name of the pod's interface on the host.
func hostName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return "veth" + hex.EncodeToString(sum[:5])
}

// addVeth makes the pair: one end is in the pod at once, the other is a port
// of the bridge. A pod can reach itself through its host port (hairpin).
func (b *Bridge) addVeth(host, name string, ns netns.NsHandle, l *Lease) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = host
	bridge, err := netlink.LinkByIndex(b.index)
	if err != nil {
		return errors.Join(fmt.Errorf("look for bridge %s: %w", b.config.Bridge, err), unix.ENODEV)
	}
	attrs.MTU = bridge.Attrs().MTU
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = name, netlink.NsFd(int(ns))
	veth.PeerMTU = uint32(attrs.MTU) //nolint:gosec // an MTU is small and positive
	veth.PeerHardwareAddr = hardwareAddr(l.Addresses[0].Addr())
	err = netlink.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		// Of an attempt that was cut off, in a namespace that is about to go.
		if old, findErr := netlink.LinkByName(host); findErr == nil {
			if err = netlink.LinkDel(old); err == nil {
				err = netlink.LinkAdd(veth)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("make interface %s and its peer in the pod: %w", host, err)
	}
	fault.Point("veth.made")
	if veth.Index == 0 {
		link, err := netlink.LinkByName(host)
		if err != nil {
			return fmt.Errorf("look for interface %s: %w", host, err)
		}
		veth.Index = link.Attrs().Index
	}
	if err := netlink.LinkSetMasterByIndex(veth, b.index); err != nil {
		return fmt.Errorf("make %s a port of bridge %s: %w", host, b.config.Bridge, err)
	}
	if err := netlink.LinkSetHairpin(veth, true); err != nil {
		return fmt.Errorf("let %s send back what it received: %w", host, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fmt.Errorf("bring up %s: %w", host, err)
	}
	return nil
}

// configure gives the pod's interface its addresses and routes.
func (b *Bridge) configure(h *netlink.Handle, name string, l *Lease) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look for %s in the pod: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s in the pod: %w", name, err)
	}
	for _, p := range l.Addresses {
		// No pod is ready before its address can be used.
		addr := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("give %s in the pod the address %s: %w", name, p, err)
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere(p.Addr()), Gw: gatewayOf(p.Masked()).AsSlice()}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("add the pod's default route by %s: %w", route.Gw, err)
		}
	}
	return nil
}

func everywhere(a netip.Addr) *net.IPNet {
	if a.Is4() {
		return ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	}
	return ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
}
