package lanes

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"fmt"
	"hash"
)

const blockSize = sha256.BlockSize

// What crypto/sha256 marshals: its name, the state, the bytes of a block that
// is not whole, how much was written.
const (
	stateOffset = 4
	restOffset  = stateOffset + sha256.Size
	sizeOffset  = restOffset + blockSize
	marshaled   = sizeOffset + 8
)

// Stream is one digest. Between two Writes its state is in single.
type Stream struct {
	pool   *Pool
	single hash.Hash // of crypto/sha256
	size   uint64

	data   []byte // whole blocks that are being hashed
	state  [8]uint32
	inLane bool      // state is newer than single
	told   chan turn // what becomes of data, when another stream leads
	buf    [marshaled]byte
}

func newStream(p *Pool) *Stream {
	return &Stream{pool: p, single: sha256.New(), told: make(chan turn, 1)}
}

// Reset forgets all that was written.
func (s *Stream) Reset() {
	s.single.Reset()
	s.size = 0
}

// Size is that of the digest.
func (s *Stream) Size() int { return sha256.Size }

// BlockSize is SHA-256's.
func (s *Stream) BlockSize() int { return blockSize }

// Sum appends the digest of what was written up to now.
func (s *Stream) Sum(b []byte) []byte { return s.single.Sum(b) }

// Write never fails.
func (s *Stream) Write(p []byte) (int, error) {
	written := len(p)
	if begun := int(s.size % blockSize); begun > 0 {
		n := min(blockSize-begun, len(p))
		s.add(p[:n])
		p = p[n:]
	}
	if whole := len(p) &^ (blockSize - 1); whole > 0 {
		s.pool.hash(s, p[:whole])
		s.leave()
		p = p[whole:]
	}
	s.add(p)
	return written, nil
}

func (s *Stream) add(p []byte) {
	_, _ = s.single.Write(p) // never fails
	s.size += uint64(len(p))
}

// alone hashes the next n bytes of the data as crypto/sha256 does.
func (s *Stream) alone(n int) {
	s.leave()
	s.add(s.data[:n])
	s.data = s.data[n:]
}

// enter moves the state into a lane.
func (s *Stream) enter() {
	if s.inLane {
		return
	}
	s.inLane = true
	b, err := s.single.(encoding.BinaryAppender).AppendBinary(s.buf[:0])
	if err != nil || len(b) != marshaled {
		panic(fmt.Sprintf("state of SHA-256: %d bytes, error %v", len(b), err)) // New has tried it
	}
	for i := range s.state {
		s.state[i] = binary.BigEndian.Uint32(b[stateOffset+4*i:])
	}
}

// leave moves it back.
func (s *Stream) leave() {
	if !s.inLane {
		return
	}
	s.inLane = false
	for i, v := range s.state {
		binary.BigEndian.PutUint32(s.buf[stateOffset+4*i:], v)
	}
	binary.BigEndian.PutUint64(s.buf[sizeOffset:], s.size)
	if err := s.single.(encoding.BinaryUnmarshaler).UnmarshalBinary(s.buf[:]); err != nil {
		panic("state of SHA-256: " + err.Error()) // it is what enter got
	}
}
