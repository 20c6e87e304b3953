package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/network/builtin"
)

const (
	defaultRoot   = "/var/lib/cri-runtime"
	defaultBridge = "cri0"
	defaultIPv4   = "10.222.0.0/16"
	defaultIPv6   = "fd9d:c2b1:222::/64"

	// Of a daemon with another root: a /24 of 10.64.0.0/10, and a /64.
	otherIPv4 = "10.%d.%d.0/24"
	otherIPv6 = "fd9d:c2b1:%02x%02x::/64"
)

type networkConfig struct {
	ConfDir string   `toml:"conf_dir"`
	BinDirs []string `toml:"bin_dirs"`
	Builtin bool     `toml:"builtin"`
	Bridge  string   `toml:"bridge"`
	Subnets []string `toml:"subnets"`
	MTU     int      `toml:"mtu"`

	PluginTimeout duration `toml:"plugin_timeout"`
}

// network returns what the package network is opened with. What the
// built-in network is called, and which addresses it has, follows from the root
// where nobody has chosen, so that several daemons do not meet.
func (c *config) network() (network.Config, error) {
	sum := sha256.Sum256([]byte(filepath.Clean(c.Root)))
	n := c.Network
	if n.Bridge == "" {
		n.Bridge = "cri-" + hex.EncodeToString(sum[:4])
		if filepath.Clean(c.Root) == defaultRoot {
			n.Bridge = defaultBridge
		}
	}
	fixed := len(n.Subnets) > 0
	if !fixed {
		n.Subnets = []string{fmt.Sprintf(otherIPv4, 64+sum[0]%64, sum[1]), fmt.Sprintf(otherIPv6, sum[2], sum[3])}
		if filepath.Clean(c.Root) == defaultRoot {
			n.Subnets = []string{defaultIPv4, defaultIPv6}
		}
		if !hasIPv6() {
			n.Subnets = n.Subnets[:1]
		}
	}
	out := network.Config{
		ConfDir: n.ConfDir, BinDirs: n.BinDirs, CacheDir: filepath.Join(c.Root, "cni"), Timeout: n.PluginTimeout.Duration, Fallback: n.Builtin, FixedSubnets: fixed,
		Builtin: builtin.Config{Bridge: n.Bridge, Owner: "cri-runtime " + filepath.Clean(c.Root), MTU: n.MTU},
	}
	for i, text := range n.Subnets {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return out, &keyError{"network.subnets", fmt.Sprintf("[%d] %q is not a subnet like 10.1.0.0/16", i, text)}
		}
		out.Builtin.Subnets = append(out.Builtin.Subnets, p)
	}
	if _, err := builtin.New(out.Builtin); err != nil {
		return out, &keyError{"network", err.Error()}
	}
	return out, nil
}

// hasIPv6 tells whether interfaces can have IPv6 addresses here.
func hasIPv6() bool {
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && len(off) > 0 && off[0] == '0'
}
