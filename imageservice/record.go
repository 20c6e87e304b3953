package imageservice

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

const (
	imageFile    = "image.json"
	manifestFile = "manifest.json"
	configFile   = "config.json"
	layerFile    = "layer.json"
	diffDir      = "diff"
	parentsDir   = "parents"

	parentsListing = "parents.listing"
)

// imageRecord is image.json.
type imageRecord struct {
	ID       string          `json:"id"`
	Tags     []string        `json:"tags"`
	Digests  []string        `json:"digests"`
	Manifest digest.Digest   `json:"manifest"`
	Layers   []digest.Digest `json:"layers"` // diffIDs, the bottom one first
	PulledAt time.Time       `json:"pulledAt"`
	// Serial grows with each name that the store's images get: of two records that
	// a crash left with the same tag the higher one has it, whatever the clock did.
	Serial uint64 `json:"serial"`
	Source string `json:"source,omitempty"` // host that served the manifest
	// Artifact is the type of an artifact, "" for an image.
	Artifact string `json:"artifact,omitempty"`
	// Verified is against which rule of the image policy signatures were
	// checked, by name with digest.
	Verified map[string]string `json:"verified,omitempty"`
	// Parents says that parents/ exists: see parents.go.
	Parents bool `json:"parents,omitempty"`
	// Removed is an image that users removed while containers held it.
	Removed bool `json:"removed,omitempty"`
}

// clone returns a copy that shares nothing that changes.
func (r *imageRecord) clone() *imageRecord {
	c := *r
	c.Tags = slices.Clone(r.Tags)
	c.Digests = slices.Clone(r.Digests)
	c.Verified = maps.Clone(r.Verified)
	return &c
}

// layerRecord is layer.json.
type layerRecord struct {
	DiffID digest.Digest `json:"diffID"`
	Blob   digest.Digest `json:"blob"`
	Size   int64         `json:"size"`   // of the blob
	Bytes  uint64        `json:"bytes"`  // on the disk
	Inodes uint64        `json:"inodes"` // on the disk
	// Listing is the sum of the layer's listing: see listing.go.
	Listing string `json:"listing"`
	// OpaqueRoot is a layer that hides all layers below it.
	OpaqueRoot bool `json:"opaqueRoot,omitempty"`
	// Implicit are directories that the layer holds without describing them.
	Implicit []string `json:"implicit,omitempty"`
}

// writeFile writes a new file and replaces the old one of that name by it. The
// content is durable only after the caller's syncfs, and the name only after
// syncDir.
func writeFile(path string, content []byte) error {
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}

// commitFile gives a file of writeFile its name, durably.
func commitFile(path string) error {
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	fault.Point("file.renamed")
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// syncFS makes everything written to d's file system durable, and reports
// errors of writing since d was opened.
func syncFS(d *os.File) error {
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync the file system of %s: %w", d.Name(), err)
	}
	return nil
}

// writeRecord replaces image.json, durably.
func writeRecord(dir string, record *imageRecord) error {
	content, err := ledger.Marshal(record)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, imageFile), content)
}

// replaceFile replaces one file, durably.
func replaceFile(path string, content []byte) error {
	if err := writeFile(path, content); err != nil {
		return err
	}
	fault.Point("file.written")
	f, err := os.Open(path + ".new")
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	fault.Point("file.synced")
	return commitFile(path)
}

// readEntry reads the record of one image, and its config if that is the one
// that the image's id promises. Of image.json and config.json one is enough to
// know the layers: an image without the first has lost its names, one without
// the second is torn. Without both it is unreadable, and so is an artifact
// without the first. An error says that the directory is no record.
func readEntry(dir string) (*entry, error) {
	id := digest.NewDigestFromEncoded(digest.Canonical, filepath.Base(dir))
	if err := id.Validate(); err != nil {
		return nil, fmt.Errorf("read %s: it is no record: %w", dir, err)
	}
	e := &entry{record: &imageRecord{}, config: &ocispec.Image{}}
	recordErr := ledger.Read(filepath.Join(dir, imageFile), e.record)
	if recordErr == nil && e.record.ID != id.String() {
		recordErr = fmt.Errorf("read %s: it is the record of image %q", dir, e.record.ID)
	}
	content, err := os.ReadFile(filepath.Join(dir, configFile))
	if err == nil && id.Algorithm().FromBytes(content) != id {
		err = fmt.Errorf("read %s: %w", filepath.Join(dir, configFile), ErrDigestMismatch)
	}
	if err == nil {
		e.size += uint64(len(content))
		e.config, err = decodeConfig(content)
	}
	switch {
	case recordErr != nil && (err != nil || len(e.config.RootFS.DiffIDs) == 0):
		klog.ErrorS(errors.Join(recordErr, err), "The record of an image is unreadable", "image", id)
		return unreadableEntry(id.String()), nil
	case err != nil:
		e.config, e.torn = &ocispec.Image{}, true
	case recordErr != nil:
		e.record = &imageRecord{ID: id.String(), Layers: e.config.RootFS.DiffIDs, Parents: exists(filepath.Join(dir, parentsDir))}
	}
	e.readRest(dir, recordErr != nil)
	return e, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// readRest looks at what else belongs to a record.
func (e *entry) readRest(dir string, identify bool) {
	if identify {
		content, err := os.ReadFile(filepath.Join(dir, manifestFile))
		// Without names and manifest nothing could ever mend or remove it.
		e.unreadable = err != nil
		e.record.Manifest = digest.FromBytes(content)
	}
	if info, err := os.Stat(filepath.Join(dir, manifestFile)); err == nil {
		e.size += uint64(info.Size())
	} else {
		e.torn = true
	}
	if e.record.Parents && !exists(filepath.Join(dir, parentsDir)) {
		e.torn = true
	}
}

// readLayer reads the record of one layer and sees that its directory exists.
func readLayer(dir string) (*layerRecord, error) {
	record := &layerRecord{}
	if err := ledger.Read(filepath.Join(dir, layerFile), record); err != nil {
		return nil, err
	}
	if err := record.DiffID.Validate(); err != nil || record.DiffID.Encoded() != filepath.Base(dir) {
		return nil, fmt.Errorf("read %s: it is the record of layer %q", dir, record.DiffID)
	}
	info, err := os.Lstat(filepath.Join(dir, diffDir))
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, diffDir), unix.ENOTDIR)
	}
	return record, nil
}

// Documents returns an image's manifest and config as the registry sent them,
// for the image with that id.
func (s *Store) Documents(imageID string) (manifest, config []byte, err error) {
	s.mu.Lock()
	e := s.images[imageID]
	var record *imageRecord
	if e != nil {
		record = e.record
	}
	s.mu.Unlock()
	if record == nil {
		return nil, nil, fmt.Errorf("documents of %s: %w", imageID, ErrNotFound)
	}
	dir := s.recordPath(imageID)
	if manifest, err = readDocument(dir, manifestFile, record.Manifest); err == nil {
		config, err = readDocument(dir, configFile, digest.Digest(imageID))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("documents of %s: %w", imageID, err)
	}
	return manifest, config, nil
}
