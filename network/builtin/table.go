package builtin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// The registers of nftables: 32 bit each, keys and values of several fields
// lie in neighbouring ones, as the kernel pads each field to 4 bytes.
const (
	reg0 = unix.NFT_REG32_00
	reg1 = unix.NFT_REG32_00 + 1
	reg2 = unix.NFT_REG32_00 + 2
	reg4 = unix.NFT_REG32_00 + 4
	reg5 = unix.NFT_REG32_00 + 5

	dstNAT = 1 << 5 // IPS_DST_NAT: the destination of the connection was changed
)

// table is the one table of nftables that is ours. All rules are static; a pod
// is some elements of the maps, so that each change is one transaction.
type table struct {
	name  string
	table *nftables.Table
	sets  [2]familySets // of IPv4 and IPv6
}

type familySets struct {
	any  *nftables.Set // protocol . port => pod . port
	one  *nftables.Set // host address . protocol . port => pod . port
	self *nftables.Set // pod . pod, those with host ports
}

func protocolNumber(name string) byte {
	return map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}[name]
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func newTable(bridge string) *table {
	name := "cri-runtime-" + bridge
	t := &table{name: name, table: &nftables.Table{Name: name, Family: nftables.TableFamilyINet}}
	for i, addr := range []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr} {
		suffix := []string{"4", "6"}[i]
		target := nftables.MustConcatSetType(addr, nftables.TypeInetService)
		t.sets[i] = familySets{
			any: &nftables.Set{
				Table: t.table, Name: "ports" + suffix, IsMap: true, Concatenation: true,
				KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService), DataType: target,
			},
			one: &nftables.Set{
				Table: t.table, Name: "address-ports" + suffix, IsMap: true, Concatenation: true,
				KeyType: nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService), DataType: target,
			},
			self: &nftables.Set{
				Table: t.table, Name: "self" + suffix, Concatenation: true,
				KeyType: nftables.MustConcatSetType(addr, addr),
			},
		}
	}
	return t
}

