// Package critest tests a container runtime from outside: everything goes
// over the CRI socket by the kubelet's own client, against a daemon with
// throw-away directories, images made by package images and a registry on
// the loopback interface. CRITEST_PEER=containerd runs the same tests against
// Debian's containerd; known differences are named where they are skipped.
//
// Its nouns are pod and container, as the kubelet would make them.
//
// Invariant: after each test the host is as it was before it.
package critest
