// Package server answers the CRI: the RuntimeService and the ImageService of
// cri-api on one unix socket.
//
// Its nouns are the Server, which checks requests, calls package sandbox and
// package imageservice and turns what they say into CRI messages, and the
// listener made by [Listen]. It keeps no state of its own but the holds that
// keep a container's image from being removed.
//
// The invariant: what a client is told about an error is decided in one place,
// the interceptor, by the table in errors.go. Handlers return Go errors, never
// gRPC codes.
package server
