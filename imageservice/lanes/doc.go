// Package lanes computes the SHA-256 of several streams at once, on processors
// that have AVX-512 but no instructions for SHA-256: each of eight streams is a
// lane of the same vectors, which costs little more than one stream alone.
// Elsewhere it is crypto/sha256.
//
// Its nouns are Pool (what streams share) and Stream (one digest).
//
// Invariant: a stream never waits for another one to bring data. Whoever writes
// takes along what others have brought by then.
package lanes
