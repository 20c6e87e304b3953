package builtin

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const patience = 10 * time.Second

// host is a network namespace that plays the node; the test's thread is in it.
type host struct {
	t    *testing.T
	b    *Bridge
	ns   netns.NsHandle
	pods map[string]netns.NsHandle
}

func testConfig() Config {
	return Config{Bridge: "crit0", Owner: "test", MTU: 1400, Subnets: []netip.Prefix{
		netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("fd77::/64"),
	}}
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test and its namespace
	h := &host{t: t, ns: newNamespace(t), pods: map[string]netns.NsHandle{}}
	var err error
	if h.b, err = New(testConfig()); err != nil {
		t.Fatal(err)
	}
	return h
}

// newNamespace makes a network namespace, with lo up, and leaves the thread in it.
func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// in runs f in a namespace and comes back.
func (h *host) in(ns netns.NsHandle, f func() error) error {
	if err := netns.Set(ns); err != nil {
		return err
	}
	err := f()
	if err := netns.Set(h.ns); err != nil {
		h.t.Fatal(err)
	}
	return err
}

// pod wires a new namespace.
func (h *host) pod(id string, ports ...Port) *Lease {
	h.t.Helper()
	ns := newNamespace(h.t)
	if err := netns.Set(h.ns); err != nil {
		h.t.Fatal(err)
	}
	l, err := h.b.Lease(id, ports)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.b.Wire(context.Background(), id, fmt.Sprintf("/proc/self/fd/%d", int(ns)), "eth0", l, Rates{}); err != nil {
		h.t.Fatal(err)
	}
	h.pods[id] = ns
	return l
}

// serve answers each TCP connection and UDP packet in a namespace with the
// address it came from.
func (h *host) serve(ns netns.NsHandle, port int) {
	h.t.Helper()
	var l net.Listener
	var p net.PacketConn
	err := h.in(ns, func() (err error) {
		if l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		p, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close(); p.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, c.RemoteAddr())
			c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = p.WriteTo([]byte(from.String()), from)
		}
	}()
}

// ask returns the address that the server saw.
func (h *host) ask(ns netns.NsHandle, network, address string) (seen string, err error) {
	err = h.in(ns, func() error {
		c, err := net.DialTimeout(network, address, patience)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if network == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			buf := make([]byte, 64)
			n, err := c.Read(buf)
			seen = string(buf[:n])
			return err
		}
		data, err := io.ReadAll(c)
		seen = string(data)
		return err
	})
	seen, _, _ = net.SplitHostPort(seen)
	return seen, err
}

func (h *host) want(from, network, address, seen string) {
	h.t.Helper()
	ns := h.ns
	if from != "host" {
		ns = h.pods[from]
	}
	got, err := h.ask(ns, network, address)
	if err != nil || (seen != "" && got != seen) {
		h.t.Errorf("from %s to %s %s: seen as %q, %v, want %q", from, network, address, got, err, seen)
	}
}
