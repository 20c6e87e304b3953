// Package harness runs a container runtime for tests: the project's own
// binary, or Debian's containerd as the peer that it is compared with, each
// with directories, a socket, a bridge and cgroups of its own.
//
// Its nouns are Runtime (a daemon with its clients) and Residue (what a
// runtime has on the host at one moment).
//
// Invariant: nothing outside Runtime.Dir, the bridge and the cgroups named by
// it is touched, and Close says what was left of them.
package harness
