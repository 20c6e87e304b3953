package imageservice

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// maxLookahead is how much of a layer that cannot be unpacked is still read to
// tell a damaged download from a malformed layer.
const maxLookahead = 64 << 20

// layer is one layer that a pull wants.
type layer struct {
	blob   ocispec.Descriptor
	diffID digest.Digest
	meter  *meter
	title  string // the blob is this file, not an archive
	loose  bool   // no diffID was promised: the blob's digest alone verifies it
}

// key names the layer among the downloads under way.
func (l layer) key() string { return l.blob.Digest.String() + " " + l.diffID.String() }

// ensure sees that a layer is on the disk. Pulls that want the same at once
// share the download; if that fails for the one who started it, each of the
// others tries with its own registry and credentials. The caller has pinned
// the layer.
func (s *Store) ensure(ctx context.Context, sess *session, l layer) (err error) {
	meter, measured := sess.progress.measure(l)
	l.meter = meter
	downloaded := false
	defer func() { measured(!downloaded, err) }()
	for {
		if s.has(l.diffID) {
			return nil
		}
		downloaded = true
		_, joined, err := s.downloads.do(ctx, l.key(),
			func(ctx context.Context) (struct{}, error) {
				return struct{}{}, s.download(ctx, sess, l)
			})
		if err == nil || !joined || ctx.Err() != nil {
			return err
		}
	}
}

// has tells whether a layer is on the disk. One that somebody deleted behind
// our back is forgotten, and the images that have it are damaged.
func (s *Store) has(diffID digest.Digest) bool {
	if s.intact(diffID) {
		return true
	}
	s.disk.Lock()
	defer s.disk.Unlock()
	if s.intact(diffID) {
		return true // another pull was faster
	}
	s.mu.Lock()
	_, known := s.layers[diffID]
	delete(s.layers, diffID)
	for _, e := range s.images {
		if known && slices.Contains(e.record.Layers, diffID) {
			s.present(e)
		}
	}
	s.mu.Unlock()
	if known {
		_ = s.discard(s.layerPath(diffID)) // or the next download of it complains
	}
	return false
}

func (s *Store) intact(diffID digest.Digest) bool {
	s.mu.Lock()
	known := s.layers[diffID] != nil
	s.mu.Unlock()
	if !known {
		return false
	}
	_, err := readLayer(s.layerPath(diffID))
	return err == nil
}

// discard removes what is left of a directory of ours, if anything.
func (s *Store) discard(path string) error {
	trash := s.ingestPath()
	if err := os.Rename(path, trash); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	return s.remove(trash)
}

// download brings one layer from the registry into its place.
func (s *Store) download(ctx context.Context, sess *session, l layer) (err error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.has(l.diffID) {
		return nil // another blob had the same content
	}
	dir := s.ingestPath()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	fault.Point("layer.directory.made")
	defer func() {
		l.meter.finish(err)
		if err != nil {
			err = errors.Join(err, s.remove(dir))
		}
	}()
	record, err := s.stream(ctx, sess, l, filepath.Join(dir, diffDir))
	if err != nil {
		return err
	}
	fault.Point("layer.unpacked")
	record.DiffID, record.Blob, record.Size = l.diffID, l.blob.Digest, l.blob.Size
	content, err := ledger.Marshal(record)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, layerFile), content, 0o600); err != nil {
		return err
	}
	fault.Point("layer.recorded")
	return s.settle(ctx, dir, record)
}

// settle gives a layer its name. It is durable with the record of the first
// image that has it.
func (s *Store) settle(ctx context.Context, dir string, record *layerRecord) error {
	s.disk.Lock()
	defer s.disk.Unlock()
	s.mu.Lock()
	known := s.layers[record.DiffID] != nil
	s.mu.Unlock()
	if known {
		return s.remove(dir)
	}
	if err := s.place(ctx, dir, record); err != nil {
		return err
	}
	fault.Point("layer.renamed")
	s.mu.Lock()
	s.layers[record.DiffID] = record
	s.orphans = slices.DeleteFunc(s.orphans, func(name string) bool { return name == record.DiffID.Encoded() })
	s.mu.Unlock()
	return nil
}

