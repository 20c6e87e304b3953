package imageservice

import (
	"crypto/rand"
	"os"
	"strconv"
	"strings"
)

// recordInodes are a record's directory and its three files.
const recordInodes = 4

// Usage returns what the images take on the disk, from the records alone: no
// directory is walked.
func (s *Store) Usage() (Usage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Usage{}, ErrClosed
	}
	u := Usage{Path: s.config.Root}
	for _, l := range s.layers {
		u.Bytes += l.Bytes
		u.Inodes += l.Inodes
	}
	for _, e := range s.images {
		u.Bytes += e.size
		u.Inodes += recordInodes
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
