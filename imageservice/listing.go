package imageservice

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// A layer's listing is the file that says what its directory holds: one record
// for each file, in the order of a scan. It is what a check compares with. A
// record is the length of the path that is as in the one before, the rest of
// the path, and the fields of listed; numbers are varints, sums have 8 bytes.
// The last 8 bytes are the sum of all before.
const (
	listingFile  = "listing"
	listingMagic = "cri-runtime listing 1\n"
	sumLength    = 8
)

var (
	errListing = errors.New("damaged listing")
	// errListingEnd is the end of a listing whose sum is right.
	errListingEnd = errors.New("end of the listing")
)

// listingWriter writes a listing.
type listingWriter struct {
	file *os.File
	out  *bufio.Writer
	hash xxhash.Digest
	size int64
	last string
	buf  []byte
}

func createListing(path string) (*listingWriter, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	w := &listingWriter{file: f, out: bufio.NewWriterSize(f, sourceBuffer), buf: []byte(listingMagic)}
	w.hash.Reset()
	return w, w.flush()
}

func (w *listingWriter) flush() error {
	_, _ = w.hash.Write(w.buf) // never fails
	w.size += int64(len(w.buf))
	_, err := w.out.Write(w.buf)
	return err
}

// add writes one record.
func (w *listingWriter) add(l *listed) error {
	same := 0
	for same < min(len(w.last), len(l.path)) && w.last[same] == l.path[same] {
		same++
	}
	w.last = l.path
	b := binary.AppendUvarint(w.buf[:0], uint64(same))
	b = binary.AppendUvarint(b, uint64(len(l.path)-same))
	b = append(b, l.path[same:]...)
	for _, n := range []uint64{uint64(l.mode), uint64(l.uid), uint64(l.gid), uint64(l.size), l.device, uint64(l.nanos)} {
		b = binary.AppendUvarint(b, n)
	}
	b = binary.AppendVarint(b, l.seconds)
	b = binary.LittleEndian.AppendUint64(b, l.sum)
	if l.xattrs == 0 {
		b = append(b, 0)
	} else {
		b = binary.LittleEndian.AppendUint64(append(b, 1), l.xattrs)
	}
	w.buf = b
	return w.flush()
}

// close ends the listing and returns its sum.
func (w *listingWriter) close(err error) (uint64, error) {
	sum := w.hash.Sum64()
	w.size += sumLength
	if err == nil {
		_, err = w.out.Write(binary.LittleEndian.AppendUint64(nil, sum))
	}
	if err == nil {
		err = w.out.Flush()
	}
	return sum, errors.Join(err, w.file.Close())
}

// listingReader reads a listing.
type listingReader struct {
	in    *bufio.Reader
	left  int64 // bytes before the sum
	hash  xxhash.Digest
	last  string
	one   [1]byte
	total uint64 // the sum, at the end
	err   error
}

// newListingReader reads a listing of size bytes.
func newListingReader(source io.Reader, size int64) *listingReader {
	r := &listingReader{in: bufio.NewReaderSize(source, sourceBuffer), left: size - sumLength}
	r.hash.Reset()
	if magic := r.bytes(uint64(len(listingMagic))); r.err == nil && string(magic) != listingMagic {
		r.fail(errors.New("it begins with something else"))
	}
	return r
}

func (r *listingReader) fail(err error) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %w", errListing, err)
	}
}

// ReadByte reads a byte for package binary.
func (r *listingReader) ReadByte() (byte, error) {
	if r.err == nil && r.left <= 0 {
		r.fail(io.ErrUnexpectedEOF)
	}
	if r.err != nil {
		return 0, r.err
	}
	b, err := r.in.ReadByte()
	if err != nil {
		r.fail(err)
		return 0, r.err
	}
	r.left--
	r.one[0] = b
	_, _ = r.hash.Write(r.one[:]) // never fails
	return b, nil
}

func (r *listingReader) bytes(n uint64) []byte {
	if r.err == nil && (r.left < 0 || n > uint64(r.left)) {
		r.fail(io.ErrUnexpectedEOF)
	}
	if r.err == nil && n > math.MaxUint16 {
		r.fail(fmt.Errorf("a field of %d bytes", n))
	}
	if r.err != nil {
		return nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.in, b); err != nil {
		r.fail(err)
		return nil
	}
	r.left -= int64(n)
	_, _ = r.hash.Write(b) // never fails
	return b
}

