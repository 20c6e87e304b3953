package builtin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func TestNetwork(t *testing.T) {
	h := newHost(t)
	a := h.pod("a", Port{Protocol: "tcp", Host: 8080, Pod: 80}, Port{Protocol: "udp", Host: 8080, Pod: 80})
	b := h.pod("b", Port{Protocol: "tcp", HostIP: netip.MustParseAddr("127.0.0.1"), Host: 9090, Pod: 80})
	if a.Addresses[0].String() != "10.77.0.2/24" || a.Addresses[1].String() != "fd77::2/64" || b.Addresses[0].String() != "10.77.0.3/24" {
		t.Errorf("addresses %v and %v", a.Addresses, b.Addresses)
	}
	h.serve(h.pods["a"], 80)
	h.serve(h.pods["b"], 80)
	for _, network := range []string{"tcp", "udp"} {
		h.want("b", network, "10.77.0.2:80", "10.77.0.3")
		h.want("b", network, "[fd77::2]:80", "fd77::3")
		h.want("host", network, "10.77.0.2:80", "10.77.0.1")
		h.want("host", network, "10.77.0.1:8080", "10.77.0.1")
		h.want("host", network, "127.0.0.1:8080", "")
		h.want("host", network, "[fd77::1]:8080", "")
		h.want("b", network, "10.77.0.1:8080", "")
		h.want("a", network, "10.77.0.1:8080", "") // itself, by its host port
		h.want("a", network, "[fd77::1]:8080", "")
	}
	h.want("host", "tcp", "127.0.0.1:9090", "")
	if seen, err := h.ask(h.ns, "tcp", "10.77.0.1:9090"); err == nil {
		t.Errorf("a port on 127.0.0.1 answers on another address, to %s", seen)
	}
	if _, err := h.b.Lease("c", []Port{{Protocol: "tcp", Host: 8080, Pod: 1}}); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "sandbox a") {
		t.Errorf("a port twice: %v", err)
	}
	if _, err := h.b.Lease("c", []Port{{Protocol: "tcp", Host: 9090, Pod: 1}}); !errors.Is(err, ErrTaken) {
		t.Errorf("a port on all addresses that is taken on one: %v", err)
	}
	if err := h.b.Release("a"); err != nil {
		t.Fatal(err)
	}
	if seen, err := h.ask(h.ns, "tcp", "10.77.0.1:8080"); err == nil {
		t.Errorf("a released port answers, to %s", seen)
	}
	if err := errors.Join(h.b.Release("b"), h.b.Release("b"), h.b.Close()); err != nil {
		t.Fatal(err)
	}
	h.wantNothing()
}

// wantNothing looks for what the network leaves in its host.
func (h *host) wantNothing() {
	h.t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "bridge" {
			h.t.Error("left behind:", l.Attrs().Name)
		}
	}
	c, err := nftables.New()
	if err != nil {
		h.t.Fatal(err)
	}
	if tables, err := c.ListTables(); err != nil || len(tables) > 0 {
		h.t.Error("tables are left:", len(tables), err)
	}
}

// TestMasquerade lets a pod speak to a machine that knows no way to the pods.
func TestMasquerade(t *testing.T) {
	h := newHost(t)
	outside := newNamespace(t)
	if err := netns.Set(h.ns); err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up0"
	up := netlink.NewVeth(attrs)
	up.PeerName, up.PeerNamespace = "out0", netlink.NsFd(int(outside))
	if err := netlink.LinkAdd(up); err != nil {
		t.Fatal(err)
	}
	configure := func(name, address string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		p := netip.MustParsePrefix(address)
		return errors.Join(netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}), netlink.LinkSetUp(link))
	}
	for _, err := range []error{
		configure("up0", "192.0.2.1/24"), configure("up0", "2001:db8::1/64"),
		h.in(outside, func() error {
			return errors.Join(configure("out0", "192.0.2.2/24"), configure("out0", "2001:db8::2/64"))
		}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	h.pod("a", Port{Protocol: "tcp", Host: 80, Pod: 80})
	h.serve(outside, 80)
	h.serve(h.pods["a"], 80)
	h.want("a", "tcp", "192.0.2.2:80", "192.0.2.1")
	h.want("a", "udp", "192.0.2.2:80", "192.0.2.1")
	h.want("a", "tcp", "[2001:db8::2]:80", "2001:db8::1")
	// Who comes from outside through a host port is seen as who it is.
	if seen, err := h.ask(outside, "tcp", "192.0.2.1:80"); err != nil || seen != "192.0.2.2" {
		t.Errorf("from outside through the host port: seen as %q, %v", seen, err)
	}
}

// TestLocalhostIsGuarded sends a frame for 127.0.0.1 from a pod to the host
// (CVE-2020-8558). Without the guard it arrives, so the test would notice.
func TestLocalhostIsGuarded(t *testing.T) {
	h := newHost(t)
	h.pod("a", Port{Protocol: "tcp", Host: 80, Pod: 80})
	service, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4444})
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	bridge, err := netlink.LinkByName("crit0")
	if err != nil {
		t.Fatal(err)
	}
	arrives := func() bool {
		t.Helper()
		for range 3 {
			if err := h.in(h.pods["a"], func() error { return sendFrame("eth0", bridge.Attrs().HardwareAddr) }); err != nil {
				t.Fatal(err)
			}
		}
		if err := service.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, _, err := service.ReadFrom(make([]byte, 16))
		return err == nil
	}
	if arrives() {
		t.Error("a pod reaches a service on the host's 127.0.0.1")
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushChain(&nftables.Chain{Name: "guard", Table: h.b.table.table})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if !arrives() {
		t.Error("the frame does not arrive without the guard either: the test shows nothing")
	}
}