// rebuild makes the table anew from the leases, in one transaction. The
// caller holds mu.
func (b *Bridge) rebuild() error {
	t := newTable(b.config.Bridge)
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	// Deleting what is not there fails, so it is made first.
	c.AddTable(t.table)
	c.DelTable(t.table)
	c.AddTable(t.table)
	for i := range t.sets {
		for _, s := range []*nftables.Set{t.sets[i].any, t.sets[i].one, t.sets[i].self} {
			if err := c.AddSet(s, nil); err != nil {
				return fmt.Errorf("make set %s: %w", s.Name, err)
			}
		}
	}
	t.addChains(c, b.config.Bridge, b.config.Subnets)
	for _, l := range b.leases {
		if err := t.each(l, c.SetAddElements); err != nil {
			return err
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make nftables table %s (does the kernel have nf_tables with nat?): %w", t.name, err)
	}
	fault.Point("table.made")
	b.table = t
	return nil
}

// change alters the table, which is made anew if it does not exist or
// somebody else has touched it. The caller holds mu.
func (b *Bridge) change(f func(t *table) error) error {
	if b.table != nil {
		err := f(b.table)
		if err == nil || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return b.rebuild()
}

// Open opens the host ports of a lease.
func (b *Bridge) Open(l *Lease) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open(l)
}

func (b *Bridge) open(l *Lease) error {
	if b.table != nil && len(l.Ports) == 0 {
		return nil
	}
	if err := b.change(func(t *table) error { return t.add(l) }); err != nil {
		return fmt.Errorf("open host ports: %w", err)
	}
	return l.allowLocalClients()
}

// allowLocalClients lets packets from 127.0.0.1 leave for pods that another
// network has attached.
func (l *Lease) allowLocalClients() error {
	for _, a := range l.Targets {
		if len(l.Ports) == 0 || !a.Is4() {
			continue
		}
		routes, err := netlink.RouteGet(a.AsSlice())
		if err != nil || len(routes) == 0 {
			return fmt.Errorf("look for the way to %s: %w", a, err)
		}
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return fmt.Errorf("look for the way to %s: %w", a, err)
		}
		if err := setSysctl("/proc/sys/net/ipv4/conf/"+link.Attrs().Name+"/route_localnet", "1"); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) add(l *Lease) error {
	return t.commit(func(c *nftables.Conn) error { return t.each(l, c.SetAddElements) })
}

func (t *table) remove(l *Lease) error {
	return t.commit(func(c *nftables.Conn) error { return t.each(l, c.SetDeleteElements) })
}

func (t *table) drop() error {
	err := t.commit(func(c *nftables.Conn) error { c.DelTable(t.table); return nil })
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (t *table) commit(f func(c *nftables.Conn) error) error {
	c, err := nftables.New()
	if err == nil {
		err = f(c)
	}
	if err == nil {
		err = c.Flush()
	}
	if err != nil {
		return fmt.Errorf("change nftables table %s: %w", t.name, err)
	}
	return nil
}

// each gives f the elements of a lease, set by set.
func (t *table) each(l *Lease, f func(*nftables.Set, []nftables.SetElement) error) error {
	selves := map[netip.Addr]bool{}
	for _, p := range l.forwards() {
		sets := &t.sets[family(p.to.Addr())]
		key := append(field([]byte{protocolNumber(p.protocol)}), field(port(p.port))...)
		set := sets.any
		if !p.ip.IsUnspecified() {
			set, key = sets.one, append(field(p.ip.AsSlice()), key...)
		}
		value := append(field(p.to.Addr().AsSlice()), field(port(p.to.Port()))...)
		if err := f(set, []nftables.SetElement{{Key: key, Val: value}}); err != nil {
			return fmt.Errorf("set %s: %w", set.Name, err)
		}
		if a := p.to.Addr(); !selves[a] {
			selves[a] = true
			self := append(field(a.AsSlice()), field(a.AsSlice())...)
			if err := f(sets.self, []nftables.SetElement{{Key: self}}); err != nil {
				return fmt.Errorf("set %s: %w", sets.self.Name, err)
			}
		}
	}
	return nil
}

func port(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

// field pads one part of a key as the kernel does.
func field(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func (t *table) addChains(c *nftables.Conn, bridge string, subnets []netip.Prefix) {
	ports := c.AddChain(&nftables.Chain{Name: "ports", Table: t.table})
	for i := range t.sets {
		c.AddRule(&nftables.Rule{Table: t.table, Chain: ports, Exprs: forwardRule(i, t.sets[i].one, true)})
		c.AddRule(&nftables.Rule{Table: t.table, Chain: ports, Exprs: forwardRule(i, t.sets[i].any, false)})
	}
	for _, hook := range []struct {
		name string
		hook *nftables.ChainHook
	}{{"prerouting", nftables.ChainHookPrerouting}, {"output", nftables.ChainHookOutput}} {
		chain := c.AddChain(&nftables.Chain{
			Name: hook.name, Table: t.table, Type: nftables.ChainTypeNAT, Hooknum: hook.hook, Priority: nftables.ChainPriorityNATDest,
		})
		c.AddRule(&nftables.Rule{Table: t.table, Chain: chain, Exprs: []expr.Any{
			&expr.Fib{Register: reg0, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
			&expr.Verdict{Kind: expr.VerdictJump, Chain: ports.Name},
		}})
	}
	t.guardLocalhost(c)
	post := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: t.table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	rule := func(exprs ...[]expr.Any) {
		var all []expr.Any
		for _, e := range exprs {
			all = append(all, e...)
		}
		c.AddRule(&nftables.Rule{Table: t.table, Chain: post, Exprs: append(all, &expr.Masq{})})
	}
	// A pod that reached itself, or a client on the host that used 127.0.0.1,
	// must get the answer from where it sent the question to.
	rule(natted(), addressIs(0, source, netip.MustParsePrefix("127.0.0.0/8")))
	for i := range t.sets {
		rule(natted(), isFamily(i), load(i, source, reg0), load(i, destination, []uint32{reg1, reg4}[i]),
			[]expr.Any{&expr.Lookup{SourceRegister: reg0, SetName: t.sets[i].self.Name, SetID: t.sets[i].self.ID}})
	}
	for _, p := range subnets {
		i := family(p.Addr())
		rule(addressIs(i, source, p), natted(), addressIs(i, destination, p))
		rule(addressIs(i, source, p), []expr.Any{
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg0},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: interfaceName(bridge)},
		}, notMulticast(i))
	}
}

// guardLocalhost drops what comes from elsewhere for 127.0.0.0/8, or says that it
// does from there. That route_localnet lets clients on the host use host ports
// would otherwise open the host's own services to every neighbour (CVE-2020-8558).
func (t *table) guardLocalhost(c *nftables.Conn) {
	guard := c.AddChain(&nftables.Chain{
		Name: "guard", Table: t.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	local := netip.MustParsePrefix("127.0.0.0/8")
	for _, s := range []side{source, destination} {
		c.AddRule(&nftables.Rule{Table: t.table, Chain: guard, Exprs: append([]expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: interfaceName("lo")},
		}, append(addressIs(0, s, local), &expr.Verdict{Kind: expr.VerdictDrop})...)})
	}
}

// forwardRule changes the destination to what the map says, if anything.
func forwardRule(i int, set *nftables.Set, withAddress bool) []expr.Any {
	out := isFamily(i)
	next := uint32(reg0)
	if withAddress {
		out = append(out, load(i, destination, reg0)...)
		next += uint32(addrLen(i) / 4)
	}
	out = append(out,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: set.Name, SetID: set.ID},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: []uint32{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}[i],
			RegAddrMin: reg0, RegProtoMin: []uint32{reg1, reg4}[i], Specified: true,
		})
	return out
}

// side is an address of a packet.
type side int

const (
	source side = iota
	destination
)

// offset is where the header has it.
func (s side) offset(i int) uint32 { return [2][2]uint32{{12, 16}, {8, 24}}[i][s] }

func addrLen(i int) int { return []int{4, 16}[i] }

func isFamily(i int) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg5},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg5, Data: []byte{[]byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}[i]}},
	}
}

func load(i int, s side, register uint32) []expr.Any {
	return []expr.Any{&expr.Payload{
		DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: s.offset(i), Len: uint32(addrLen(i)), //nolint:gosec // 4 or 16
	}}
}

func addressIs(i int, s side, p netip.Prefix) []expr.Any {
	return compare(i, s, p, expr.CmpOpEq)
}

func compare(i int, s side, p netip.Prefix, op expr.CmpOp) []expr.Any {
	n := addrLen(i)
	return append(append(isFamily(i), load(i, s, reg0)...),
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: uint32(n), Mask: ipNet(p).Mask, Xor: make([]byte, n)}, //nolint:gosec // 4 or 16
		&expr.Cmp{Op: op, Register: reg0, Data: p.Masked().Addr().AsSlice()})
}

func notMulticast(i int) []expr.Any {
	return compare(i, destination, netip.MustParsePrefix([]string{"224.0.0.0/4", "ff00::/8"}[i]), expr.CmpOpNeq)
}

func natted() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg2},
		&expr.Bitwise{SourceRegister: reg2, DestRegister: reg2, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg2, Data: make([]byte, 4)},
	}
}

func interfaceName(name string) []byte {
	out := make([]byte, unix.IFNAMSIZ)
	copy(out, name)
	return out
}
