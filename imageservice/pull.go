package imageservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// pull is the work of Pull, shared by all who want the same.
func (s *Store) pull(ctx context.Context, n name, creds credentials) (image *Image, err error) {
	progress := s.tracker.begin(n, flightKey(n, creds))
	defer func() {
		if last := progress.end(image, err); s.config.PullEnded != nil {
			s.config.PullEnded(last, err)
		}
	}()
	sess, err := s.newSession(ctx, n, creds)
	if err != nil {
		return nil, err
	}
	sess.progress = progress
	defer sess.close()
	root, err := sess.resolve(ctx)
	if err != nil {
		return nil, fmt.Errorf("resolve: %w", err)
	}
	fault.Point("pull.resolved")
	verdict, err := s.admit(ctx, sess, root.Digest)
	if err != nil {
		return nil, err
	}
	fault.Point("pull.admitted")
	if image, err := s.adopt(n, root.Digest, verdict); image != nil || err != nil {
		progress.adopted(s, image)
		return image, err
	}
	r, err := sess.image(ctx, root)
	if err != nil {
		return nil, err
	}
	r.verdict = verdict
	return s.bring(ctx, sess, n, r)
}

// bring downloads the layers that are missing and records the image.
func (s *Store) bring(ctx context.Context, sess *session, n name, r *resolved) (_ *Image, err error) {
	// The descriptor is opened first: syncFS reports the errors from here on.
	root, err := os.Open(s.config.Root)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	diffIDs := r.config.RootFS.DiffIDs
	sess.progress.expect(r)
	s.pin(diffIDs)
	defer func() { err = errors.Join(err, s.unpin(diffIDs)) }()
	group, groupCtx := errgroup.WithContext(ctx)
	seen := map[digest.Digest]bool{}
	for i, diffID := range diffIDs {
		if seen[diffID] {
			continue
		}
		seen[diffID] = true
		group.Go(func() error {
			if err := s.ensure(groupCtx, sess, r.layer(i)); err != nil {
				return fmt.Errorf("layer %d (%s): %w", i, r.layers[i].Digest, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, err
	}
	return s.record(root, n, r)
}

// adopt gives the name to an image that is here already: its repository says
// that it stands for the same digest.
func (s *Store) adopt(n name, root digest.Digest, verdict string) (*Image, error) {
	text := name{repository: n.repository, digest: root}.String()
	s.mu.Lock()
	var found *entry
	for _, e := range s.images {
		if e.image != nil && slices.Contains(e.record.Digests, text) {
			found = e
		}
	}
	s.mu.Unlock()
	if found == nil {
		return nil, nil
	}
	layers := found.record.Layers
	s.pin(layers)
	defer func() { _ = s.unpin(layers) }() // another image or hold needs them, or nobody does
	for _, diffID := range layers {
		if !s.has(diffID) {
			return nil, nil // mended by the whole pull
		}
	}
	s.disk.Lock()
	defer s.disk.Unlock()
	s.mu.Lock()
	e := s.images[found.record.ID]
	usable := e != nil && e.image != nil
	s.mu.Unlock()
	if !usable {
		return nil, nil // removed meanwhile
	}
	return s.rename(e, n, root, verdict)
}

// rename gives an image that has a record one more name. The caller holds disk.
func (s *Store) rename(e *entry, n name, root digest.Digest, verdict string) (*Image, error) {
	record := e.record.clone()
	record.add(n, root, verdict)
	record.Serial = s.nextSerial()
	if err := writeRecord(s.recordPath(record.ID), record); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	return s.publish(&entry{record: record, config: e.config, size: e.size}, n)
}

func (s *Store) nextSerial() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	return s.serial
}

// add gives a record a name that was just pulled.
func (r *imageRecord) add(n name, root digest.Digest, verdict string) {
	if n.tag != "" && !slices.Contains(r.Tags, n.String()) {
		r.Tags = append(r.Tags, n.String())
	}
	text := name{repository: n.repository, digest: root}.String()
	if root != "" && !slices.Contains(r.Digests, text) {
		r.Digests = append(r.Digests, text)
	}
	if verdict != "" {
		if r.Verified == nil {
			r.Verified = map[string]string{}
		}
		r.Verified[text] = verdict
	}
	r.PulledAt = time.Now().UTC()
	r.Removed = false
}

// record makes the image durable and lists it. Its layers are in their places
// and pinned.
func (s *Store) record(root *os.File, n name, r *resolved) (*Image, error) {
	record := &imageRecord{ID: r.id, Manifest: r.manifest, Layers: r.config.RootFS.DiffIDs, Source: r.source, Artifact: r.artifact}
	record.add(n, r.root, r.verdict)
	record.Serial = s.nextSerial()
	dir := s.ingestPath()
	if err := s.writeImage(dir, record, r); err != nil {
		return nil, errors.Join(fmt.Errorf("record: %w", err), s.remove(dir))
	}
	fault.Point("image.written")
	if err := syncFS(root); err != nil {
		return nil, errors.Join(err, s.remove(dir))
	}
	fault.Point("image.synced")
	s.disk.Lock()
	defer s.disk.Unlock()
	s.mu.Lock()
	old := s.images[r.id]
	s.mu.Unlock()
	if old != nil && !(old.unreadable && !exists(s.recordPath(r.id))) {
		// Its directory stays: a container may have parents/ mounted, and the
		// same layers give the same.
		image, err := s.renew(old, dir, n, r)
		return image, errors.Join(err, s.remove(dir))
	}
	place := s.recordPath(r.id)
	if err := os.Rename(dir, place); err != nil {
		return nil, errors.Join(fmt.Errorf("record: %w", err), s.remove(dir))
	}
	fault.Point("image.renamed")
	if err := syncDir(filepath.Dir(place)); err != nil {
		return nil, errors.Join(fmt.Errorf("record: %w", err), os.RemoveAll(place))
	}
	fault.Point("image.durable")
	return s.publish(&entry{record: record, config: r.config, size: uint64(len(r.rawConfig) + len(r.rawManifest))}, n)
}

// renew gives an image that has a record one more name, and to a torn record
// the documents that were pulled just now into dir. The caller holds disk.
func (s *Store) renew(old *entry, dir string, n name, r *resolved) (*Image, error) {
	if !old.torn {
		return s.rename(old, n, r.root, r.verdict)
	}
	place := s.recordPath(r.id)
	for name, content := range map[string][]byte{manifestFile: r.rawManifest, configFile: r.rawConfig} {
		if err := replaceFile(filepath.Join(place, name), content); err != nil {
			return nil, fmt.Errorf("record: %w", err)
		}
	}
	if err := s.renewParents(dir, place); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	mended := &entry{record: old.record.clone(), config: r.config, size: uint64(len(r.rawConfig) + len(r.rawManifest))}
	mended.record.Manifest, mended.record.Layers = r.manifest, r.config.RootFS.DiffIDs
	mended.record.Artifact, mended.record.Source = r.artifact, r.source
	mended.record.Parents = exists(filepath.Join(place, parentsDir))
	return s.rename(mended, n, r.root, r.verdict)
}

// renewParents puts the directories made just now where they are missing.
// What is there may be in use.
func (s *Store) renewParents(dir, place string) error {
	if exists(filepath.Join(place, parentsDir)) {
		return nil
	}
	for _, name := range []string{parentsListing, parentsDir} {
		err := os.Rename(filepath.Join(dir, name), filepath.Join(place, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// writeImage writes the files of a new record.
func (s *Store) writeImage(dir string, record *imageRecord, r *resolved) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var err error
	parents := filepath.Join(dir, parentsDir)
	if record.Parents, err = s.writeParents(parents, record.Layers); err != nil {
		return err
	}
	if record.Parents {
		_, _, _, err := s.writeListing(context.Background(), filepath.Join(dir, parentsListing), parents, &contents{xattrs: true})
		if err != nil {
			return err
		}
	}
	content, err := ledger.Marshal(record)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{imageFile: content, manifestFile: r.rawManifest, configFile: r.rawConfig} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// publish lists an image whose record is durable, and takes its tag from the
// image that had it before. The caller holds disk.
func (s *Store) publish(e *entry, n name) (*Image, error) {
	id := e.record.ID
	s.mu.Lock()
	loser := s.images[s.tags[n.String()]]
	if old := s.images[id]; old != nil {
		for _, tag := range old.record.Tags {
			delete(s.tags, tag)
		}
	}
	s.images[id] = e
	for _, tag := range e.record.Tags {
		s.tags[tag] = id
	}
	s.present(e)
	image := e.image
	s.mu.Unlock()
	if n.tag == "" || loser == nil || loser.record.ID == id {
		return image, nil
	}
	fault.Point("image.published")
	record := loser.record.clone()
	record.Tags = slices.DeleteFunc(record.Tags, func(t string) bool { return t == n.String() })
	// Should this fail, the later of two images that claim a tag has it.
	err := writeRecord(s.recordPath(record.ID), record)
	s.mu.Lock()
	s.replace(loser, record)
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("record that %s is another image now: %w", n, err)
	}
	return image, nil
}
