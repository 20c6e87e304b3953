package doctor

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"net/netip"
	"os"
	"path"
	"strings"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/network"
)

func (e *exam) networkModules() string {
	if text, _ := e.text("/proc/sys/kernel/osrelease"); text == "" {
		return "not known without /proc"
	}
	for _, m := range []struct{ name, sign, option, cost string }{
		{"bridge", "", "BRIDGE", "neither the built-in network nor the plugin bridge can be used"},
		{"veth", "", "VETH", "pods cannot be connected"},
		{"nf_tables", "", "NF_TABLES", "no host ports and no masquerade in the built-in network, none with new iptables"},
		{"nf_conntrack", "/proc/sys/net/netfilter/nf_conntrack_max", "NF_CONNTRACK", "no host ports, no masquerade, no services"},
	} {
		if e.module(m.name) || m.sign != "" && e.exists(m.sign) || e.compiled(m.option) {
			continue
		}
		e.warn("the kernel does not show "+m.name, m.cost+", unless it is built in without a trace", "modprobe "+m.name+", or a kernel with CONFIG_"+m.option)
	}
	return "bridge, veth, nf_tables and nf_conntrack are there"
}

// compiled tells whether the kernel says that it has an option: not all keep the list.
func (e *exam) compiled(option string) bool {
	release, _ := e.text("/proc/sys/kernel/osrelease")
	for _, line := range e.lines("/boot/config-" + path.Base(release)) {
		if line == "CONFIG_"+option+"=y" || line == "CONFIG_"+option+"=m" {
			return true
		}
	}
	symbols := map[string]string{"BRIDGE": "br_add_bridge", "VETH": "veth_setup", "NF_TABLES": "nft_register_chain_type", "NF_CONNTRACK": "nf_conntrack_in"}
	return e.symbol(symbols[option])
}

func (e *exam) forwarding() string {
	builtin := e.Network.Fallback && e.inspect().File == ""
	for _, s := range []struct{ key, family string }{{"net/ipv4/ip_forward", "IPv4"}, {"net/ipv6/conf/all/forwarding", "IPv6"}} {
		n, ok := e.number("/proc/sys/" + s.key)
		if !ok || n != 0 || builtin { // the built-in network switches it on
			continue
		}
		key := strings.ReplaceAll(s.key, "/", ".")
		e.warn(key+" is 0", s.family+" of pods does not leave the node, unless a plugin switches it on; kubeadm refuses the node", "sysctl -w "+key+"=1, and the same in /etc/sysctl.d")
	}
	if builtin {
		return "the built-in network switches it on"
	}
	return "on"
}

// bridgeFilter: packets between two pods of a bridge must pass the rules of
// services, unless the proxy or the plugin does without.
func (e *exam) bridgeFilter() string {
	i := e.inspect()
	if len(i.Bridges) == 0 {
		return "no plugin makes a bridge"
	}
	const cost = "a pod that asks a service whose pod is on the same bridge gets no answer, with kube-proxy"
	n, ok := e.number("/proc/sys/net/bridge/bridge-nf-call-iptables")
	switch {
	case !ok:
		e.warn("br_netfilter is not loaded, and "+i.File+" makes a bridge", cost, "modprobe br_netfilter, and its name in /etc/modules-load.d/cri-runtime.conf")
	case n == 0:
		e.warn("net.bridge.bridge-nf-call-iptables is 0, and "+i.File+" makes a bridge", cost, "sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1")
	}
	return "packets on bridges pass the rules"
}

func (e *exam) reversePath() string {
	if n, ok := e.number("/proc/sys/net/ipv4/conf/all/rp_filter"); ok && n == 1 {
		e.warn("net.ipv4.conf.all.rp_filter is 1", "with plugins that route by policy (several interfaces, Calico, Cilium) packets of pods are dropped without a trace",
			"sysctl -w net.ipv4.conf.all.rp_filter=2 if the plugin says so")
	}
	if n, ok := e.number("/proc/sys/net/ipv4/conf/all/route_localnet"); ok && n == 1 {
		e.warn("net.ipv4.conf.all.route_localnet is 1", "neighbours on the network reach services that listen on 127.0.0.1, unless a rule stops them (CVE-2020-8558)",
			"sysctl -w net.ipv4.conf.all.route_localnet=0: the built-in network sets it on the interfaces that need it, with such a rule")
	}
	return "neither strict nor open to 127.0.0.0/8"
}

func (e *exam) inspect() *network.Inspection {
	bin := make([]string, len(e.Network.BinDirs))
	for i, dir := range e.Network.BinDirs {
		bin[i] = e.path(dir)
	}
	return network.Inspect(e.path(e.Network.ConfDir), bin)
}

