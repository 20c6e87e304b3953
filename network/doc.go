// Package network attaches pods to their networks: by CNI, or where none is
// configured by the built-in network of package builtin.
//
// A Network watches one directory of configuration lists and runs the plugins
// that the first valid one names. An Attachment is the outcome of one ADD. A
// record, written to the cache directory before ADD, keeps what DEL needs
// until DEL is done.
//
// Invariant: every ADD is followed by its DEL, with the configuration of the ADD.
package network
