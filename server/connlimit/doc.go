// Package connlimit bounds the connections of the daemon's servers, some of
// which pods of the host's network can reach.
//
// Its nouns are the standard library's: a listener, and an HTTP server.
//
// Invariant: however many connections clients open, the server keeps no more
// than its bound, and a client that says at once what it wants is served.
package connlimit
