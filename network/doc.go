// Package network attaches pods to their networks by CNI.
//
// Invariant: every ADD is followed by its DEL, with the configuration of the ADD.
package network
