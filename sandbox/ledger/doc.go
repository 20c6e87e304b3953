// Package ledger seals the JSON files in which the daemon keeps what must
// survive it, and says what is wrong with what is kept.
//
// Its nouns are the seal, a checksum in the last member of a JSON object, and
// the Finding, one thing that is not as it has to be.
//
// Invariant: a sealed object of which one bit has changed is not read.
package ledger
