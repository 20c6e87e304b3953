package imageservice

import (
	"encoding/binary"
	"io"
	"math/bits"
)

// Kinds of deflate's blocks, RFC 1951.
const (
	storedBlock  = 0
	fixedBlock   = 1
	dynamicBlock = 2
)

// Huffman codes are looked up by the next litBits or distBits of the input;
// longer ones have a second table. An entry is
//
//	bits 0-7    bits of the code and what follows it; of the second table's index
//	bits 8-11   bits of the code alone
//	bits 12-15  entryEnd, entryTable, entrySpecial
//	bits 16-30  the literal, the least length or distance, or where the second table starts
//	bit 31      entryLiteral
const (
	litBits   = 11
	distBits  = 8
	litTable  = 4096 // at most 2342 are used
	distTable = 512  // at most 402

	entryEnd     = 1 << 13
	entryTable   = 1 << 14
	entrySpecial = 1 << 15 // neither a literal nor a value: the end, a table, no code at all
	entryLiteral = 1 << 31
	entryValue   = 0x7fff
	bitCount     = 63 // what tells the compiler that a shift is a shift

	maxCode    = 15
	maxLits    = 286
	maxDists   = 30
	endOfBlock = 256
)

// block reads a block's header.
func (z *gunzip) block() error {
	if z.final {
		z.final, z.state = false, atTrailer
		return nil
	}
	header, err := z.take(3)
	if err != nil {
		return err
	}
	z.final = header&1 != 0
	switch header >> 1 {
	case storedBlock:
		return z.openStored()
	case fixedBlock:
		z.state = inHuffman
		return z.useFixed()
	case dynamicBlock:
		z.state = inHuffman
		return z.dynamic()
	}
	return corrupt("kind of block")
}

func (z *gunzip) openStored() error {
	z.align()
	both, err := z.take(32)
	if err != nil {
		return err
	}
	if uint16(both) != ^uint16(both>>16) {
		return corrupt("length of a stored block")
	}
	z.align()
	z.stored, z.state = int(both&0xffff), inStored
	return nil
}

func (z *gunzip) copyStored() error {
	if z.stored > 0 && z.pos >= z.end {
		if err := z.fetch(); err != nil {
			return err
		}
		if z.pos >= z.end {
			return io.ErrUnexpectedEOF
		}
	}
	n := min(z.stored, z.end-z.pos, len(z.win)-z.o)
	copy(z.win[z.o:], z.in[z.pos:z.pos+n])
	z.o, z.pos, z.stored = z.o+n, z.pos+n, z.stored-n
	if z.stored == 0 {
		z.state = atBlock
	}
	return nil
}

// inflate decodes symbols until the block or the room in the window ends. The
// bits that one turn takes without looking for more are 2*11 (literals), then
// 15+5 (a length); then, after a refill, 15+13 (a distance).
//
//nolint:funlen // one loop, whose variables stay in registers
func (z *gunzip) inflate() error {
	if z.pos > z.limit {
		if err := z.fetch(); err != nil {
			return err
		}
	}
	in, win, next, n, pos, o := z.in, z.win, z.bits, z.n, z.pos, z.o
	var err error
	for room := len(win) - outputSlack; o < room && pos <= z.limit; {
		next |= binary.LittleEndian.Uint64(in[pos:]) << (n & bitCount)
		pos += int(63-n) >> 3
		n |= 56
		e := z.lit[next&(1<<litBits-1)]
		if e&entryLiteral != 0 {
			next >>= e & bitCount
			n -= uint(e & bitCount)
			win[o] = byte(e >> 16)
			o++
			e = z.lit[next&(1<<litBits-1)]
			if e&entryLiteral != 0 {
				next >>= e & bitCount
				n -= uint(e & bitCount)
				win[o] = byte(e >> 16)
				o++
				e = z.lit[next&(1<<litBits-1)]
			}
		}
		if e&entryTable != 0 {
			next >>= litBits
			n -= litBits
			e = z.lit[(uint64(e>>16)+next&(1<<(e&bitCount)-1))&(litTable-1)]
		}
		saved, length := next, e&bitCount
		next >>= length
		n -= uint(length)
		if e&(entryLiteral|entrySpecial) != 0 {
			if e&entryLiteral != 0 {
				win[o] = byte(e >> 16)
				o++
				continue
			}
			if z.state = atBlock; e&entryEnd == 0 {
				err = corrupt("no such code")
			}
			break
		}
		length = e>>16&entryValue + uint32(saved&(1<<length-1)>>(e>>8&15))

		next |= binary.LittleEndian.Uint64(in[min(pos, len(in)-wordSize):]) << (n & bitCount)
		pos += int(63-n) >> 3
		n |= 56
		e = z.dist[next&(1<<distBits-1)]
		if e&entryTable != 0 {
			next >>= distBits
			n -= distBits
			e = z.dist[(uint64(e>>16)+next&(1<<(e&bitCount)-1))&(distTable-1)]
		}
		distance := int(e>>16&entryValue) + int(next&(1<<(e&bitCount)-1)>>(e>>8&15))
		next >>= e & bitCount
		n -= uint(e & bitCount)
		if e&entrySpecial != 0 || distance > o-z.start {
			err = corrupt("distance")
			break
		}
		repeat(win, o, distance, int(length))
		o += int(length)
	}
	z.bits, z.n, z.pos, z.o = next, n, pos, o
	return err
}