// sendFrame sends a UDP packet to 127.0.0.1:4444 that no routing has seen.
func sendFrame(name string, to net.HardwareAddr) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	udp := []byte{0x10, 0, 0x11, 0x5c, 0, 9, 0, 0, 'x'} // ports, length, no checksum
	ip := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 10, 77, 0, 2, 127, 0, 0, 1}
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	sum = sum&0xffff + sum>>16
	ip[10], ip[11] = ^byte(sum>>8), ^byte(sum)
	frame := slices.Concat(to, link.HardwareAddr, []byte{8, 0}, ip, udp)
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index, Protocol: 8})
}

// TestRestore gives another Bridge, as of a daemon that was started again,
// what the first one had.
func TestRestore(t *testing.T) {
	h := newHost(t)
	a := h.pod("a", Port{Protocol: "tcp", Host: 8080, Pod: 80})
	h.serve(h.pods["a"], 80)
	var err error
	if h.b, err = New(testConfig()); err != nil {
		t.Fatal(err)
	}
	h.b.Restore("a", a)
	b := h.pod("b")
	if b.Addresses[0] == a.Addresses[0] {
		t.Error("an address twice:", b.Addresses)
	}
	h.want("b", "tcp", "10.77.0.1:8080", "")
	// Somebody flushes all rules and removes the bridge.
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	h.pod("c", Port{Protocol: "tcp", Host: 8081, Pod: 80})
	h.want("b", "tcp", "10.77.0.1:8080", "")
	link, err := netlink.LinkByName("crit0")
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.pod("d")
	h.serve(h.pods["c"], 80)
	if err := h.b.Close(); err != nil || h.b.Leases() != 4 {
		t.Error("close with pods:", err, h.b.Leases())
	}
}

