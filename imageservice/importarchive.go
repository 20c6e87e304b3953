package imageservice

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxArchiveEntries = 64 << 10 // of the archive, not of its layers
	maxArchiveLinks   = 8        // in a row
)

// imported is an archive of images that was copied to a file of ours, which
// has no name any more. Nothing of it is trusted: what is read from it goes the
// way of what a registry sends.
type imported struct {
	file    *os.File
	entries map[string]section // by clean name
	links   map[string]string  // to clean names
	blobs   map[digest.Digest]string
}

// section is a part of the archive's file.
type section struct{ offset, size int64 }

// spool copies an archive, compressed or not, and finds its entries.
func (s *Store) spool(ctx context.Context, r io.Reader) (_ *imported, err error) {
	file, err := os.OpenFile(filepath.Join(s.path("ingest"), randomName()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	a := &imported{
		file: file, entries: map[string]section{}, links: map[string]string{}, blobs: map[digest.Digest]string{},
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	if err := os.Remove(file.Name()); err != nil {
		return nil, err
	}
	plain := &decompressor{source: &untilDone{ctx: ctx, Reader: r}}
	defer plain.Close()
	copied := &countingWriter{Writer: file}
	source := io.TeeReader(io.LimitReader(plain, s.limits.bytes), copied)
	err = a.scan(source, copied)
	if copied.n >= s.limits.bytes {
		return nil, fmt.Errorf("%w: an archive of more than %d bytes", ErrTooLarge, s.limits.bytes)
	}
	if err != nil {
		return nil, archiveFault(err)
	}
	return a, nil
}

// archiveFault tells a malformed archive from a source or a disk that failed.
func archiveFault(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, ErrMalformedLayer) {
		return fmt.Errorf("%w: %w", ErrMalformedArchive, err)
	}
	return err
}

// scan reads the archive to its end. Names lead nowhere but into a.entries, so
// one that climbs is only a name that nobody asks for.
func (a *imported) scan(source io.Reader, copied *countingWriter) error {
	reader := tar.NewReader(source)
	for n := 0; ; n++ {
		h, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return err
		}
		if n >= maxArchiveEntries {
			return fmt.Errorf("%w: an archive of more than %d entries", ErrTooLarge, maxArchiveEntries)
		}
		name := path.Clean("/" + h.Name)[1:]
		switch h.Typeflag {
		case tar.TypeReg:
			a.entries[name] = section{offset: copied.n, size: h.Size}
			if d, ok := blobName(name); ok {
				a.blobs[d] = name
			}
		case tar.TypeSymlink: // docker save wrote such for layers that occur twice
			a.links[name] = path.Clean("/" + path.Join(path.Dir(name), h.Linkname))[1:]
		case tar.TypeLink:
			a.links[name] = path.Clean("/" + h.Linkname)[1:]
		}
	}
	_, err := io.Copy(io.Discard, source)
	return err
}

// blobName recognizes blobs/ALGORITHM/HEX of an OCI layout.
func blobName(name string) (digest.Digest, bool) {
	dir, hex := path.Split(name)
	algorithm, ok := strings.CutPrefix(dir, "blobs/")
	if !ok {
		return "", false
	}
	d := digest.NewDigestFromEncoded(digest.Algorithm(strings.TrimSuffix(algorithm, "/")), hex)
	return d, d.Validate() == nil
}

func (a *imported) close() { _ = a.file.Close() }

// find follows links within the archive.
func (a *imported) find(name string) (section, error) {
	at := path.Clean("/" + name)[1:]
	for range maxArchiveLinks {
		if s, ok := a.entries[at]; ok {
			return s, nil
		}
		next, ok := a.links[at]
		if !ok {
			break
		}
		at = next
	}
	return section{}, fmt.Errorf("%w: it has no file %s", ErrMalformedArchive, quote(name))
}

func (a *imported) has(name string) bool {
	_, err := a.find(name)
	return err == nil
}

func (a *imported) reader(s section) *io.SectionReader {
	return io.NewSectionReader(a.file, s.offset, s.size)
}

// document reads a small file.
func (a *imported) document(name string) ([]byte, error) {
	s, err := a.find(name)
	if err != nil {
		return nil, err
	}
	if s.size > maxDocument {
		return nil, fmt.Errorf("%w: %s of %d bytes, at most %d are read", ErrTooLarge, quote(name), s.size, maxDocument)
	}
	content := make([]byte, s.size)
	if _, err := io.ReadFull(a.reader(s), content); err != nil {
		return nil, fmt.Errorf("read %s of the archive: %w", quote(name), err)
	}
	return content, nil
}

// open returns a blob from an offset on.
func (a *imported) open(desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	name, ok := a.blobs[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("%w: it has no blob %s", ErrMalformedArchive, desc.Digest)
	}
	s, err := a.find(name)
	if err != nil {
		return nil, err
	}
	if s.size != desc.Size {
		return nil, fmt.Errorf("%w: blob %s has %d bytes instead of %d", ErrDigestMismatch, desc.Digest, s.size, desc.Size)
	}
	r := a.reader(s)
	if _, err := r.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	return io.NopCloser(r), nil
}