// repeat copies length bytes from distance before o to o. Up to a word more is
// written: outputSlack has the room.
func repeat(win []byte, o, distance, length int) {
	from := win[o-distance : o+length+wordSize]
	to := win[o : o+length+wordSize]
	switch {
	case distance >= wordSize:
		for i := 0; i < length; i += wordSize {
			binary.LittleEndian.PutUint64(to[i:], binary.LittleEndian.Uint64(from[i:]))
		}
	case distance == 1:
		word := uint64(from[0]) * 0x0101010101010101
		for i := 0; i < length; i += wordSize {
			binary.LittleEndian.PutUint64(to[i:], word)
		}
	default:
		for i := range length {
			to[i] = from[i]
		}
	}
}

// useFixed sets the codes that the specification names.
func (z *gunzip) useFixed() error {
	if z.isFixed {
		return nil
	}
	if z.fixed != nil {
		z.huffman, z.isFixed = *z.fixed, true
		return nil
	}
	var lengths [288]uint8
	for i := range lengths {
		switch {
		case i < 144, i >= 280:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		default:
			lengths[i] = 7
		}
	}
	if !buildTable(z.lit[:], litBits, lengths[:], litEntry) {
		return corrupt("fixed codes")
	}
	for i := range 32 {
		lengths[i] = 5
	}
	if !buildTable(z.dist[:], distBits, lengths[:32], distEntry) {
		return corrupt("fixed codes")
	}
	kept := z.huffman
	z.fixed, z.isFixed = &kept, true
	return nil
}

// dynamic reads the codes of a block.
func (z *gunzip) dynamic() error {
	head, err := z.take(14)
	if err != nil {
		return err
	}
	lits, dists, codes := int(head&31)+257, int(head>>5&31)+1, int(head>>10)+4
	if lits > maxLits || dists > maxDists {
		return corrupt("number of codes")
	}
	var order [19]uint8
	for i := range codes {
		v, err := z.take(3)
		if err != nil {
			return err
		}
		order["\x10\x11\x12\x00\x08\x07\x09\x06\x0a\x05\x0b\x04\x0c\x03\x0d\x02\x0e\x01\x0f"[i]] = uint8(v)
	}
	var table [1 << maxLengthCode]uint32
	if !buildTable(table[:], maxLengthCode, order[:], lengthEntry) {
		return corrupt("codes of the codes")
	}
	var lengths [maxLits + maxDists]uint8
	if err := z.lengths(lengths[:lits+dists], &table); err != nil {
		return err
	}
	z.isFixed = false
	if !buildTable(z.lit[:], litBits, lengths[:lits], litEntry) || !buildTable(z.dist[:], distBits, lengths[lits:lits+dists], distEntry) {
		return corrupt("codes")
	}
	return nil
}

// maxLengthCode is the longest code of a code's length.
const maxLengthCode = 7

// lengths reads the lengths of a block's codes, which are coded themselves.
func (z *gunzip) lengths(into []uint8, table *[1 << maxLengthCode]uint32) error {
	for i := 0; i < len(into); {
		if _, err := z.take(0); err != nil {
			return err
		}
		e, err := z.symbol(table)
		if err != nil {
			return err
		}
		if e < 16 {
			into[i] = uint8(e)
			i++
			continue
		}
		value, base, extra := uint8(0), uint64(3), uint(3)
		switch e {
		case 16:
			if i == 0 {
				return corrupt("nothing to repeat")
			}
			value, extra = into[i-1], 2
		case 18:
			base, extra = 11, 7
		}
		more, err := z.take(extra)
		if err != nil {
			return err
		}
		count := int(base + more)
		if i+count > len(into) {
			return corrupt("too many codes")
		}
		for range count {
			into[i] = value
			i++
		}
	}
	return nil
}

