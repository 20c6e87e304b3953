package seccomp

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxCached is how many results of each kind a Cache keeps: clusters use a
// handful of profiles and sets of capabilities.
const maxCached = 64

// Cache keeps resolved profiles and compiled filters. What it returns is
// shared and must not be changed. The zero value is ready; all methods may be
// called at once. Errors are not kept.
type Cache struct {
	mu       sync.Mutex
	profiles map[string]*specs.LinuxSeccomp
	filters  map[[sha256.Size]byte]*Filter
	known    map[given]*Filter
}

// given is a profile that a Cache returned, and so one that does not change.
type given struct {
	profile *specs.LinuxSeccomp
	arch    string
}

// Default is the function Default, remembered.
func (c *Cache) Default(caps []string, kernel KernelVersion) (*specs.LinuxSeccomp, error) {
	return c.profile("default"+conditions(caps, kernel), func() (*specs.LinuxSeccomp, error) {
		return Default(caps, kernel)
	})
}

// LoadProfile is the function LoadProfile, remembered by the contents of data.
func (c *Cache) LoadProfile(data []byte, caps []string, kernel KernelVersion) (*specs.LinuxSeccomp, error) {
	if len(data) > MaxProfileBytes { // not worth a hash
		return LoadProfile(data, caps, kernel)
	}
	sum := sha256.Sum256(data)
	return c.profile(string(sum[:])+conditions(caps, kernel), func() (*specs.LinuxSeccomp, error) {
		return LoadProfile(data, caps, kernel)
	})
}

// Compile is the function Compile, remembered by the contents of the profile.
func (c *Cache) Compile(profile *specs.LinuxSeccomp, arch string) (*Filter, error) {
	if profile == nil {
		return Compile(profile, arch)
	}
	name := given{profile, arch}
	c.mu.Lock()
	f := c.known[name]
	c.mu.Unlock()
	if f != nil {
		return f, nil
	}
	key := contents(profile, arch)
	c.mu.Lock()
	f = c.filters[key]
	c.mu.Unlock()
	var err error
	if f == nil {
		f, err = Compile(profile, arch)
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.filters == nil || len(c.filters) >= maxCached {
		c.filters = map[[sha256.Size]byte]*Filter{}
	}
	c.filters[key] = f
	if c.isOwn(profile) {
		c.known[name] = f
	}
	return f, nil
}

// isOwn tells whether the profile is one that c keeps; c.mu is held.
func (c *Cache) isOwn(profile *specs.LinuxSeccomp) bool {
	for _, p := range c.profiles {
		if p == profile {
			return true
		}
	}
	return false
}

func (c *Cache) profile(key string, load func() (*specs.LinuxSeccomp, error)) (*specs.LinuxSeccomp, error) {
	c.mu.Lock()
	p := c.profiles[key]
	c.mu.Unlock()
	if p != nil {
		return p, nil
	}
	p, err := load()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.profiles == nil || len(c.profiles) >= maxCached {
		c.profiles, c.known = map[string]*specs.LinuxSeccomp{}, map[given]*Filter{}
	}
	c.profiles[key] = p
	return p, nil
}

// conditions is a key of what profiles depend on.
func conditions(caps []string, kernel KernelVersion) string {
	sorted := slices.Clone(caps)
	slices.Sort(sorted)
	return fmt.Sprintf(" %d.%d %s", kernel.Version, kernel.Patchlevel, strings.Join(slices.Compact(sorted), " "))
}

// contents is a hash of everything that Compile depends on. Every list and
// string is preceded by its length, so that no two profiles are written alike.
func contents(p *specs.LinuxSeccomp, arch string) (sum [sha256.Size]byte) {
	w := writer{sha256.New(), make([]byte, 0, 8192)}
	w.text(arch)
	w.text(string(p.DefaultAction))
	w.errno(p.DefaultErrnoRet)
	w.number(uint64(len(p.Architectures)))
	for _, a := range p.Architectures {
		w.text(string(a))
	}
	if p.Flags == nil { // differs from an empty list
		w.number(1 << 32)
	}
	w.number(uint64(len(p.Flags)))
	for _, f := range p.Flags {
		w.text(string(f))
	}
	w.number(uint64(len(p.Syscalls)))
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		w.text(string(s.Action))
		w.errno(s.ErrnoRet)
		w.number(uint64(len(s.Names)))
		for _, n := range s.Names {
			w.text(n)
		}
		w.number(uint64(len(s.Args)))
		for _, a := range s.Args {
			w.number(uint64(a.Index))
			w.number(a.Value)
			w.number(a.ValueTwo)
			w.text(string(a.Op))
		}
	}
	w.flush()
	w.hash.Sum(sum[:0])
	return sum
}

// writer hashes in large pieces.
type writer struct {
	hash   hash.Hash
	buffer []byte
}

func (w *writer) flush() {
	w.hash.Write(w.buffer)
	w.buffer = w.buffer[:0]
}

func (w *writer) number(n uint64) {
	w.buffer = binary.AppendUvarint(w.buffer, n)
	if len(w.buffer) > 4096 {
		w.flush()
	}
}

func (w *writer) text(s string) {
	w.number(uint64(len(s)))
	w.buffer = append(w.buffer, s...)
}

func (w *writer) errno(e *uint) {
	if e == nil {
		w.number(0)
		return
	}
	w.number(1)
	w.number(uint64(*e))
}
