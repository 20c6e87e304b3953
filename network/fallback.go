package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/network/builtin"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// builtinName is the network of pods that no configuration list attached.
const builtinName = "cri-runtime"

// openBuiltin opens the built-in network, which serves while there is no
// configuration, and opens host ports for plugins that do not.
func (n *Network) openBuiltin() error {
	config := n.config.Builtin
	if config.Bridge == "" {
		return nil
	}
	if subnets := n.keptSubnets(); len(subnets) > 0 && !n.config.FixedSubnets {
		config.Subnets = subnets
	}
	b, err := builtin.New(config)
	if err != nil {
		return fmt.Errorf("open network: %w", err)
	}
	n.builtin = b
	entries, err := os.ReadDir(n.recordDir())
	if err != nil {
		return fmt.Errorf("open network: %w", err)
	}
	for _, entry := range entries {
		id := strings.TrimSuffix(entry.Name(), ".json")
		if strings.HasSuffix(id, ".next") {
			continue // a crash came before it took the record's place
		}
		if rec, err := n.readRecord(id); err == nil && rec != nil && rec.Lease != nil {
			b.Restore(id, rec.Lease)
		}
	}
	if err := b.Resume(); err != nil {
		klog.ErrorS(err, "The host ports of pods that run may be closed", "remedy", "restart the daemon once nftables can be changed")
	}
	return nil
}

// fallsBack tells whether the built-in network serves: nobody has configured
// any other, not even wrongly.
func (n *Network) fallsBack(c *confDir) bool {
	return n.builtin != nil && n.config.Fallback && c.list == nil && len(c.refused) == 0 &&
		(c.err == nil || errors.Is(c.err, fs.ErrNotExist))
}

// attachBuiltin is ADD of the built-in network. What it leaves when it fails
// goes with the pod's network namespace.
func (n *Network) attachBuiltin(ctx context.Context, pod Pod, rt *libcni.RuntimeConf) (_ *Attachment, err error) {
	lease, err := n.builtin.Lease(pod.ID, hostPorts(rt))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.builtin.Release(pod.ID), n.removeRecord(pod.ID))
		}
	}()
	fault.Point("attach.leased")
	rec := &record{Network: builtinName, NetNS: rt.NetNS, Args: rt.Args, Lease: lease}
	if err := n.writeRecord(pod.ID, rec); err != nil {
		return nil, err
	}
	fault.Point("attach.lease.recorded")
	var rates builtin.Rates
	if b, ok := rt.CapabilityArgs["bandwidth"].(*bandwidth); ok {
		rates = builtin.Rates{Ingress: b.IngressRate, Egress: b.EgressRate}
	}
	if err := n.builtin.Wire(ctx, pod.ID, pod.NetNS, ifName, lease, rates); err != nil {
		return nil, fmt.Errorf("built-in network: %w", err)
	}
	fault.Point("attach.wired")
	att := &Attachment{Network: builtinName}
	for _, p := range lease.Addresses {
		att.IPs = append(att.IPs, p.Addr().String())
	}
	return att, nil
}

// openPorts opens the pod's host ports itself where no plugin of the list
// does. The record, which DEL needs, says so before.
func (n *Network) openPorts(pod Pod, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf, att *Attachment) error {
	ports := hostPorts(rt)
	if len(ports) == 0 || mapsPorts(list) {
		return nil
	}
	if n.builtin == nil {
		return fmt.Errorf("%w: no plugin of network %s opens host ports", ErrInvalid, list.Name)
	}
	var targets []netip.Addr
	for _, text := range att.IPs {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("address of the pod: %w", err)
		}
		targets = append(targets, ip)
	}
	lease, err := n.builtin.LeasePorts(pod.ID, targets, ports)
	if err != nil {
		return err
	}
	fault.Point("attach.ports.leased")
	rec := newRecord(list, rt)
	rec.Lease = lease
	if err := n.replaceRecord(pod.ID, rec); err != nil {
		return err
	}
	fault.Point("attach.ports.recorded")
	return n.builtin.Open(lease)
}

// mapsPorts tells whether a plugin of the list takes port mappings.
func mapsPorts(list *libcni.NetworkConfigList) bool {
	for _, plugin := range list.Plugins {
		if plugin.Network.Capabilities["portMappings"] {
			return true
		}
	}
	return false
}

// hostPorts are the port mappings of the runtime configuration.
func hostPorts(rt *libcni.RuntimeConf) []builtin.Port {
	mappings, _ := rt.CapabilityArgs["portMappings"].([]portMapping)
	out := make([]builtin.Port, 0, len(mappings))
	for _, m := range mappings {
		p := builtin.Port{Protocol: m.Protocol, Host: uint16(m.HostPort), Pod: uint16(m.ContainerPort)} //nolint:gosec // portMappings checked them
		if m.HostIP != "" {
			p.HostIP, _ = netip.ParseAddr(m.HostIP) // as above
		}
		out = append(out, p)
	}
	return out
}

// releaseBuiltin gives back what the built-in network gave the pod.
func (n *Network) releaseBuiltin(id string) error {
	if n.builtin == nil {
		return nil
	}
	return n.builtin.Release(id)
}

// subnetsRecord is subnets.json.
type subnetsRecord struct {
	Subnets []netip.Prefix `json:"subnets"`
}

func (n *Network) subnetsPath() string { return filepath.Join(n.config.CacheDir, "subnets.json") }

// keptSubnets returns what SetSubnets has kept. A damaged file is as good as none:
// the pods that are there have their addresses in records of their own, and a kubelet
// says at its start what the subnets are.
func (n *Network) keptSubnets() []netip.Prefix {
	var r subnetsRecord
	switch err := ledger.Read(n.subnetsPath(), &r); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		klog.ErrorS(err, "The pods' subnets that the cluster has chosen are lost, those of the configuration serve",
			"subnets", n.config.Builtin.Subnets, "remedy", "restart the kubelet, which tells them again")
	case builtin.CheckSubnets(r.Subnets) == nil:
		return r.Subnets
	}
	return nil
}

// SetSubnets gives the built-in network the addresses of the node's pods, as the
// cluster's control plane has chosen them. Pods that run keep theirs. An
// administrator's choice stands.
func (n *Network) SetSubnets(subnets []netip.Prefix) error {
	if n.builtin == nil || !n.config.Fallback || n.config.FixedSubnets || len(subnets) == 0 {
		klog.V(2).InfoS("The node's pod subnets do not concern the network", "subnets", subnets)
		return nil
	}
	if err := n.builtin.SetSubnets(subnets); err != nil {
		return fmt.Errorf("set the pods' subnets: %w", err)
	}
	data, err := ledger.Marshal(&subnetsRecord{subnets})
	if err == nil {
		err = os.WriteFile(n.subnetsPath()+".next", data, 0o600)
	}
	if err == nil {
		err = os.Rename(n.subnetsPath()+".next", n.subnetsPath())
	}
	if err != nil {
		return fmt.Errorf("keep the pods' subnets: %w", err)
	}
	return nil
}
