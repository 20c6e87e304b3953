// Package doctor looks at a host: what a node with this runtime needs and lacks,
// what that costs, and what to change.
//
// Its nouns are Config (the host and what is configured) and Result (what one
// check saw). The host is a directory and a Kernel, so that every check is tested
// on a tree that has the fault it is for.
//
// Invariant: nothing is changed, and what could not be looked at is said.
package doctor
