package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const maxImports = 256 // images in one archive

// wanted is one image of an archive.
type wanted struct {
	names []name
	root  ocispec.Descriptor
	known map[digest.Digest][]byte // documents that the archive only implies
	// loose is an image whose manifest was made here: no registry knows it, so
	// it is no name.
	loose bool
}

// Import brings the images of an archive into the store: a tar, compressed or
// not, with an OCI layout or what docker save writes. With name they get that
// name, and there may be only one; otherwise their names are those that the
// archive has. An image goes the way of a pulled one: each byte is checked
// against its digest, each layer unpacked within the same limits.
func (s *Store) Import(ctx context.Context, archive io.Reader, as string) ([]*Image, error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	var given []name
	if as != "" {
		n, err := importName(as)
		if err != nil {
			return nil, err
		}
		given = []name{n}
	}
	a, err := s.spool(ctx, archive)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer a.close()
	list, err := a.images()
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	if given != nil {
		if list, err = one(list); err != nil {
			return nil, fmt.Errorf("import as %s: %w", given[0], err)
		}
		list[0].names = given
	}
	var images []*Image
	for _, w := range list {
		image, err := s.importOne(ctx, a, w)
		if err != nil {
			return images, fmt.Errorf("import %s: %w", w.title(), err)
		}
		images = append(images, image)
	}
	return images, nil
}

// importName parses the name that an imported image gets.
func importName(text string) (name, error) {
	n, err := parseReference(text)
	if err == nil && n.tag == "" {
		err = fmt.Errorf("%w %q: an imported image is named by a tag; its digest is what it is", ErrInvalidReference, text)
	}
	return n, err
}

// one is the archive's only image. The same image under several names is one.
func one(list []wanted) ([]wanted, error) {
	for _, w := range list[1:] {
		if w.root.Digest != list[0].root.Digest {
			return nil, fmt.Errorf("%w: it has %d images, and one name was given", ErrMalformedArchive, len(list))
		}
	}
	return list[:1], nil
}

func (w *wanted) title() string {
	if len(w.names) > 0 {
		return w.names[0].String()
	}
	return w.root.Digest.String()
}

func (s *Store) importOne(ctx context.Context, a *imported, w wanted) (image *Image, err error) {
	if len(w.names) == 0 {
		return nil, fmt.Errorf("%w: the archive does not name it; say what it is to be called", ErrInvalidReference)
	}
	sess := &session{name: w.names[0], known: w.known, archive: a, source: "import"}
	if sess.known == nil {
		sess.known = map[digest.Digest][]byte{}
	}
	r, err := sess.image(ctx, w.root)
	if err != nil {
		return nil, err
	}
	if w.loose {
		r.root = ""
	}
	for _, n := range w.names {
		if image, err = s.bring(ctx, sess, n, r); err != nil {
			return nil, err
		}
	}
	return image, nil
}

// images lists what is in the archive.
func (a *imported) images() ([]wanted, error) {
	var list []wanted
	var err error
	switch {
	case a.has(ocispec.ImageIndexFile):
		list, err = a.layout()
	case a.has(dockerManifest):
		list, err = a.dockerImages()
	default:
		err = fmt.Errorf("%w: it has neither %s, as an OCI layout has, nor %s, as docker save writes",
			ErrMalformedArchive, ocispec.ImageIndexFile, dockerManifest)
	}
	switch {
	case err != nil:
		return nil, err
	case len(list) == 0:
		return nil, fmt.Errorf("%w: it has no image", ErrMalformedArchive)
	case len(list) > maxImports:
		return nil, fmt.Errorf("%w: %d images, at most %d are imported at once", ErrTooLarge, len(list), maxImports)
	}
	return list, nil
}

