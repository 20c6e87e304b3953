// Package oci turns CRI messages into an OCI runtime Spec and the Spec into
// a launch Program for the monitor.
//
// Invariant: ContainerSpec and Compile are pure; what they need to know of
// the host is in their arguments.
package oci
