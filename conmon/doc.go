// Package conmon starts and speaks to monitors. A Binary is the monitor's
// executable in memory; a Launch describes one container to be created by a
// new Monitor; a Monitor is the connection to one that runs; an Exec is a
// process it has started in its container beside init; an Exit is how a
// process ended.
//
// Invariant: a monitor never depends on the daemon. The daemon may go away at
// any instruction; what it needs to know later is answered by a new
// connection or, once the monitor has ended, by the exit record.
//
// PROTOCOL.md defines what goes over the connection, monitor/ holds the
// monitor itself.
package conmon
