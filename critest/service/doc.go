// Package service tests the Debian package on a node: systemd starts the
// daemon, hands its socket over and watches it, and pods outlive whatever
// happens to the service. Its noun is node, a machine with the package.
//
// Invariant: it runs where the package may be installed and purged, which is
// what CRITEST_DEB says, the path of one. See critest/vm.
package service
