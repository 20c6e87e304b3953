package lanes

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
)

// pool returns one of lanes, with as many leaders.
func pool(t testing.TB, leaders int) *Pool {
	t.Helper()
	if !supported() {
		t.Skip("this processor has SHA-256 of its own, or no AVX-512")
	}
	p := New()
	if p.leaders == 0 {
		t.Fatal("this processor has lanes, and they do not work")
	}
	p.leaders = leaders
	return p
}

// writeSplit writes data in random parts.
func writeSplit(h hash.Hash, data []byte, random *rand.Rand) {
	for len(data) > 0 {
		n := min(len(data), 1+random.IntN(1<<random.IntN(18)))
		_, _ = h.Write(data[:n])
		data = data[n:]
	}
}

// TestStreams hashes many streams of random lengths in random parts at once.
func TestStreams(t *testing.T) {
	for _, leaders := range []int{1, 2, 4} {
		for _, streams := range []int{1, 2, 3, 7, 8, 9, 40} {
			t.Run(fmt.Sprint(leaders, " leaders ", streams, " streams"), func(t *testing.T) {
				p := pool(t, leaders)
				var group sync.WaitGroup
				for i := range streams {
					group.Go(func() {
						random := rand.New(rand.NewPCG(uint64(i), uint64(streams)))
						data := make([]byte, random.IntN(1<<20))
						for j := range data {
							data[j] = byte(random.Uint32())
						}
						h := p.Hash()
						for range 2 {
							h.Reset()
							half := random.IntN(len(data) + 1)
							writeSplit(h, data[:half], random)
							if want := sha256.Sum256(data[:half]); !bytes.Equal(h.Sum(nil), want[:]) {
								t.Errorf("stream %d: wrong in the middle", i)
							}
							writeSplit(h, data[half:], random)
							if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
								t.Errorf("stream %d: wrong", i)
							}
						}
					})
				}
				group.Wait()
				if p.leading != 0 || len(p.waiting) != 0 {
					t.Errorf("%d lead, %d wait at the end", p.leading, len(p.waiting))
				}
			})
		}
	}
}

// TestIdleStreams sees that nobody waits for streams that bring nothing.
func TestIdleStreams(t *testing.T) {
	p := pool(t, 1)
	var idle []hash.Hash
	for range 3 * width {
		h := p.Hash()
		_, _ = h.Write(make([]byte, blockSize+1)) // and never again
		idle = append(idle, h)
	}
	data := make([]byte, 3*step+1)
	h := p.Hash()
	_, _ = h.Write(data)
	if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
		t.Error("wrong")
	}
	want := sha256.Sum256(make([]byte, blockSize+1))
	for _, h := range idle {
		if !bytes.Equal(h.Sum(nil), want[:]) {
			t.Error("an idle stream is wrong")
		}
	}
}

// TestFallback sees that without lanes each stream is crypto/sha256's.
func TestFallback(t *testing.T) {
	h := (&Pool{}).Hash()
	if _, ok := h.(*Stream); ok {
		t.Error("a pool without leaders has a stream of its own")
	}
	_, _ = h.Write([]byte("x"))
	if want := sha256.Sum256([]byte("x")); !bytes.Equal(h.Sum(nil), want[:]) {
		t.Error("wrong")
	}
}

// FuzzStreams takes each two bytes as a stream and the length of what is
// written next; a third byte decides whether that begins beside others.
func FuzzStreams(f *testing.F) {
	f.Add([]byte{0, 64, 0, 1, 65, 1, 2, 255, 0})
	f.Add([]byte{0, 63, 0, 0, 1, 1, 1, 128, 1, 1, 129, 1, 2, 200, 1})
	f.Fuzz(func(t *testing.T, program []byte) {
		p := pool(t, 1)
		random := rand.New(rand.NewPCG(uint64(len(program)), 1))
		var lanes, alone [2 * width]hash.Hash
		var last [2 * width]sync.WaitGroup // a stream's writes follow each other
		for i := range lanes {
			lanes[i], alone[i] = p.Hash(), sha256.New()
		}
		for ; len(program) >= 3; program = program[3:] {
			i := int(program[0]) % len(lanes)
			data := make([]byte, int(program[1])*int(program[1]))
			for j := range data {
				data[j] = byte(random.Uint32())
			}
			last[i].Wait()
			_, _ = alone[i].Write(data)
			last[i].Go(func() { _, _ = lanes[i].Write(data) })
			if program[2]%2 == 0 {
				last[i].Wait()
			}
		}
		for i := range lanes {
			last[i].Wait()
			if !bytes.Equal(lanes[i].Sum(nil), alone[i].Sum(nil)) {
				t.Errorf("stream %d is wrong", i)
			}
		}
	})
}

func cpuTime() float64 {
	var r syscall.Rusage
	_ = syscall.Getrusage(0, &r)
	return float64(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkStreams hashes streams at once; what counts is the processor time.
func BenchmarkStreams(b *testing.B) {
	const size = 256 << 10
	for _, streams := range []int{1, 2, 3, 4, 8, 12} {
		for name, p := range map[string]*Pool{"alone": {}, "lanes": pool(b, 1)} {
			b.Run(fmt.Sprint(streams, " ", name), func(b *testing.B) {
				data := make([]byte, size)
				b.SetBytes(int64(streams * size))
				begin := cpuTime()
				var group sync.WaitGroup
				for range streams {
					group.Go(func() {
						h := p.Hash()
						for range b.N {
							_, _ = h.Write(data)
						}
					})
				}
				group.Wait()
				b.ReportMetric((cpuTime()-begin)/float64(streams*size*b.N), "cpu-ns/B")
			})
		}
	}
}
