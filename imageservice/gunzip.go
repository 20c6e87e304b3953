package imageservice

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// gzip's header, RFC 1952.
const (
	gzipMagic      = 0x8b1f
	gzipDeflate    = 8
	gzipHeaderCRC  = 1 << 1
	gzipExtra      = 1 << 2
	gzipName       = 1 << 3
	gzipComment    = 1 << 4
	maxGzipText    = 512 // bytes of a name or comment, as Go's own reader has it
	historySize    = 32 << 10
	inflateSource  = 64 << 10
	longestMatch   = 258
	outputSlack    = longestMatch + wordSize + 3 // what one turn of the loop may write
	inflatedAtOnce = 128 << 10
	wordSize       = 8
	inputPadding   = 64 // zeroes after the input's end, so that the loop needs no check of its own
)

var (
	errGzipHeader = errors.New("gzip: invalid header")
	errGzipSum    = errors.New("gzip: checksum or size is wrong")
)

// gunzip decompresses gzip members one after another. It is the largest part of
// a pull's processor time, which is why it is not the library's: on layers of
// Debian packages this one takes 0.6 to 0.75 of the time. On content without
// matches, as in BenchmarkGunzip, it gains nothing.
type gunzip struct {
	source io.Reader
	in     []byte // in[pos:end] is to be decoded, after what is in bits
	pos    int
	end    int
	limit  int // the last pos at which a word can be loaded
	eof    bool

	bits uint64 // the next bits of the input, the lowest first
	n    uint   // how many of them count

	win   []byte // history and output
	o     int    // end of what is decoded
	r     int    // start of what is not yet read
	start int    // of the member, in win: no match reaches beyond

	state  inflateState
	final  bool // the last block of the member
	stored int  // bytes left of a stored block
	sum    uint32
	summed int // end of what is in sum
	size   uint32
	err    error

	huffman          // of the block
	fixed   *huffman // the specification's, made once: a block of ten bits can ask for it
	isFixed bool     // huffman is fixed
}

// huffman is how the symbols of a block are decoded.
type huffman struct {
	lit  [litTable]uint32
	dist [distTable]uint32
}

type inflateState int

const (
	atMember inflateState = iota
	atBlock
	inStored
	inHuffman
	atTrailer
)

func newGunzip(source io.Reader) *gunzip {
	return &gunzip{
		source: source,
		in:     make([]byte, inflateSource+inputPadding),
		limit:  -1,
		win:    make([]byte, historySize+inflatedAtOnce+outputSlack),
	}
}

func (z *gunzip) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for z.r == z.o {
		if z.err != nil {
			return 0, z.err
		}
		z.slide()
		if err := z.decode(); err != nil {
			z.err = err
		}
	}
	n := copy(p, z.win[z.r:z.o])
	z.r += n
	return n, nil
}

// slide keeps the history alone in the window.
func (z *gunzip) slide() {
	if z.o <= historySize {
		return
	}
	by := z.o - historySize
	copy(z.win, z.win[by:z.o])
	z.start = max(0, z.start-by)
	z.o, z.r, z.summed = historySize, historySize, historySize
}

// decode fills the window. After an error, what was decoded last is not given
// out: it may come from beyond the input's end.
func (z *gunzip) decode() error {
	for z.o < len(z.win)-outputSlack {
		err := z.step()
		if err == io.EOF { //nolint:errorlint // step's own, and only here
			return err
		}
		if short := z.overrun(); short != nil {
			err = short // whatever was found there
		}
		if err != nil {
			z.o = z.r
			return err
		}
	}
	z.add()
	return nil
}

// add takes what was decoded into the checksum.
func (z *gunzip) add() {
	z.sum = crc32.Update(z.sum, crc32.IEEETable, z.win[z.summed:z.o])
	z.size += uint32(z.o - z.summed)
	z.summed = z.o
}

func (z *gunzip) step() error {
	switch z.state {
	case atMember:
		return z.member()
	case atBlock:
		return z.block()
	case inStored:
		return z.copyStored()
	case inHuffman:
		return z.inflate()
	case atTrailer:
		return z.trailer()
	}
	return nil
}

