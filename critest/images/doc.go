// Package images makes container images for tests, byte by byte: good ones
// from Debian's busybox-static and bad ones that a runtime must refuse.
//
// Its nouns are Layer (tar entries and a compression), Spec (layers and a
// configuration), Artifact (the blobs and the manifest that a registry
// serves) and Named (an Artifact with its repository and tag).
//
// Invariant: the same input gives the same digests.
package images
