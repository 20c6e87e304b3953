package imageservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// Hold keeps the layers of an image on the disk for a user, such as a
// container's id, also when the image is removed from the list meanwhile. A
// user may hold an image more than once and releases it once. Holds are in
// memory: after a start they are taken again before Collect.
func (s *Store) Hold(imageID, user string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[imageID]
	if e == nil && !s.collected && digest.Digest(imageID).Validate() == nil {
		e = unreadableEntry(imageID) // its record is gone, the user is not
		s.images[imageID] = e
	}
	// A damaged image is held only by what was there before the start.
	if e == nil || e.damaged && s.collected {
		return fmt.Errorf("hold %s for %s: %w", imageID, user, ErrNotFound)
	}
	if s.holds[imageID] == nil {
		s.holds[imageID] = map[string]struct{}{}
	}
	s.holds[imageID][user] = struct{}{}
	return nil
}

// Release ends a hold; one that is not there is ignored. With the last hold of
// a removed image its layers go.
func (s *Store) Release(imageID, user string) {
	s.mu.Lock()
	delete(s.holds[imageID], user)
	if len(s.holds[imageID]) == 0 {
		delete(s.holds, imageID)
	}
	s.mu.Unlock()
	// What cannot be removed now is removed at a later start.
	_ = s.drop(imageID)
	s.mu.Lock()
	freed := s.collected && len(s.orphans) > 0 && len(s.lost()) == 0
	s.mu.Unlock()
	if freed {
		s.removeAll(s.takeOrphans())
	}
}

// Remove takes the image that ref finds off the list, with all its tags and
// digests. Its layers go too unless an image or a hold needs them. It is no
// error if there is no such image. A damaged image is found by its whole id.
func (s *Store) Remove(ctx context.Context, ref string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	s.disk.Lock()
	s.mu.Lock()
	e, err := s.find(ref)
	if damaged := s.images[ref]; err != nil && damaged != nil && damaged.damaged && !damaged.unreadable {
		e, err = damaged, nil
	}
	if err != nil {
		s.mu.Unlock()
		s.disk.Unlock()
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return fmt.Errorf("remove image: %w", err)
	}
	id := e.record.ID
	record := e.record.clone()
	record.Tags, record.Digests, record.Removed = nil, nil, true
	s.mu.Unlock()

	// The mark is durable before anything goes: a crash in between leaves a
	// removed image, not a damaged one.
	err = writeRecord(s.recordPath(id), record)
	if err == nil {
		s.mu.Lock()
		s.replace(e, record)
		s.mu.Unlock()
	}
	s.disk.Unlock()
	if err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	fault.Point("removeimage.recorded")
	if err := s.drop(id); err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return nil
}

// replace gives an entry another record. The caller holds mu.
func (s *Store) replace(e *entry, record *imageRecord) {
	for _, tag := range e.record.Tags {
		if s.tags[tag] == record.ID {
			delete(s.tags, tag)
		}
	}
	for _, tag := range record.Tags {
		s.tags[tag] = record.ID
	}
	e.record = record
	s.present(e)
}

// Collect is called once after the start, when all holds are taken again. It
// removes the images that were removed while a container held them, and in the
// background the layers of no image.
func (s *Store) Collect() {
	s.mu.Lock()
	s.collected = true
	var removed []string
	for id, e := range s.images {
		if e.record.Removed || e.unreadable {
			removed = append(removed, id)
		}
	}
	s.mu.Unlock()
	for _, id := range removed {
		// What cannot be removed now is removed at a later start.
		_ = s.drop(id)
	}
	fault.Point("collect.dropped")
	if trash := s.takeOrphans(); len(trash) > 0 {
		s.background.Go(func() { s.removeAll(trash) })
	}
}

// drop forgets a removed or unreadable image that nobody holds, and removes its layers.
func (s *Store) drop(id string) error {
	s.disk.Lock()
	s.mu.Lock()
	e := s.images[id]
	if e == nil || !(e.record.Removed || e.unreadable) || len(s.holds[id]) > 0 || !s.collected {
		s.mu.Unlock()
		s.disk.Unlock()
		return nil
	}
	delete(s.images, id)
	s.mu.Unlock()
	trash := s.ingestPath()
	err := s.withdraw(id, trash)
	s.disk.Unlock()
	if err != nil {
		return err
	}
	fault.Point("removeimage.withdrawn")
	return errors.Join(s.remove(trash), s.sweep(e.record.Layers))
}

// pin keeps layers while a pull needs them.
func (s *Store) pin(layers []digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, diffID := range layers {
		s.pins[diffID]++
	}
}

// unpin ends a pin and removes those layers that nothing needs then.
func (s *Store) unpin(layers []digest.Digest) error {
	s.mu.Lock()
	for _, diffID := range layers {
		if s.pins[diffID]--; s.pins[diffID] == 0 {
			delete(s.pins, diffID)
		}
	}
	s.mu.Unlock()
	return s.sweep(layers)
}

// sweep removes those of the layers that no image and no pull needs.
func (s *Store) sweep(layers []digest.Digest) error {
	s.disk.Lock()
	var trash []string
	var errs []error
	for _, diffID := range s.unneeded(layers) {
		path := s.ingestPath()
		if err := os.Rename(s.layerPath(diffID), path); err != nil {
			errs = append(errs, err)
			continue
		}
		trash = append(trash, path)
	}
	s.disk.Unlock()
	fault.Point("layers.withdrawn")
	for _, path := range trash {
		errs = append(errs, s.remove(path))
	}
	return errors.Join(errs...)
}

// unneeded takes those layers that nothing needs out of the index.
func (s *Store) unneeded(layers []digest.Digest) []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	needed := map[digest.Digest]bool{}
	for _, e := range s.images {
		for _, diffID := range e.record.Layers {
			needed[diffID] = true
		}
	}
	gone := slices.DeleteFunc(unique(layers), func(diffID digest.Digest) bool {
		return needed[diffID] || s.pins[diffID] > 0 || s.layers[diffID] == nil
	})
	for _, diffID := range gone {
		delete(s.layers, diffID)
	}
	return gone
}

// ingestPath returns a path in ingest/ that does not exist.
func (s *Store) ingestPath() string {
	return filepath.Join(s.path("ingest"), randomName())
}
