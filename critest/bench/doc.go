// Package main is the command bench, which measures the runtime and, interleaved with it in one run,
// Debian's containerd with runc: the latency of every RPC, pods a second,
// memory and processor time of pods, and pulls. It prints one table with
// ratios; what counts is the ratio, not the figure.
//
//	go run ./critest/bench -n 40 -peer=true
//
// Its nouns are bench (the runtimes side by side) and samples (durations of
// one thing done by one of them).
//
// Invariant: both runtimes do the same work in the same minute on the same
// machine, and nothing of either is left at the end.
package main
