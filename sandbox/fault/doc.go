// Package fault names the places between two effects of the daemon, so that a
// test can kill it exactly there.
//
// Its one noun is the point: a name that is a constant in the source, such as
// "run.netns.pinned", and is passed each time the daemon comes by. Without the
// build tag "faults" a point is an empty function that the compiler inlines.
//
// Invariant: no product's behaviour depends on this package, and no release is
// built with the tag.
package fault
