// Package builtin is the network of a node on which no other is configured: a
// bridge with addresses of its own, masquerade and host ports, all by netlink
// and nftables and without any other program.
//
// A Bridge gives a Lease (the addresses and host ports of one pod) and wires
// the pod's namespace to them. The caller keeps the Lease on disk from before
// Wire until after Release; after a restart it gives back by Restore what it kept.
//
// Invariant: one table of nftables and one bridge, both of this daemon alone,
// follow from the leases; whoever removes them gets them back with the next pod.
package builtin
