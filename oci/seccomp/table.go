package seccomp

// abi is a system call ABI, and the column of its numbers in the table.
type abi int

const (
	abiX8664 abi = iota
	abiI386
	abiX32
	abiARM64
	abiARM
	abiCount
)

const (
	x32Bit     = 0x40000000
	x32First   = 512 // the calls that only x32 has are numbered apart
	x32Last    = 547
	armPrivate = 0x0f0000 // likewise the private calls of 32-bit arm

	// A call's slot is its number brought into one dense range: without the
	// ABI's base, and with arm's private calls behind all others.
	slotPrivate = 0x400
	slotCount   = slotPrivate + 0x10

	// The column behind those of the ABIs holds i386's multiplexed operations.
	tableColumns = int(abiCount) + 1
)

// words64 tells whether the ABI's arguments are compared as 64-bit values.
func (a abi) words64() bool { return a == abiX8664 || a == abiARM64 }

// base is what the ABI adds to a call's number.
func (a abi) base() uint32 {
	if a == abiX32 {
		return x32Bit
	}
	return 0
}

// special is the range of slots that are numbered apart from the others, so
// that its calls are not newer than the others. An ABI without one has the
// range behind all slots.
func (a abi) special() (first, last uint32) {
	switch a {
	case abiX32:
		return x32First, x32Last
	case abiARM:
		return slotPrivate, slotPrivate + 6
	case abiX8664, abiI386, abiARM64, abiCount:
	}
	return slotPrivate - 1, slotPrivate - 2
}

// number is the inverse of slot, with the ABI's base.
func (a abi) number(slot uint32) uint32 {
	if slot >= slotPrivate {
		return armPrivate + slot - slotPrivate
	}
	return slot + a.base()
}

func word16(s string, i int) uint16 { return uint16(s[2*i]) | uint16(s[2*i+1])<<8 }

func tableName(i int) string {
	return tableNames[word16(tableOffsets, i):word16(tableOffsets, i+1)]
}

// lookup finds the row of a system call.
func lookup(name string) (int, bool) {
	lo, hi := 0, tableLen
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if tableName(mid) < name {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < tableLen && tableName(lo) == name
}

// slot is the slot of the call in a row.
func (a abi) slot(row int) (uint32, bool) {
	nr := uint32(word16(tableNumbers, row*tableColumns+int(a)))
	switch {
	case nr == 0xffff:
		return 0, false
	case nr >= 0xff00:
		return nr - 0xff00 + slotPrivate, true
	}
	return nr, true
}

// i386 has calls that do many others, told apart by their first argument.
const (
	i386Socketcall = 102
	i386IPC        = 117
)

// multiplexed gives the i386 call, and its operation, that also does the call
// in a row.
func multiplexed(row int) (slot uint32, operation uint64, ok bool) {
	n := word16(tableNumbers, row*tableColumns+int(abiCount))
	switch {
	case n == 0xffff:
		return 0, 0, false
	case n >= 0x100:
		return i386IPC, uint64(n - 0x100), true
	}
	return i386Socketcall, uint64(n), true
}