// layout lists the images of an OCI layout: each manifest with a name is one,
// and those without are the platforms of one image.
func (a *imported) layout() ([]wanted, error) {
	content, err := a.document(ocispec.ImageIndexFile)
	if err != nil {
		return nil, err
	}
	index, err := decodeDocument(content, ocispec.MediaTypeImageIndex)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	var list []wanted
	unnamed := 0
	for _, desc := range index.Manifests {
		text, tag := desc.Annotations[nameAnnotation], desc.Annotations[ocispec.AnnotationRefName]
		if text == "" && strings.ContainsAny(tag, ":/") {
			text = tag // some builders write the whole name there
		}
		switch {
		case text != "":
			n, err := importName(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
			}
			list = add(list, wanted{names: []name{n}, root: desc})
		case tag != "":
			list = add(list, wanted{root: desc})
		default:
			unnamed++
		}
	}
	if len(list) > 0 || unnamed == 0 {
		return list, nil
	}
	if unnamed == 1 {
		return []wanted{{root: index.Manifests[0]}}, nil
	}
	root := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(content), Size: int64(len(content))}
	return []wanted{{root: root, known: map[digest.Digest][]byte{root.Digest: content}, loose: true}}, nil
}

// add puts an image on the list, or gives one that is there another name.
func add(list []wanted, w wanted) []wanted {
	at := slices.IndexFunc(list, func(old wanted) bool { return old.root.Digest == w.root.Digest })
	if at < 0 {
		return append(list, w)
	}
	list[at].names = append(list[at].names, w.names...)
	return list
}

// dockerImages lists the images of docker save, which has no manifests in our
// sense: they are made of what is there.
func (a *imported) dockerImages() ([]wanted, error) {
	content, err := a.document(dockerManifest)
	if err != nil {
		return nil, err
	}
	var entries []dockerEntry
	if err := json.Unmarshal(content, &entries); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", dockerManifest, ErrMalformedArchive, err)
	}
	if len(entries) > maxImports {
		return nil, fmt.Errorf("%w: %d images, at most %d are imported at once", ErrTooLarge, len(entries), maxImports)
	}
	var list []wanted
	for i, entry := range entries {
		w, err := a.dockerImage(entry)
		if err != nil {
			return nil, fmt.Errorf("%s: image %d: %w", dockerManifest, i, err)
		}
		for _, tag := range entry.RepoTags {
			n, err := importName(tag)
			if err != nil {
				return nil, fmt.Errorf("%s: image %d: %w", dockerManifest, i, err)
			}
			w.names = append(w.names, n)
		}
		list = append(list, w)
	}
	return list, nil
}

func (a *imported) dockerImage(entry dockerEntry) (w wanted, err error) {
	config, err := a.document(entry.Config)
	if err != nil {
		return w, fmt.Errorf("config: %w", err)
	}
	decoded, err := decodeConfig(config)
	if err != nil {
		return w, err
	}
	diffIDs := decoded.RootFS.DiffIDs
	if len(diffIDs) != len(entry.Layers) || len(diffIDs) > maxLayers {
		return w, fmt.Errorf("%w: %d layers, but %d diffIDs in the config", ErrMalformedArchive, len(entry.Layers), len(diffIDs))
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{},
	}
	for i, name := range entry.Layers {
		desc, err := a.dockerLayer(name, diffIDs[i])
		if err != nil {
			return w, fmt.Errorf("layer %d: %w", i, err)
		}
		manifest.Layers = append(manifest.Layers, desc)
	}
	raw, err := json.Marshal(manifest)
	if err != nil {
		return w, err
	}
	w.root = ocispec.Descriptor{MediaType: manifest.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	w.known = map[digest.Digest][]byte{w.root.Digest: raw, manifest.Config.Digest: config}
	w.loose = true
	return w, nil
}

// dockerLayer describes a layer. One that is not compressed should be what its
// diffID says, and is checked against that; another is read for its digest.
func (a *imported) dockerLayer(name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	s, err := a.find(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffID, Size: s.size}
	magic := make([]byte, magicLength)
	n, err := a.reader(s).ReadAt(magic, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return desc, fmt.Errorf("read %s of the archive: %w", quote(name), err)
	}
	if packed(magic[:n]) {
		digester := digest.SHA256.Digester()
		if _, err := io.Copy(digester.Hash(), a.reader(s)); err != nil {
			return desc, fmt.Errorf("read %s of the archive: %w", quote(name), err)
		}
		desc.Digest = digester.Digest()
	}
	a.blobs[desc.Digest] = name
	return desc, nil
}

// packed tells whether a blob that begins so is compressed.
func packed(magic []byte) bool {
	return slices.ContainsFunc([]string{"\x1f\x8b", "\x28\xb5\x2f\xfd"}, func(known string) bool {
		return len(magic) >= len(known) && string(magic[:len(known)]) == known
	}) || skippable(magic)
}
