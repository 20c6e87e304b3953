// Package main is the command demo, which shows what cri-runtime does: it serves an image from a registry
// of its own, starts the daemon in a temporary directory, runs a pod with a CNI
// network through the kubelet's client, kills the daemon and starts it again,
// and takes everything away. deploy/demo runs it in network and mount
// namespaces of its own.
//
// Its nouns are those of package harness, and the step: one thing shown, with
// the time it took.
//
// Invariant: what it started it ends, also when a step fails.
package main