// member reads a member's header; io.EOF when there is none.
func (z *gunzip) member() error {
	if z.pos >= z.end {
		if err := z.fetch(); err != nil {
			return err
		}
		if z.pos >= z.end {
			return io.EOF
		}
	}
	h := &gzipHeader{z: z}
	magic, method, flags := h.take(2), h.take(1), h.take(1)
	h.take(6) // time, extra flags, system
	if h.err == nil && (magic != gzipMagic || method != gzipDeflate) {
		return errGzipHeader
	}
	if flags&gzipExtra != 0 {
		for left := h.take(2); left > 0 && h.err == nil; left-- {
			h.take(1)
		}
	}
	for _, flag := range []uint64{gzipName, gzipComment} {
		if flags&flag != 0 {
			h.text()
		}
	}
	if flags&gzipHeaderCRC != 0 {
		want := uint64(h.sum & 0xffff)
		if got := h.take(2); h.err == nil && got != want {
			return errGzipHeader
		}
	}
	z.state, z.start, z.summed, z.sum, z.size = atBlock, z.o, z.o, 0, 0
	return h.err
}

// gzipHeader reads a header's fields up to the first error.
type gzipHeader struct {
	z   *gunzip
	sum uint32
	err error
}

// take returns a number of bytes, the lowest first.
func (h *gzipHeader) take(count uint) (v uint64) {
	for i := uint(0); i < count && h.err == nil; i++ {
		var b uint64
		b, h.err = h.z.take(8)
		h.sum = crc32.Update(h.sum, crc32.IEEETable, []byte{byte(b)})
		v |= b << (8 * i)
	}
	return v
}

// text skips a name or comment.
func (h *gzipHeader) text() {
	for range maxGzipText {
		if h.take(1) == 0 || h.err != nil {
			return
		}
	}
	h.err = errGzipHeader
}

// trailer checks a member's checksum and size.
func (z *gunzip) trailer() error {
	z.align()
	sum, err := z.take(32)
	if err != nil {
		return err
	}
	size, err := z.take(32)
	if err != nil {
		return err
	}
	if err := z.overrun(); err != nil {
		return err
	}
	z.add()
	if uint32(sum) != z.sum || uint32(size) != z.size {
		return errGzipSum
	}
	z.align()
	z.state = atMember
	return nil
}

// fetch reads more input; nothing more at its end.
func (z *gunzip) fetch() error {
	if z.eof {
		if z.pos > z.limit {
			return io.ErrUnexpectedEOF
		}
		return nil
	}
	z.pos -= int(z.n >> 3) // whole bytes go back to where align may want them
	z.n &= 7
	z.bits &= 1<<z.n - 1
	z.end = copy(z.in, z.in[z.pos:z.end])
	z.pos = 0
	for z.end < 2*wordSize && !z.eof {
		n, err := z.source.Read(z.in[z.end : len(z.in)-inputPadding])
		z.end += n
		if errors.Is(err, io.EOF) {
			z.eof = true
		} else if err != nil {
			return err
		}
	}
	z.limit = z.end - wordSize
	if z.eof {
		clear(z.in[z.end : z.end+inputPadding])
		z.limit += inputPadding
	}
	return nil
}

// overrun tells whether more was decoded than there is.
func (z *gunzip) overrun() error {
	if z.eof && z.pos-int(z.n>>3) > z.end {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// take returns the next bits, at most 32.
func (z *gunzip) take(count uint) (uint64, error) {
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
	v := z.bits & (1<<count - 1)
	z.bits >>= count
	z.n -= count
	return v, z.overrun()
}

// align drops the rest of a byte and gives whole bytes back to the input.
func (z *gunzip) align() {
	z.pos -= int(z.n >> 3)
	z.bits, z.n = 0, 0
}

// corrupt is an error of the compressed data.
func corrupt(what string) error { return fmt.Errorf("gzip: corrupt data: %s", what) }
