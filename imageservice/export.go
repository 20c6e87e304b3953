package imageservice

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	nameAnnotation = "io.containerd.image.name" // the whole name; ocispec.AnnotationRefName has the tag
	dockerManifest = "manifest.json"
	blobsDir       = "blobs/sha256/"
)

// Export is an image about to be written to an archive. It holds the image
// until it is closed.
//
// Compressed blobs are not kept, so layers are archived anew from their
// directories: not compressed, sorted, and in general not byte for byte what
// was pulled. Their diffIDs then differ, with them the config that names these,
// and with it the image's id: the file tree is the same, the names are not.
type Export struct {
	// ID is the id of the image in this store, NewID that of the archive's.
	ID, NewID string
	// RepoTags are the names that the archive gives the image.
	RepoTags []string
	// Manifest is the digest of the manifest in the archive.
	Manifest digest.Digest
	// Size is what the archive's blobs take.
	Size int64

	store     *Store
	user      string
	layers    []exportedLayer // each once
	documents map[digest.Digest][]byte
	order     []digest.Digest // of documents
	index     []byte
	docker    []byte
}

type exportedLayer struct {
	ocispec.Descriptor
	record *layerRecord
}

// Export prepares the archive of the image that ref finds: it reads all layers
// once to learn their digests. The caller closes it.
func (s *Store) Export(ctx context.Context, ref string) (_ *Export, err error) {
	image, err := s.Image(ref)
	if err != nil {
		return nil, err
	}
	e := &Export{
		ID: image.ID, RepoTags: image.RepoTags, store: s, user: "export-" + randomName(),
		documents: map[digest.Digest][]byte{},
	}
	if err := s.Hold(e.ID, e.user); err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	_, raw, err := s.Documents(e.ID)
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	if err := e.measure(ctx, image, raw); err != nil {
		return nil, fmt.Errorf("export %s: %w", e.ID, err)
	}
	return e, nil
}

// Close lets go of the image.
func (e *Export) Close() { e.store.Release(e.ID, e.user) }

// measure finds the digests of all that will be written.
func (e *Export) measure(ctx context.Context, image *Image, config []byte) error {
	known := map[digest.Digest]ocispec.Descriptor{}
	var chain []ocispec.Descriptor
	var diffIDs []digest.Digest
	same := true
	for _, diffID := range image.Config.RootFS.DiffIDs {
		desc, ok := known[diffID]
		if !ok {
			l, err := e.measureLayer(ctx, diffID)
			if err != nil {
				return fmt.Errorf("layer %s: %w", diffID, err)
			}
			desc = l.Descriptor
			known[diffID] = desc
			e.layers = append(e.layers, l)
			e.Size += desc.Size
		}
		same = same && desc.Digest == diffID
		chain, diffIDs = append(chain, desc), append(diffIDs, desc.Digest)
	}
	if !same {
		var err error
		if config, err = withDiffIDs(config, diffIDs); err != nil {
			return err
		}
	}
	return e.describe(config, chain)
}

func (e *Export) measureLayer(ctx context.Context, diffID digest.Digest) (exportedLayer, error) {
	e.store.mu.Lock()
	record := e.store.layers[diffID]
	e.store.mu.Unlock()
	if record == nil {
		return exportedLayer{}, fmt.Errorf("%w: it is gone", ErrNotFound)
	}
	digester := digest.SHA256.Digester()
	size := &countingWriter{Writer: digester.Hash()}
	if err := writeLayer(ctx, size, e.diff(diffID), record); err != nil {
		return exportedLayer{}, err
	}
	return exportedLayer{record: record, Descriptor: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer, Digest: digester.Digest(), Size: size.n,
	}}, nil
}

func (e *Export) diff(diffID digest.Digest) string {
	return filepath.Join(e.store.layerPath(diffID), diffDir)
}