// place moves a layer to where it belongs. The caller holds disk.
func (s *Store) place(ctx context.Context, dir string, record *layerRecord) error {
	if s.orphan(record.DiffID) {
		return s.claim(ctx, dir, record)
	}
	// Only what is left of a layer that was deleted by hand can be here.
	if err := s.discard(s.layerPath(record.DiffID)); err != nil {
		return err
	}
	return os.Rename(dir, s.layerPath(record.DiffID))
}

// stream downloads, verifies, decompresses and unpacks a layer into diff, in
// five goroutines: one reads the network, one decompresses, two hash what these
// bring, this one unpacks.
func (s *Store) stream(ctx context.Context, sess *session, l layer, diff string) (record *layerRecord, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err = sess.blob(ctx, l.blob, func(blob *blobReader) (err error) {
		// An earlier host's attempt may have left something.
		dir := filepath.Dir(diff)
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700), makeDiff(diff)); err != nil {
			return err
		}
		l.meter.start()
		record, err = s.streamBlob(blob, l, diff)
		return err
	})
	return record, err
}

// streamBlob is one attempt of stream.
func (s *Store) streamBlob(blob *blobReader, l layer, diff string) (*layerRecord, error) {
	ctx, cancel := context.WithCancel(blob.ctx)
	blob.ctx = ctx
	compressed := s.newVerifier(l.meter.arriving(blob), l.blob.Digest, math.MaxInt64, "blob")
	download := newReadAhead(compressed, &s.buffers)
	defer func() {
		cancel() // ends a Read that hangs
		download.close()
	}()
	record, err := s.unpackBlob(ctx, download, l, diff)
	if err != nil {
		return nil, s.blame(err, download, compressed)
	}
	if _, err := io.Copy(io.Discard, download); err != nil {
		return nil, err
	}
	if err := compressed.verify(); err != nil {
		return nil, wrongBlob{err}
	}
	return record, nil
}

// blame finds the true reason why a layer could not be unpacked: if the blob
// is not what its digest says, that is it.
func (s *Store) blame(err error, download io.Reader, compressed *verifier) error {
	var wrong wrongBlob
	if errors.As(err, &wrong) || !errors.Is(err, ErrMalformedLayer) && !errors.Is(err, ErrDigestMismatch) && !errors.Is(err, ErrTooLarge) {
		return err
	}
	n, readErr := io.CopyN(io.Discard, download, maxLookahead)
	if n == maxLookahead {
		return wrongBlob{err} // perhaps
	}
	if !errors.Is(readErr, io.EOF) {
		return readErr
	}
	if mismatch := compressed.verify(); mismatch != nil {
		return wrongBlob{mismatch}
	}
	return err
}

// unpackBlob unpacks a blob and verifies what was in it.
func (s *Store) unpackBlob(ctx context.Context, download io.Reader, l layer, diff string) (*layerRecord, error) {
	plain := &decompressor{source: download}
	content := s.newVerifier(l.meter.unpacking(plain), l.diffID, s.limits.bytes, "content")
	if l.title != "" {
		archive, err := archived(l.title, l.blob.Size, download)
		if err != nil {
			return nil, err
		}
		plain.source, plain.stored = archive, true
	}
	if l.loose {
		content.hash = nil
	}
	if l.diffID == l.blob.Digest {
		// Hashing is half the work of a plain layer, and stream does it already.
		plain.stored, content.hash = true, nil
	}
	archive := newReadAhead(content, &s.buffers)
	defer func() {
		archive.close()
		plain.Close()
	}()
	buf, _ := s.buffers.Get().(*[chunkSize]byte)
	defer s.buffers.Put(buf)
	u, err := newUnpacker(diff, s, buf[:])
	if err != nil {
		return nil, err
	}
	defer u.close()
	record, err := u.unpack(ctx, archive)
	if err != nil {
		return nil, err
	}
	// What follows the archive's end belongs to the digests too.
	if _, err := io.Copy(io.Discard, archive); err != nil {
		return nil, err
	}
	if err := content.verify(); err != nil {
		return nil, err
	}
	return record, s.listLayer(ctx, filepath.Dir(diff), record, &u.contents)
}

// makeDiff makes the directory that a layer is unpacked into, as root's own
// whatever the directories above it pass on.
func makeDiff(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 0, 0); err != nil {
			return err
		}
	}
	return os.Chmod(path, 0o755)
}
