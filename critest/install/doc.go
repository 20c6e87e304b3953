// Package install tests how cri-runtime gets onto a node and off again: make
// install and the Debian package, both below directories of their own. Its noun
// is Tree: the files of such a directory.
//
// Invariant: nothing outside these directories is touched.
package install