func (e *exam) cni() string {
	i := e.inspect()
	if i.Problem != nil {
		e.fail(i.Problem.Error(), "the configuration of networks is not known", "make it a directory that root can read")
	}
	for _, err := range i.Refused {
		e.warn(err.Error(), "the file is not used; the next valid one is, or none", "correct it or move it away")
	}
	if i.File == "" {
		if !e.Network.Fallback {
			e.fail("no configuration in "+e.Network.ConfDir+", and the built-in network is off", "the node is not ready: no pod but those of the host's network starts",
				"put a .conflist there (deploy/cni has one), or set network.builtin = true")
		}
		return "none: pods get the built-in network"
	}
	if len(i.Unused) > 0 {
		e.warn(fmt.Sprintf("%s is used, not %s", i.File, strings.Join(i.Unused, ", ")), "who wrote the others (a plugin's installer, another runtime) may wait for pods that never come",
			"move away those that are not wanted; the first name in order wins")
	}
	return i.File + ", network " + i.Name
}

func (e *exam) cniPlugins() string {
	i := e.inspect()
	for _, name := range i.Missing {
		e.fail(fmt.Sprintf("%s runs the plugin %s, which is in none of %s", i.File, name, strings.Join(e.Network.BinDirs, ", ")), "no pod but those of the host's network starts",
			"install it there (the package containernetworking-plugins has the usual ones, in /usr/lib/cni), or name its directory in network.bin_dirs")
	}
	if i.File == "" {
		return "none is needed"
	}
	return strings.Join(i.Plugins, ", ")
}

// route is one of the main table that is no default route.
type route struct {
	device string
	to     netip.Prefix
}

func (e *exam) routes() (list []route) {
	for _, line := range e.lines("/proc/net/route") {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		to, err := hex.DecodeString(f[1])
		mask, err2 := hex.DecodeString(f[7])
		if err != nil || err2 != nil || len(to) != 4 || len(mask) != 4 { // the heading
			continue
		}
		// The kernel prints the bytes of an address as a number of the machine.
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], binary.LittleEndian.Uint32(to))
		ones := bits.OnesCount32(binary.LittleEndian.Uint32(mask))
		if ones > 0 {
			list = append(list, route{f[0], netip.PrefixFrom(netip.AddrFrom4(a), ones)})
		}
	}
	return list
}

// subnets looks whether addresses of pods are others' already.
func (e *exam) subnets() string {
	want := map[string][]netip.Prefix{}
	i := e.inspect()
	for _, b := range i.Bridges {
		for _, text := range b.Subnets {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				e.warn(fmt.Sprintf("%s: the subnet %q is none", i.File, text), "no pod gets an address", "write it as 10.1.0.0/16")
				continue
			}
			want[b.Name] = append(want[b.Name], p)
		}
	}
	if i.File == "" && e.Network.Fallback {
		want[e.Network.Builtin.Bridge] = e.Network.Builtin.Subnets
	}
	for _, r := range e.routes() {
		for bridge, list := range want {
			overlaps := false
			for _, p := range list {
				overlaps = overlaps || p.Overlaps(r.to)
			}
			switch {
			case r.device == bridge && !overlaps:
				e.warn(fmt.Sprintf("%s has %s, and is configured with %v", bridge, r.to, list), "the plugin refuses to use the bridge, or pods of before and of now do not reach each other",
					"drain the node, then ip link delete "+bridge)
			case r.device != bridge && overlaps && r.to.Bits() >= 8:
				e.warn(fmt.Sprintf("%s is reached by %s, and pods on %s are to have %v", r.to, r.device, bridge, list), "pods get addresses of other machines, or do not reach them",
					"choose other subnets (network.subnets, or the configuration of the plugin), or remove what a former runtime left: ip link delete "+r.device)
			}
		}
	}
	return "addresses of pods are nobody else's"
}

// leases looks for addresses that host-local keeps for pods that are gone.
func (e *exam) leases() string {
	n := 0
	for _, dir := range e.inspect().DataDirs {
		var stale []string
		for _, name := range e.list(dir) {
			if _, err := netip.ParseAddr(strings.ReplaceAll(name, "_", ":")); err != nil {
				continue
			}
			text, _ := e.text(path.Join(dir, name))
			id, _, _ := strings.Cut(text, "\n")
			id = strings.TrimSpace(id)
			n++
			if _, err := os.Lstat(e.path(path.Join(e.RootDir, "sandboxes", path.Base("/"+id)))); id == "" || errors.Is(err, fs.ErrNotExist) {
				stale = append(stale, name)
			}
		}
		if len(stale) > 0 {
			e.warn(fmt.Sprintf("%s: %d addresses are kept for pods that are not this runtime's, such as %s", dir, len(stale), stale[0]),
				"they are never given out again; when all are taken, pods do not start", "if no other runtime uses that network: remove those files")
		}
	}
	return fmt.Sprintf("%d are kept, each for a pod", n)
}

func (e *exam) registries() string {
	if e.RegistryConfigDir == "" {
		return "none is described"
	}
	n, problems := imageservice.InspectHosts(e.path(e.RegistryConfigDir))
	for _, err := range problems {
		e.fail(err.Error(), "pulls from this registry fail", "correct the file")
	}
	return fmt.Sprintf("%d are described in %s", n, e.RegistryConfigDir)
}

// symbol tells whether the kernel, with its modules, has a function.
func (e *exam) symbol(name string) bool {
	f, err := os.Open(e.path("/proc/kallsyms")) // of megabytes
	if err != nil {
		return false
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == name {
			return true
		}
	}
	return false
}
