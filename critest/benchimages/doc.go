// Package main is the command benchimages, which measures pulls of whole images, interleaved in one run:
// the runtime, Debian's containerd, and skopeo with umoci. It prints wall time,
// processor time, peak memory and disk use of each, and how busy the machine
// was; what counts is the ratio, not the figure.
//
//	go run ./critest/benchimages -n 3 -only debian6,zstd6
//
// The images lie in TMPDIR. On ext4 without a journal what was removed there
// within the last minutes makes each new file dearer, for everyone.
//
// Its nouns are image (what is pulled, made of Debian's packages and kept in a
// cache directory), contestant (who pulls it) and sample (one pull).
//
// Invariant: all contestants pull the same bytes from the same registry in the
// same minute with cold caches, and nothing of them is left at the end.
package main
