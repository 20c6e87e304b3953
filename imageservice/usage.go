package imageservice

import (
	"context"
	"crypto/rand"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	quickCount = 20 * time.Millisecond // a count that took no longer is done each time
	countShare = 50                    // one that took longer serves so many times as long
)

// smallParts is what records/ and ingest/ take. Both are small but for layers under
// way and those that are being removed.
type smallParts struct {
	mu            sync.Mutex // held while it is counted
	bytes, inodes uint64
	at            time.Time
	took          time.Duration
}

func (s *Store) count() (bytes, inodes uint64) {
	c := &s.small
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.took > quickCount && time.Since(c.at) < countShare*c.took {
		return c.bytes, c.inodes
	}
	start := time.Now()
	buf, _ := s.buffers.Get().(*[chunkSize]byte)
	defer s.buffers.Put(buf)
	c.bytes, c.inodes = 0, 0
	for _, dir := range []string{"records", "ingest"} {
		scan := &scan{
			ctx: context.Background(), buf: buf[:], sizes: true,
			visit:  func(*listed) error { return nil },
			failed: func(string, error) error { return nil }, // gone meanwhile
		}
		_ = scan.run(s.path(dir)) // nothing in it fails
		c.bytes += scan.bytes
		c.inodes += scan.inodes
	}
	c.at, c.took = time.Now(), time.Since(start)
	return c.bytes, c.inodes
}

// Usage returns what the store takes on the disk, as du counts it: layers by
// what was counted when they were unpacked, so that none is walked, and the rest.
func (s *Store) Usage() (Usage, error) {
	bytes, inodes := s.count()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Usage{}, ErrClosed
	}
	const others = 3 // the root, layers/ and the lock, which is empty
	u := Usage{Path: s.config.Root, Bytes: bytes + (others-1)*s.block, Inodes: inodes + others}
	for _, l := range s.layers {
		u.Bytes += l.Bytes
		u.Inodes += l.Inodes
	}
	return u, nil
}

// processUmask returns the umask, or all bits if it cannot be learned: it is
// only used to save a chmod.
func processUmask() uint32 {
	const unknown = 0o777
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return unknown
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "Umask:"); ok {
			if n, err := strconv.ParseUint(strings.TrimSpace(text), 8, 32); err == nil {
				return uint32(n)
			}
		}
	}
	return unknown
}

func randomName() string { return strings.ToLower(rand.Text()) }
