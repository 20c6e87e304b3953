// Package main is the command run, which lets the CRI conformance suite, built from its own repository,
// test this runtime (or Debian's containerd) and prints what passed, failed
// and was skipped, and what is left behind after each run. The project's own tests do not need it.
//
//	go run ./critest/run -critest PATH [-crictl PATH] [-parallel N] [-repeat N] [-websocket] [-benchmark] [-peer] [-- flags of critest]
//
// The suite's images come from a registry on the loopback interface that is
// filled with equivalents of our own making. One of them is asked for by the
// digest of the original, so the run uses a copy of the suite in which that
// digest is replaced by the equivalent's.
package main
