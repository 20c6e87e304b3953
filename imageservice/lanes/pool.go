package lanes

import (
	"bytes"
	"crypto/fips140"
	"crypto/sha256"
	"encoding"
	"hash"
	"runtime"
	"slices"
	"sync"
)

const (
	width = 8        // lanes of a vector
	step  = 32 << 10 // bytes of each lane between two looks at who has come
)

// Pool is what streams share. Its methods may be called at once, and those of
// different streams too.
type Pool struct {
	leaders int // how many may hash at a time; 0: every stream is alone

	mu      sync.Mutex
	leading int
	waiting []*Stream // the first one came first
}

// New makes a pool. Half of the processors hash: as long as these keep up,
// streams need not share one.
func New() *Pool {
	p := &Pool{leaders: max(1, runtime.GOMAXPROCS(0)/2)}
	if !supported() || fips140.Enabled() || !p.works() {
		p.leaders = 0
	}
	return p
}

// Hash returns the SHA-256 of a new stream. Its Write returns when all is
// hashed.
func (p *Pool) Hash() hash.Hash {
	if p.leaders == 0 {
		return sha256.New()
	}
	return newStream(p)
}

// works tries whether this package understands the state of crypto/sha256 and
// brings the same results.
func (p *Pool) works() bool {
	data := bytes.Repeat([]byte("lanes"), blockSize)
	want := sha256.Sum256(data)
	if b, err := sha256.New().(encoding.BinaryAppender).AppendBinary(nil); err != nil || len(b) != marshaled {
		return false
	}
	var all [width]*Stream
	for i := range all {
		all[i] = newStream(p)
		all[i].data = data
	}
	advance(all[:])
	for _, s := range all {
		s.leave()
		if !bytes.Equal(s.Sum(nil), want[:]) {
			return false
		}
	}
	return true
}

// turn is what a stream that waits is told.
type turn bool

const (
	done turn = false
	lead turn = true
)

// hash hashes the stream's data, or another stream that does so already takes
// it along.
func (p *Pool) hash(s *Stream, data []byte) {
	s.data = data
	p.mu.Lock()
	wait := p.leading == p.leaders
	if wait {
		p.waiting = append(p.waiting, s)
	} else {
		p.leading++
	}
	p.mu.Unlock()
	if wait && <-s.told == done {
		return
	}
	p.lead(s)
}

// lead hashes until the leader's own data is done. What is left of the others'
// is for the next leader.
func (p *Pool) lead(s *Stream) {
	lanes := append(make([]*Stream, 0, width), s)
	for len(s.data) > 0 {
		lanes = p.gather(lanes)
		advance(lanes)
		lanes = slices.DeleteFunc(lanes, func(l *Stream) bool {
			if len(l.data) > 0 {
				return false
			}
			if l != s {
				l.told <- done
			}
			return true
		})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = slices.Insert(p.waiting, 0, lanes...)
	if len(p.waiting) == 0 {
		p.leading--
		return
	}
	next := p.waiting[0]
	p.waiting = slices.Delete(p.waiting, 0, 1)
	next.told <- lead
}

// gather fills the lanes that are free. Whoever else can run goes first, as
// long as that brings data for one: nobody waits for what has not come.
func (p *Pool) gather(lanes []*Stream) []*Stream {
	for {
		runtime.Gosched()
		p.mu.Lock()
		n := min(width-len(lanes), len(p.waiting))
		lanes = append(lanes, p.waiting[:n]...)
		p.waiting = slices.Delete(p.waiting, 0, n)
		p.mu.Unlock()
		if n == 0 || len(lanes) == width {
			return lanes
		}
	}
}

// advance hashes the same number of blocks of each lane.
func advance(lanes []*Stream) {
	n := step
	for _, l := range lanes {
		n = min(n, len(l.data))
	}
	if len(lanes) == 1 {
		lanes[0].alone(n)
		return
	}
	var states [8][width]uint32
	var data [width]*byte
	for i := range data {
		l := lanes[min(i, len(lanes)-1)] // a lane without a stream does the last one's work again
		l.enter()
		data[i] = &l.data[0]
		for word, v := range l.state {
			states[word][i] = v
		}
	}
	blocks(&states, &data, n/blockSize)
	for i, l := range lanes {
		for word := range l.state {
			l.state[word] = states[word][i]
		}
		l.data = l.data[n:]
		l.size += uint64(n)
	}
}
