// Package faults breaks things around and in the daemon and then checks
// everything: it is killed between any two of its effects and at random, its
// records are damaged, its surroundings hang, fill up or lie.
//
// Its nouns are node (a daemon with directories of its own), writer (a
// container that prints numbered lines) and tally (what was tried, printed at
// the end). LONG=1 tries everything; without it a test takes a part that is
// different from day to day only where it says so.
//
// Invariant: what a fault did not hit goes on as if nothing had happened, and
// after the kubelet's clean-up nothing is left of what it hit.
package faults
