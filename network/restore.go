package network

import (
	"fmt"
	"net/netip"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/network/builtin"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// Restore mends the record of an attachment that is there, by what the sandbox
// has kept of it: without it the pod's address and its host ports could be given
// to another pod. A record that can be read stays as it is. A damaged file of
// libcni's cache goes.
func (n *Network) Restore(pod Pod, att *Attachment) error {
	if att == nil {
		return nil
	}
	r := &record{}
	damage := ledger.Read(n.recordPath(pod.ID), r)
	if damage != nil {
		var err error
		if r, err = n.rebuilt(pod, att); err == nil {
			err = n.replaceRecord(pod.ID, r)
		}
		if err != nil {
			return fmt.Errorf("restore the attachment of %s: %w: %w", pod, damage, err)
		}
		klog.InfoS("The record of an attachment was written anew", "pod", pod.ID, "why", damage.Error())
	}
	if err := n.mendResult(pod.ID, r, att); err != nil {
		return fmt.Errorf("restore the attachment of %s: %w", pod, err)
	}
	if damage == nil {
		return nil
	}
	if r.Lease == nil || n.builtin == nil {
		return nil
	}
	n.builtin.Restore(pod.ID, r.Lease)
	return n.builtin.Resume()
}

// rebuilt makes the record of an attachment once more.
func (n *Network) rebuilt(pod Pod, att *Attachment) (*record, error) {
	rt, err := runtimeConf(pod)
	if err != nil {
		return nil, err
	}
	r := &record{Network: att.Network, Config: att.Config, NetNS: rt.NetNS, Args: rt.Args, Capabilities: rt.CapabilityArgs}
	own := att.Network == builtinName && len(att.Config) == 0
	if own && n.builtin == nil {
		return nil, fmt.Errorf("%w: the built-in network is switched off", ErrInvalid)
	}
	if !own {
		list, err := parseList(att.Config)
		if err != nil {
			return nil, err
		}
		if mapsPorts(list) || len(hostPorts(rt)) == 0 {
			return r, nil
		}
	}
	r.Lease = &builtin.Lease{Ports: hostPorts(rt)}
	for _, text := range att.IPs {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("address of the pod: %w", err)
		}
		if own {
			r.Lease.Addresses = append(r.Lease.Addresses, n.builtin.Prefix(ip))
		} else {
			r.Lease.Targets = append(r.Lease.Targets, ip)
		}
	}
	return r, nil
}
