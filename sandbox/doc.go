// Package sandbox holds the only mutable state: the Store with its Sandboxes
// and Containers, the verbs that change them, and their recovery.
//
// Invariant: each effect on the host has a record before it and an undo after it.
package sandbox
