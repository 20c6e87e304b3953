package imageservice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// CheckOptions say what Check does about what it finds.
type CheckOptions struct {
	// Repair takes damaged layers away and pulls the images they belong to
	// again, by their digests and with the credentials that the node has. Where
	// that fails the image is not listed any more, and its next pull brings what
	// it lacks alone. An image that is held is left as it is.
	Repair bool
}

// CheckReport is what Check found.
type CheckReport struct {
	Images  []ImageCheck `json:"images"`  // all that the store has, ordered by id
	Layers  int          `json:"layers"`  // that were compared
	Entries uint64       `json:"entries"` // files, directories and links in them
	Bytes   uint64       `json:"bytes"`   // of content that was read and compared
}

// ImageCheck is what Check found of one image.
type ImageCheck struct {
	ID       string   `json:"id"`
	Names    []string `json:"names"`             // tags and digests; none for one that was removed while held
	Users    []string `json:"users,omitempty"`   // who holds it: containers
	Damage   []Damage `json:"damage,omitempty"`  // none: the image is whole
	Repaired bool     `json:"repaired"`          // it was damaged and is whole now
	Problem  string   `json:"problem,omitempty"` // why it could not be repaired
}

// Damage is one thing that is not as it was pulled.
type Damage struct {
	Layer   digest.Digest `json:"layer,omitempty"` // diffID; "" for the image's own record
	Path    string        `json:"path,omitempty"`  // below the layer
	Problem string        `json:"problem"`
}

// Damaged returns how many images are damaged and were not repaired.
func (r *CheckReport) Damaged() int {
	n := 0
	for i := range r.Images {
		if len(r.Images[i].Damage) > 0 && !r.Images[i].Repaired {
			n++
		}
	}
	return n
}

// checker is one run of Check.
type checker struct {
	*Store
	report CheckReport
	pinned []digest.Digest
	layers map[digest.Digest][]Damage // of those compared already
	mended map[digest.Digest]bool     // of layers: taken away already
}

// Check compares every image with what was pulled: its documents with their
// digests, and each file of its layers, its content too, with the list that was
// made while it was unpacked. All images may be used and pulled meanwhile. An
// error says that the check could not be done; damage is in the report.
//
// Holds are what tells that an image is in use: a program that opens a store
// for a check takes those of all containers first, as a daemon does.
func (s *Store) Check(ctx context.Context, options CheckOptions) (_ *CheckReport, err error) {
	c := &checker{Store: s, layers: map[digest.Digest][]Damage{}, mended: map[digest.Digest]bool{}}
	ids, err := c.begin()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.unpin(c.pinned)) }()
	for _, id := range ids {
		if err := c.image(ctx, id); err != nil {
			return nil, fmt.Errorf("check image %s: %w", id, err)
		}
	}
	if options.Repair {
		for i := range c.report.Images {
			if image := &c.report.Images[i]; len(image.Damage) > 0 {
				c.repair(ctx, image)
			}
		}
	}
	c.report.Layers = len(c.layers)
	return &c.report, nil
}

// begin pins all layers, so that none goes while it is read.
func (c *checker) begin() (ids []string, err error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	for id, e := range c.images {
		ids = append(ids, id)
		c.pinned = append(c.pinned, e.record.Layers...)
	}
	c.mu.Unlock()
	c.pinned = unique(c.pinned)
	c.pin(c.pinned)
	slices.Sort(ids)
	return ids, nil
}

// image checks one image.
func (c *checker) image(ctx context.Context, id string) error {
	c.mu.Lock()
	e := c.images[id]
	if e == nil || e.record.Removed && len(c.holds[id]) == 0 {
		c.mu.Unlock()
		return nil // removed meanwhile
	}
	record := e.record
	check := ImageCheck{
		ID:    id,
		Names: slices.Concat(record.Tags, record.Digests),
		Users: slices.Sorted(maps.Keys(c.holds[id])),
	}
	c.mu.Unlock()
	check.Damage = c.documents(record)
	if record.Parents {
		damage, err := c.parents(ctx, c.recordPath(id))
		if err != nil {
			return err
		}
		check.Damage = append(check.Damage, damage...)
	}
	for _, diffID := range unique(record.Layers) {
		if _, done := c.layers[diffID]; !done {
			damage, err := c.layer(ctx, diffID)
			if err != nil {
				return err
			}
			c.layers[diffID] = damage
		}
		check.Damage = append(check.Damage, c.layers[diffID]...)
	}
	c.report.Images = append(c.report.Images, check)
	return nil
}