// A bridge that a daemon was killed in the making of is ours; one that is up is not.
func TestHalfMadeBridge(t *testing.T) {
	h := newHost(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "crit0", hardwareAddr(gatewayOf(testConfig().Subnets[0]))
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := errors.Join(netlink.LinkAdd(link), netlink.LinkSetUp(link)); err != nil {
		t.Fatal(err)
	}
	if err := h.b.ready(); !errors.Is(err, ErrTaken) {
		t.Errorf("a bridge that is up: %v", err)
	}
	if err := errors.Join(netlink.LinkSetDown(link), h.b.ready()); err != nil {
		t.Errorf("a bridge that is half made: %v", err)
	}
}

// A pod that goes before any came to a new daemon takes its host ports along.
func TestReleaseAfterRestart(t *testing.T) {
	h := newHost(t)
	a := h.pod("a", Port{Protocol: "tcp", Host: 8080, Pod: 80})
	h.pod("b")
	h.serve(h.pods["a"], 80)
	h.want("b", "tcp", "10.77.0.1:8080", "")
	var err error
	if h.b, err = New(testConfig()); err != nil {
		t.Fatal(err)
	}
	h.b.Restore("a", a)
	if err := h.b.Release("a"); err != nil {
		t.Fatal(err)
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	sets, err := c.GetSets(newTable("crit0").table)
	if err != nil || len(sets) == 0 {
		t.Fatal(sets, err)
	}
	for _, set := range sets {
		if elements, err := c.GetSetElements(set); err != nil || len(elements) > 0 {
			t.Errorf("set %s has %v (%v)", set.Name, elements, err)
		}
	}
}

func TestForeignBridge(t *testing.T) {
	h := newHost(t)
	config := testConfig()
	config.Owner = "somebody else"
	other, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.ready(); err != nil {
		t.Fatal(err)
	}
	if err := h.b.ready(); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "network.bridge") {
		t.Errorf("somebody else's bridge: %v", err)
	}
	if err := h.b.Close(); err != nil {
		t.Error(err)
	}
	if link, err := netlink.LinkByName("crit0"); err != nil {
		t.Error("somebody else's bridge was removed:", link, err)
	}
}

func TestShape(t *testing.T) {
	h := newHost(t)
	ns := newNamespace(t)
	if err := netns.Set(h.ns); err != nil {
		t.Fatal(err)
	}
	l, err := h.b.Lease("a", nil)
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", int(ns))
	if err := h.b.Wire(context.Background(), "a", path, "eth0", l, Rates{Ingress: 8e6, Egress: 16e6}); err != nil {
		t.Fatal(err)
	}
	rate := func(name string) uint64 {
		link, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		list, err := netlink.QdiscList(link)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range list {
			if tbf, ok := q.(*netlink.Tbf); ok {
				return tbf.Rate
			}
		}
		return 0
	}
	if got := rate(hostName("a")); got != 1e6 {
		t.Errorf("ingress: %d bytes/s", got)
	}
	if err := h.in(ns, func() error {
		if got := rate("eth0"); got != 2e6 {
			return fmt.Errorf("egress: %d bytes/s", got)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestIPAM(t *testing.T) {
	a := newIPAM(netip.MustParsePrefix("192.0.2.0/29"))
	var got []string
	for i := range 5 {
		p, err := a.take(fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p.String())
	}
	want := []string{"192.0.2.2/29", "192.0.2.3/29", "192.0.2.4/29", "192.0.2.5/29", "192.0.2.6/29"}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if p, err := a.take("more"); !errors.Is(err, ErrExhausted) {
		t.Errorf("a full subnet gives %v, %v", p, err)
	}
	a.release("3", netip.MustParseAddr("192.0.2.4")) // not its own
	a.release("1", netip.MustParseAddr("192.0.2.3"))
	if p, err := a.take("again"); err != nil || p.Addr().String() != "192.0.2.3" {
		t.Errorf("the one that is free: %v, %v", p, err)
	}
	b := newIPAM(netip.MustParsePrefix("192.0.2.0/29"))
	b.restore("x", netip.MustParseAddr("192.0.2.2"))
	b.release("x", netip.MustParseAddr("192.0.2.2"))
	if p, err := b.take("y"); err != nil || p.Addr().String() != "192.0.2.3" {
		t.Errorf("the one that was just freed rests: %v, %v", p, err)
	}
}

func TestSubnets(t *testing.T) {
	for text, good := range map[string]bool{
		"10.0.0.0/24": true, "fd00::/64": true, "10.0.0.0/30": false, "10.0.0.1/24": false,
		"127.0.0.0/8": false, "224.0.0.0/8": false, "0.0.0.0/0": false, "::ffff:10.0.0.0/104": false,
	} {
		c := testConfig()
		p, err := netip.ParsePrefix(text)
		if err != nil {
			t.Fatal(err)
		}
		c.Subnets = []netip.Prefix{p}
		if _, err := New(c); (err == nil) != good {
			t.Errorf("%s: %v", text, err)
		}
	}
	c := testConfig()
	c.Subnets[1] = netip.MustParsePrefix("10.9.0.0/24")
	if _, err := New(c); !errors.Is(err, ErrInvalid) {
		t.Errorf("two of one family: %v", err)
	}
	for _, name := range []string{"", "a/b", "sixteen-bytes-xx"} {
		c := testConfig()
		c.Bridge = name
		if _, err := New(c); !errors.Is(err, ErrInvalid) {
			t.Errorf("bridge %q: %v", name, err)
		}
	}
}

func TestSetSubnets(t *testing.T) {
	h := newHost(t)
	a := h.pod("a")
	if err := h.b.SetSubnets([]netip.Prefix{netip.MustParsePrefix("10.78.0.0/24")}); err != nil {
		t.Fatal(err)
	}
	b := h.pod("b")
	if len(b.Addresses) != 1 || b.Addresses[0].String() != "10.78.0.2/24" {
		t.Errorf("addresses %v", b.Addresses)
	}
	h.serve(h.pods["a"], 80)
	h.want("b", "tcp", a.Addresses[0].Addr().String()+":80", "")
}
