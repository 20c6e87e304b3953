package imageservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// maxDamage is how many damaged files of one layer a report names; the rest is
// counted.
const maxDamage = 20

// layerCheck compares one layer with its listing. Both are read in the same
// order, neither is ever in memory as a whole.
type layerCheck struct {
	diffID  digest.Digest
	damage  []Damage
	more    int // damaged files beyond those in damage
	listing *listingReader
	next    *listed // of the listing
	entries uint64
	// undated tells of a file whose time means nothing; nil: of none.
	undated func(*listed) bool
}

func (l *layerCheck) add(path, problem string) {
	if len(l.damage) >= maxDamage {
		l.more++
		return
	}
	l.damage = append(l.damage, Damage{Layer: l.diffID, Path: path, Problem: problem})
}

// layer checks one layer. An error says that the check was cut short.
func (c *checker) layer(ctx context.Context, diffID digest.Digest) ([]Damage, error) {
	l := &layerCheck{diffID: diffID}
	dir := c.layerPath(diffID)
	record, err := readLayer(dir)
	if err == nil && record.DiffID != diffID {
		err = fmt.Errorf("it is the record of %s", record.DiffID)
	}
	if err != nil {
		l.add("", err.Error())
		return l.damage, nil
	}
	if err := c.tree(ctx, l, filepath.Join(dir, listingFile), filepath.Join(dir, diffDir)); err != nil {
		return nil, err
	}
	if len(l.damage) == 0 && record.Listing != fmt.Sprintf("%016x", l.listing.total) {
		l.add(layerFile, fmt.Sprintf("it goes with the listing %s, not with %016x", record.Listing, l.listing.total))
	}
	return l.all(), nil
}

// all returns the damage, and says what was left out.
func (l *layerCheck) all() []Damage {
	if l.more == 0 {
		return l.damage
	}
	return append(l.damage, Damage{Layer: l.diffID, Problem: fmt.Sprintf("%d more files are damaged", l.more)})
}

// parents checks the layer of an image that is its own, as part of its record.
func (c *checker) parents(ctx context.Context, dir string) ([]Damage, error) {
	l := &layerCheck{}
	if err := c.tree(ctx, l, filepath.Join(dir, parentsListing), filepath.Join(dir, parentsDir)); err != nil {
		return nil, err
	}
	for i := range l.damage {
		l.damage[i].Path = filepath.Join(parentsDir, l.damage[i].Path)
	}
	return l.all(), nil
}

// tree compares the files at path with a listing.
func (c *checker) tree(ctx context.Context, l *layerCheck, listing, path string) error {
	f, err := os.Open(listing)
	if err != nil {
		l.add("", err.Error())
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	l.listing = newListingReader(f, info.Size())
	l.step()
	buf, _ := c.buffers.Get().(*[chunkSize]byte)
	defer c.buffers.Put(buf)
	scan := &scan{ctx: ctx, sums: map[uint64]uint64{}, xattrs: true, fresh: true, buf: buf[:], visit: l.visit, failed: func(path string, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		l.skip(path)
		l.add(path, err.Error())
		return nil
	}}
	err = scan.run(path)
	c.report.Entries += l.entries
	c.report.Bytes += scan.read
	if err != nil {
		return err
	}
	for l.next != nil {
		l.missing()
	}
	if err := l.listing.err; !errors.Is(err, errListingEnd) {
		// What was compared with it tells nothing then.
		l.damage, l.more = nil, 0
		l.add("", err.Error())
	}
	return nil
}

// step takes the next record of the listing.
func (l *layerCheck) step() {
	next, err := l.listing.next()
	if err != nil {
		next = nil // listing.err keeps it
	}
	l.next = next
}

func (l *layerCheck) missing() {
	l.add(l.next.path, "it is missing")
	l.step()
}

// skip takes the records before path, whose files are missing, and that of path.
func (l *layerCheck) skip(path string) {
	for l.next != nil && before(l.next.path, path) {
		l.missing()
	}
	if l.next != nil && l.next.path == path {
		l.step()
	}
}

// visit compares one file with the next record.
func (l *layerCheck) visit(is *listed) error {
	l.entries++
	for l.next != nil && before(l.next.path, is.path) {
		l.missing()
	}
	if l.next == nil || l.next.path != is.path {
		l.add(is.path, "it was not in the layer")
		return nil
	}
	if l.undated != nil && l.undated(is) {
		l.next.seconds, l.next.nanos = is.seconds, is.nanos
	}
	if text := l.next.differences(is); text != "" {
		l.add(is.path, text)
	}
	l.step()
	return nil
}