func (r *listingReader) number() uint64 {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		r.fail(err)
	}
	return n
}

func (r *listingReader) sum() uint64 {
	b := r.bytes(sumLength)
	if r.err != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b)
}

// next returns the next record, or errListingEnd.
func (r *listingReader) next() (*listed, error) {
	if r.err == nil && r.left == 0 {
		want := r.hash.Sum64()
		r.left = sumLength
		if got := r.sum(); r.err == nil && got != want {
			r.fail(errors.New("its sum is wrong"))
		}
		if r.err == nil {
			r.total, r.err = want, errListingEnd
		}
	}
	same := r.number()
	if r.err == nil && same > uint64(len(r.last)) {
		r.fail(errors.New("a path goes on from nothing"))
	}
	rest := r.bytes(r.number())
	if r.err != nil {
		return nil, r.err
	}
	l := &listed{path: r.last[:same] + string(rest)}
	l.mode, l.uid, l.gid = uint32(r.number()), uint32(r.number()), uint32(r.number())
	l.size, l.device, l.nanos = int64(r.number()), r.number(), int64(r.number())
	seconds, err := binary.ReadVarint(r)
	if err != nil {
		r.fail(err)
	}
	l.seconds, l.sum = seconds, r.sum()
	if some, _ := r.ReadByte(); some != 0 { // its error is kept
		l.xattrs = r.sum()
	}
	r.last = l.path
	return l, r.err
}

// before tells whether a path comes before another in a scan: a directory's
// files follow it at once.
func before(a, b string) bool {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return a[i] == '/' || b[i] != '/' && a[i] < b[i]
		}
	}
	return len(a) < len(b)
}

// differences names the fields in which a file is not what was listed.
func (l *listed) differences(is *listed) string {
	var out []string
	note := func(what string, want, got any) {
		out = append(out, fmt.Sprintf("%s is %v, was %v", what, got, want))
	}
	switch {
	case l.kind() != is.kind():
		note("type and mode", fmt.Sprintf("%#o", l.mode), fmt.Sprintf("%#o", is.mode))
	case l.mode != is.mode:
		note("mode", fmt.Sprintf("%#o", l.mode&permissionBits), fmt.Sprintf("%#o", is.mode&permissionBits))
	}
	if l.uid != is.uid || l.gid != is.gid {
		note("owner", fmt.Sprintf("%d:%d", l.uid, l.gid), fmt.Sprintf("%d:%d", is.uid, is.gid))
	}
	if l.size != is.size {
		note("size", l.size, is.size)
	} else if l.sum != is.sum {
		out = append(out, "content differs")
	}
	if l.device != is.device {
		note("device", l.device, is.device)
	}
	if l.seconds != is.seconds || l.nanos != is.nanos {
		note("time", fmt.Sprintf("%d.%09d", l.seconds, l.nanos), fmt.Sprintf("%d.%09d", is.seconds, is.nanos))
	}
	if l.xattrs != is.xattrs {
		out = append(out, "extended attributes differ")
	}
	return strings.Join(out, ", ")
}

// writeListing lists the tree at path into a new file and returns the listing's
// sum and size, and the scan, which has counted the tree.
func (s *Store) writeListing(ctx context.Context, file, path string, c *contents) (sum uint64, size int64, _ *scan, err error) {
	buf, _ := s.buffers.Get().(*[chunkSize]byte)
	defer s.buffers.Put(buf)
	w, err := createListing(file)
	if err != nil {
		return 0, 0, nil, err
	}
	scan := &scan{ctx: ctx, sums: c.sums, xattrs: c.xattrs, buf: buf[:], visit: w.add, failed: func(path string, err error) error {
		return fmt.Errorf("list %s: %w", quote(path), err)
	}}
	sum, err = w.close(scan.run(path))
	return sum, w.size, scan, err
}

// listLayer lists the layer that was unpacked into dir, and counts what it
// takes on the disk.
func (s *Store) listLayer(ctx context.Context, dir string, record *layerRecord, c *contents) error {
	sum, size, scan, err := s.writeListing(ctx, filepath.Join(dir, listingFile), filepath.Join(dir, diffDir), c)
	if err != nil {
		return err
	}
	blocks := (uint64(size) + s.block - 1) / s.block
	record.Listing = fmt.Sprintf("%016x", sum)
	record.Inodes = scan.inodes + 3                // the layer's directory, its listing and its record
	record.Bytes = scan.bytes + (blocks+2)*s.block // the same
	return nil
}