// documents checks the files of an image's record.
func (c *checker) documents(record *imageRecord) []Damage {
	dir := c.recordPath(record.ID)
	var damage []Damage
	add := func(file string, err error) {
		if err != nil {
			damage = append(damage, Damage{Path: file, Problem: err.Error()})
		}
	}
	stored := &imageRecord{}
	err := ledger.Read(filepath.Join(dir, imageFile), stored)
	if err == nil && !record.same(stored) {
		err = errors.New("it is not what was written")
	}
	add(imageFile, err)
	_, err = readDocument(dir, configFile, digest.Digest(record.ID))
	add(configFile, err)
	_, err = readDocument(dir, manifestFile, record.Manifest)
	add(manifestFile, err)
	return damage
}

// same tells whether two records say the same of an image's layers and names.
func (r *imageRecord) same(o *imageRecord) bool {
	return r.ID == o.ID && r.Manifest == o.Manifest && r.Parents == o.Parents && r.Removed == o.Removed &&
		slices.Equal(r.Layers, o.Layers) && slices.Equal(r.Tags, o.Tags) && slices.Equal(r.Digests, o.Digests)
}

// readDocument reads a document and compares it with its digest.
func readDocument(dir, name string, want digest.Digest) ([]byte, error) {
	path := filepath.Join(dir, name)
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := want.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w: %q", path, err, want)
	}
	if got := want.Algorithm().FromBytes(content); got != want {
		return nil, fmt.Errorf("%s: %w: want %s, got %s", path, ErrDigestMismatch, want, got)
	}
	return content, nil
}

// repair brings what an image lacks.
func (c *checker) repair(ctx context.Context, image *ImageCheck) {
	if err := c.condemn(image); err != nil {
		image.Problem = err.Error()
		return
	}
	err := errors.New("it has no digest to pull it by")
	for _, name := range image.Names {
		if !strings.Contains(name, "@") {
			continue
		}
		if _, err = c.Pull(ctx, name, nil); err == nil {
			image.Repaired = true
			return
		}
	}
	image.Problem = err.Error()
}

// condemn takes the damaged parts of an image away, so that its pull brings
// them anew. Nothing is touched that a container or a pull uses.
func (c *checker) condemn(image *ImageCheck) error {
	c.disk.Lock()
	defer c.disk.Unlock()
	bad, err := c.disown(image)
	if err != nil {
		return err
	}
	for _, diffID := range bad {
		if err := c.discard(c.layerPath(diffID)); err != nil {
			return fmt.Errorf("remove layer %s: %w", diffID, err)
		}
	}
	if !slices.ContainsFunc(image.Damage, func(d Damage) bool { return strings.HasPrefix(d.Path, parentsDir) && d.Layer == "" }) {
		return nil
	}
	for _, name := range []string{parentsDir, parentsListing} {
		if err := c.discard(filepath.Join(c.recordPath(image.ID), name)); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return nil
}

// disown takes the damaged layers of an image out of the index, unless they are
// in use, and returns them.
func (c *checker) disown(image *ImageCheck) ([]digest.Digest, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.images[image.ID]
	if e == nil {
		return nil, fmt.Errorf("%w: it was removed meanwhile", ErrNotFound)
	}
	var bad []digest.Digest
	torn := false
	for _, d := range image.Damage {
		torn = torn || d.Layer == ""
		if d.Layer != "" && !c.mended[d.Layer] {
			bad = append(bad, d.Layer)
		}
	}
	bad = unique(bad)
	affected := c.containing(bad)
	affected[image.ID] = e
	for id := range affected {
		for user := range c.holds[id] {
			return nil, fmt.Errorf("image %s is in use by %s: remove that first", id, user)
		}
	}
	for _, diffID := range bad {
		if c.pins[diffID] > 1 { // one is the checker's own
			return nil, fmt.Errorf("layer %s is in use by a pull: repair again later", diffID)
		}
	}
	for _, diffID := range bad {
		delete(c.Store.layers, diffID)
		c.mended[diffID] = true
	}
	e.torn = e.torn || torn
	for _, e := range affected {
		c.present(e)
	}
	return bad, nil
}

// containing returns the images that have one of the layers. The caller holds mu.
func (c *checker) containing(layers []digest.Digest) map[string]*entry {
	found := map[string]*entry{}
	for id, e := range c.images {
		if slices.ContainsFunc(e.record.Layers, func(d digest.Digest) bool { return slices.Contains(layers, d) }) {
			found[id] = e
		}
	}
	return found
}
