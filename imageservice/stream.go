package imageservice

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

const (
	chunkSize    = 256 << 10
	chunksAhead  = 6         // of each read-ahead
	maxWindow    = 128 << 20 // of zstd: memory that an archive may ask for
	magicLength  = 4
	sourceBuffer = 64 << 10
)

// verifier counts what is read through it. Whoever reads hands it to add for
// the digest, which takes longer than the reading.
type verifier struct {
	source io.Reader
	want   digest.Digest
	hash   hash.Hash // nil: somebody else verifies it
	limit  int64     // bytes, beyond which Read fails
	size   int64
	what   string
}

func (s *Store) newVerifier(source io.Reader, want digest.Digest, limit int64, what string) *verifier {
	v := &verifier{source: source, want: want, limit: limit, what: what}
	if want.Algorithm() == digest.SHA256 {
		v.hash = s.hashes.Hash()
	} else {
		v.hash = want.Algorithm().Hash()
	}
	return v
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.source.Read(p)
	v.size += int64(n)
	if v.size > v.limit {
		return 0, fmt.Errorf("%w: %s of more than %d bytes", ErrTooLarge, v.what, v.limit)
	}
	return n, err
}

// add takes the next bytes that were read into the digest.
func (v *verifier) add(p []byte) {
	if v.hash != nil {
		v.hash.Write(p)
	}
}

// verify is called when all is read and added.
func (v *verifier) verify() error {
	if v.hash == nil {
		return nil
	}
	got := digest.NewDigest(v.want.Algorithm(), v.hash)
	if got != v.want {
		return fmt.Errorf("%w: %s is %s, got %s", ErrDigestMismatch, v.what, v.want, got)
	}
	return nil
}

// readAhead reads a source in a goroutine of its own, a few chunks ahead, and
// hashes it in another, so that each stage of a stream has its own processor.
type readAhead struct {
	read chan chunk // not yet hashed
	full chan chunk
	free chan *[chunkSize]byte
	stop chan struct{}
	done chan struct{}
	pool *sync.Pool

	current chunk
	rest    []byte
}

type chunk struct {
	buf *[chunkSize]byte
	n   int
	err error
}

// newReadAhead starts reading. The caller closes it, and before that makes
// sure that a Read of the source that hangs will end.
func newReadAhead(source *verifier, pool *sync.Pool) *readAhead {
	r := &readAhead{
		read: make(chan chunk, chunksAhead),
		full: make(chan chunk, chunksAhead),
		free: make(chan *[chunkSize]byte, chunksAhead),
		stop: make(chan struct{}),
		done: make(chan struct{}),
		pool: pool,
	}
	for range chunksAhead {
		r.free <- nil // taken from the pool when it is needed
	}
	go r.run(source)
	go r.hash(source)
	return r
}

// hash adds what was read to the digest before it is given out: at the end of
// the source all of it is added.
func (r *readAhead) hash(source *verifier) {
	defer close(r.done)
	defer close(r.full)
	for c := range r.read {
		source.add(c.buf[:c.n])
		r.full <- c // never blocks: there are as many places as buffers
	}
}

func (r *readAhead) run(source io.Reader) {
	defer close(r.read)
	for {
		var c chunk
		select {
		case c.buf = <-r.free:
		case <-r.stop:
			return
		}
		if c.buf == nil {
			c.buf, _ = r.pool.Get().(*[chunkSize]byte)
		}
		c.n, c.err = fill(source, c.buf[:])
		r.read <- c // never blocks either
		if c.err != nil {
			return
		}
	}
}

// fill reads until p is full or the source ends. A slow source is passed on in
// whole chunks too; only at the end of a stream would anyone wait for less.
func fill(source io.Reader, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, err := source.Read(p[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (r *readAhead) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.current.err != nil {
			return 0, r.current.err
		}
		if r.current.buf != nil {
			r.free <- r.current.buf
		}
		r.current = <-r.full
		r.rest = r.current.buf[:r.current.n]
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// close waits for the goroutines and gives the buffers back.
func (r *readAhead) close() {
	close(r.stop)
	<-r.done
	if r.current.buf != nil {
		r.pool.Put(r.current.buf)
	}
	for c := range r.full {
		r.pool.Put(c.buf)
	}
	close(r.free)
	for buf := range r.free {
		if buf != nil {
			r.pool.Put(buf)
		}
	}
	r.current, r.rest = chunk{err: io.ErrClosedPipe}, nil
}

// decompressor reads the archive in a blob. It tells an error of the blob's
// source from one of its content.
type decompressor struct {
	source io.Reader
	failed error // of source
	plain  io.Reader
	stored bool // the blob is the archive itself, whatever it begins with
	close  func()
}

// sourceReader remembers the error that ended the source.
type sourceReader struct{ d *decompressor }

func (r sourceReader) Read(p []byte) (int, error) {
	n, err := r.d.source.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.d.failed = err
	}
	return n, err
}

func (d *decompressor) Read(p []byte) (int, error) {
	if d.plain == nil {
		if err := d.open(); err != nil {
			return 0, d.judge(err)
		}
	}
	n, err := d.plain.Read(p)
	return n, d.judge(err)
}

func (d *decompressor) judge(err error) error {
	switch {
	case err == nil || err == io.EOF: //nolint:errorlint // a reader's own end is not wrapped
		return err
	case d.failed != nil:
		return d.failed
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	}
	return fmt.Errorf("%w: %w", ErrMalformedLayer, err)
}

// open goes by the first bytes, not by the media type: some registries hold
// gzip under a plain type and the other way round, and the diffID decides in
// the end.
func (d *decompressor) open() error {
	source := bufio.NewReaderSize(sourceReader{d}, sourceBuffer)
	magic, err := source.Peek(magicLength)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch {
	case d.stored:
		d.plain = source
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		d.plain = newGunzip(source)
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), skippable(magic):
		z, err := zstd.NewReader(source, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return err
		}
		d.plain, d.close = z, z.Close
	default:
		d.plain = source
	}
	return nil
}

// Close frees what the decompressor holds.
func (d *decompressor) Close() {
	if d.close != nil {
		d.close()
	}
}

// skippable is a zstd frame with metadata, which some builders put first.
func skippable(magic []byte) bool {
	return len(magic) == magicLength && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18})
}
