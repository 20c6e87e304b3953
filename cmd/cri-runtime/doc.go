// Package main is the command cri-runtime, which serves the Kubernetes Container Runtime Interface.
//
// Its nouns are Config (what an administrator may choose, from defaults, files
// and flags, in this order) and Lock (a directory in use by this process).
//
// Invariant: nothing is decided here but where things are and how they are
// wired; ending this process stops no container.
package main