// withDiffIDs replaces the layers that a config names and keeps the rest of it.
func withDiffIDs(config []byte, diffIDs []digest.Digest) ([]byte, error) {
	keys := map[string]json.RawMessage{}
	if err := json.Unmarshal(config, &keys); err != nil {
		return nil, fmt.Errorf("config: %w: %w", ErrMalformedManifest, err)
	}
	rootfs, err := json.Marshal(ocispec.RootFS{Type: "layers", DiffIDs: diffIDs})
	if err != nil {
		return nil, err
	}
	keys["rootfs"] = rootfs
	return json.Marshal(keys)
}

// describe makes the archive's documents.
func (e *Export) describe(config []byte, chain []ocispec.Descriptor) error {
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: e.document(ocispec.MediaTypeImageConfig, config), Layers: chain,
	}
	if chain == nil {
		manifest.Layers = []ocispec.Descriptor{}
	}
	raw, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	desc := e.document(ocispec.MediaTypeImageManifest, raw)
	e.NewID, e.Manifest = manifest.Config.Digest.String(), desc.Digest
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, tag := range e.RepoTags {
		n, err := parseReference(tag)
		if err != nil {
			return err
		}
		named := desc
		named.Annotations = map[string]string{nameAnnotation: tag, ocispec.AnnotationRefName: n.tag}
		index.Manifests = append(index.Manifests, named)
	}
	if len(index.Manifests) == 0 {
		index.Manifests = []ocispec.Descriptor{desc}
	}
	if e.index, err = json.Marshal(index); err != nil {
		return err
	}
	entry := dockerEntry{Config: blobsDir + manifest.Config.Digest.Encoded(), RepoTags: e.RepoTags, Layers: []string{}}
	for _, l := range chain {
		entry.Layers = append(entry.Layers, blobsDir+l.Digest.Encoded())
	}
	e.docker, err = json.Marshal([]dockerEntry{entry})
	return err
}

// dockerEntry is an image in the manifest.json of a docker-archive.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (e *Export) document(mediaType string, content []byte) ocispec.Descriptor {
	d := digest.FromBytes(content)
	if _, ok := e.documents[d]; !ok {
		e.order = append(e.order, d)
		e.Size += int64(len(content))
	}
	e.documents[d] = content
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
}

// Write writes a tar that is an OCI layout and a docker-archive at once. The
// same image always gives the same bytes.
func (e *Export) Write(ctx context.Context, w io.Writer) error {
	archive := tar.NewWriter(w)
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{{ocispec.ImageLayoutFile, layout}, {ocispec.ImageIndexFile, e.index}, {dockerManifest, e.docker}} {
		if err := writeEntry(archive, f.name, f.content); err != nil {
			return fmt.Errorf("export %s: %w", e.ID, err)
		}
	}
	for _, d := range e.order {
		if err := writeEntry(archive, blobsDir+d.Encoded(), e.documents[d]); err != nil {
			return fmt.Errorf("export %s: %w", e.ID, err)
		}
	}
	written := map[digest.Digest]bool{}
	for _, l := range e.layers {
		if written[l.Digest] {
			continue // two layers with the same files
		}
		written[l.Digest] = true
		if err := e.writeLayer(ctx, archive, l); err != nil {
			return fmt.Errorf("export %s: layer %s: %w", e.ID, l.record.DiffID, err)
		}
	}
	return archive.Close()
}

func (e *Export) writeLayer(ctx context.Context, archive *tar.Writer, l exportedLayer) error {
	if err := archive.WriteHeader(entryHeader(blobsDir+l.Digest.Encoded(), l.Size)); err != nil {
		return err
	}
	check := digest.SHA256.Digester()
	if err := writeLayer(ctx, io.MultiWriter(archive, check.Hash()), e.diff(l.record.DiffID), l.record); err != nil {
		return err
	}
	if got := check.Digest(); got != l.Digest {
		return fmt.Errorf("%w: its files changed while it was read: %s, then %s", ErrDigestMismatch, l.Digest, got)
	}
	return nil
}

func entryHeader(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)}
}

func writeEntry(archive *tar.Writer, name string, content []byte) error {
	if err := archive.WriteHeader(entryHeader(name, int64(len(content)))); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}

// countingWriter counts what is written.
type countingWriter struct {
	io.Writer
	n int64
}

// Write implements io.Writer.
func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.n += int64(n)
	return n, err
}
