package lanes

import "golang.org/x/sys/cpu"

// shaLeaf and shaBit are where CPUID tells of the instructions for SHA-256,
// with which one stream is faster than eight lanes.
const (
	shaLeaf = 7
	shaBit  = 1 << 29
)

func supported() bool {
	x := &cpu.X86
	return x.HasAVX2 && x.HasAVX512F && x.HasAVX512VL && x.HasAVX512BW && cpuid(shaLeaf)&shaBit == 0
}

// blocks takes count blocks of each lane, from data on, into the states, of
// which the first index is the word and the second the lane.
//
//go:noescape
func blocks(states *[8][width]uint32, data *[width]*byte, count int)

// cpuid returns what CPUID has in EBX for a leaf and its first sub-leaf.
//
//go:noescape
func cpuid(leaf uint32) (ebx uint32)
