// Package localregistry is an image registry on the loopback interface for
// tests: it serves HTTP or HTTPS, asks for a user if told so, and can break
// its answers on purpose (Fault).
//
// Invariant: what is stored is whole; only what is sent is broken.
package localregistry