// symbol decodes one symbol of a table without second tables.
func (z *gunzip) symbol(table *[1 << maxLengthCode]uint32) (uint32, error) {
	v, err := z.peek(maxLengthCode)
	if err != nil {
		return 0, err
	}
	e := table[v]
	if e&entrySpecial != 0 {
		return 0, corrupt("no such code")
	}
	_, err = z.take(uint(e & bitCount))
	return e >> 16, err
}

// peek returns the next bits without taking them. Beyond the input's end they
// are zero.
func (z *gunzip) peek(count uint) (uint64, error) {
	if z.n < count {
		if z.pos > z.limit {
			if err := z.fetch(); err != nil {
				return 0, err
			}
		}
		z.bits |= binary.LittleEndian.Uint64(z.in[z.pos:]) << z.n
		z.pos += int(63-z.n) >> 3
		z.n |= 56
	}
	return z.bits & (1<<count - 1), nil
}

// buildTable makes the tables of a Huffman code from the lengths of its codes.
// It tells whether they are one: all of the code's space is used and no more,
// or there is one code of one bit, or none.
func buildTable(table []uint32, root uint, lengths []uint8, entry func(symbol int) uint32) bool {
	var count, code [maxCode + 2]int
	for _, l := range lengths {
		count[l]++
	}
	count[0] = 0
	used, longest := 0, uint(0)
	for l := uint(1); l <= maxCode; l++ {
		code[l+1] = (code[l] + count[l]) << 1
		used += count[l] << (maxCode - l)
		if count[l] > 0 {
			longest = l
		}
	}
	if used != 1<<maxCode {
		if used != 0 && (longest != 1 || count[1] != 1) {
			return false
		}
		for i := range 1 << root {
			table[i] = entrySpecial
		}
	}
	b := tableBuilder{table: table, root: root, longest: longest, count: count, free: 1 << root, prefix: -1}
	for l := uint(1); l <= longest; l++ {
		if count[l] == 0 {
			continue
		}
		for symbol, length := range lengths {
			if uint(length) != l {
				continue
			}
			b.put(code[l], l, entry(symbol))
			code[l]++
		}
	}
	return true
}

// tableBuilder puts codes into a table, in the order of their values.
type tableBuilder struct {
	table   []uint32
	root    uint
	longest uint
	count   [maxCode + 2]int // codes of each length that are not yet put
	free    int              // where the next second table goes
	prefix  int              // of the second table that is being filled
	start   int
	bits    uint // of its index
}

func (b *tableBuilder) put(code int, length uint, e uint32) {
	reversed := int(bits.Reverse16(uint16(code)) >> (16 - length))
	if length <= b.root {
		e += uint32(length)<<8 + uint32(length)
		for i := reversed; i < 1<<b.root; i += 1 << length {
			b.table[i] = e
		}
		b.count[length]--
		return
	}
	if prefix := reversed & (1<<b.root - 1); prefix != b.prefix {
		b.open(prefix, length)
	}
	length -= b.root
	e += uint32(length)<<8 + uint32(length)
	for i := reversed >> b.root; i < 1<<b.bits; i += 1 << length {
		b.table[b.start+i] = e
	}
	b.count[length+b.root]--
}

// open starts a second table, as large as the codes with that prefix need.
func (b *tableBuilder) open(prefix int, length uint) {
	b.prefix, b.start, b.bits = prefix, b.free, length-b.root
	for left := 1 << b.bits; b.bits+b.root < b.longest; b.bits++ {
		if left -= b.count[b.bits+b.root]; left <= 0 {
			break
		}
		left <<= 1
	}
	b.free += 1 << b.bits
	b.table[prefix] = uint32(b.start)<<16 | entrySpecial | entryTable | uint32(b.bits)
}

// litEntry is the entry of a literal, a length or the block's end, without its
// code's length.
func litEntry(symbol int) uint32 {
	switch {
	case symbol < endOfBlock:
		return entryLiteral | uint32(symbol)<<16
	case symbol == endOfBlock:
		return entrySpecial | entryEnd
	case symbol < 265:
		return uint32(symbol-254) << 16
	case symbol < 285:
		extra := uint32(symbol-261) / 4
		return (3+(4+uint32(symbol-265)%4)<<extra)<<16 | extra
	case symbol == 285:
		return longestMatch << 16
	}
	return entrySpecial
}

// distEntry is the entry of a distance.
func distEntry(symbol int) uint32 {
	switch {
	case symbol < 4:
		return uint32(symbol+1) << 16
	case symbol < maxDists:
		extra := uint32(symbol)/2 - 1
		return (1+(2+uint32(symbol)%2)<<extra)<<16 | extra
	}
	return entrySpecial
}

// lengthEntry is the entry of a code's length.
func lengthEntry(symbol int) uint32 { return uint32(symbol) << 16 }
