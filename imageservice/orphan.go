package imageservice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// An orphan is a layer that no record names at the start. An interrupted pull
// leaves such, and so does the loss of a record, and then a container may have
// the layer mounted: which, nothing tells any more. So orphans wait for Collect,
// when it is known what containers hold, and stay as long as one holds an image
// that is unreadable.

// unreadableEntry is an image of which its id alone is known.
func unreadableEntry(id string) *entry {
	return &entry{record: &imageRecord{ID: id}, config: &ocispec.Image{}, torn: true, damaged: true, unreadable: true}
}

// lost returns who holds images that are unreadable. The caller holds mu.
func (s *Store) lost() map[string][]string {
	users := map[string][]string{}
	for id, e := range s.images {
		if e.unreadable && len(s.holds[id]) > 0 {
			users[id] = slices.Sorted(maps.Keys(s.holds[id]))
		}
	}
	return users
}

// takeOrphans moves the orphans that nobody can need to ingest/ and returns
// their places there.
func (s *Store) takeOrphans() (trash []string) {
	s.disk.Lock()
	defer s.disk.Unlock()
	s.mu.Lock()
	s.orphans = slices.DeleteFunc(s.orphans, s.knows)
	orphans := s.orphans
	if users := s.lost(); len(users) > 0 {
		klog.InfoS("Layers of no image stay on the disk: the records of images that containers have cannot be read, and these may be theirs. "+
			"Pull the images again, by the same digest, or remove the containers", "images", users, "layers", orphans)
		orphans = nil
	} else {
		s.orphans = nil
	}
	s.mu.Unlock()
	for _, name := range orphans {
		path := s.ingestPath()
		if err := os.Rename(s.path("layers", name), path); err != nil {
			klog.ErrorS(err, "A layer of no image stays on the disk until the next start", "layer", name)
			continue
		}
		trash = append(trash, path)
	}
	fault.Point("orphans.withdrawn")
	return trash
}

// removeAll removes what takeOrphans returned.
func (s *Store) removeAll(trash []string) {
	for _, path := range trash {
		_ = s.remove(path)
	}
}

// claim makes an orphan a layer again, for a download of the same into dir: a
// container may have the orphan mounted, and a torn one must not be trusted. The
// caller holds disk.
func (s *Store) claim(ctx context.Context, dir string, record *layerRecord) error {
	place := s.layerPath(record.DiffID)
	l := &layerCheck{diffID: record.DiffID, undated: func(is *listed) bool { // no archive tells the times of these
		return is.path == "" || is.kind() == unix.S_IFCHR && is.device == 0 || slices.Contains(record.Implicit, is.path)
	}}
	c := &checker{Store: s}
	if err := c.tree(ctx, l, filepath.Join(dir, listingFile), filepath.Join(place, diffDir)); err != nil {
		return fmt.Errorf("compare layer %s: %w", record.DiffID, err)
	}
	if len(l.damage) > 0 {
		s.mu.Lock()
		users := s.lost()
		s.mu.Unlock()
		return fmt.Errorf("layer %s is damaged (%q: %s) and may be in use by %v: remove these containers and pull again",
			record.DiffID, l.damage[0].Path, l.damage[0].Problem, users)
	}
	if err := os.Remove(filepath.Join(dir, listingFile)); err != nil {
		return err
	}
	sum, _, _, err := s.writeListing(ctx, filepath.Join(dir, listingFile), filepath.Join(place, diffDir),
		&contents{sums: map[uint64]uint64{}, xattrs: true})
	if err != nil {
		return err
	}
	record.Listing = fmt.Sprintf("%016x", sum)
	content, err := ledger.Marshal(record)
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(place, layerFile), content); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, listingFile), filepath.Join(place, listingFile)); err != nil {
		return err
	}
	return s.remove(dir)
}

// orphan tells whether the place of a layer is taken by one that may be in use.
func (s *Store) orphan(diffID digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.orphans, diffID.Encoded())
}

// withdraw moves the record of a dropped image to ingest/; one that was held
// without having any has none.
func (s *Store) withdraw(id, trash string) error {
	err := os.Rename(s.recordPath(id), trash)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
