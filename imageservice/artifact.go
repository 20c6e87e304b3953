package imageservice

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An artifact is a manifest whose config is no image's. Its blobs become
// files, named by their title, which a container can have as a volume; blobs of
// a layer's type are unpacked unless they have a title. Everything else of the
// store works as for images: a blob counts as a layer with one file, under an
// id made of title and digest, since no config tells a diffID. The id of an
// artifact is its manifest's digest, as most artifacts share one config.

const (
	maxTitle      = 1024 // bytes
	maxTitleDepth = 32
	maxTitlePart  = 255
	fileMode      = 0o644

	unpackAnnotation = "io.deis.oras.content.unpack" // "true": the blob is a directory's archive, its title the directory
)

// artifact tells whether a manifest is one, and of what type.
func (d *document) artifact() string {
	switch {
	case d.Config == nil:
		return ""
	case d.Config.MediaType == ocispec.MediaTypeImageConfig, d.Config.MediaType == typeDockerConfig:
		if d.ArtifactType == "" || d.ArtifactType == d.Config.MediaType {
			return ""
		}
	case d.ArtifactType == "":
		return d.Config.MediaType
	}
	return d.ArtifactType
}

// checkArtifact sees that each blob of an artifact has its place.
func checkArtifact(d *document) error {
	if len(d.Layers) == 0 {
		return fmt.Errorf("%w: it is an artifact of type %q without files", ErrUnsupported, cut(printable(d.artifact()), maxErrorText))
	}
	titles := map[string]bool{}
	for i, l := range d.Layers {
		if err := checkDescriptor(l); err != nil {
			return fmt.Errorf("file %d: %w", i, err)
		}
		title := titleOf(l)
		if title == "" {
			if !layerType(l.MediaType) {
				return fmt.Errorf("%w: file %d of the artifact has neither a title nor the type of a layer but %q",
					ErrUnsupported, i, cut(printable(l.MediaType), maxErrorText))
			}
			continue
		}
		if err := checkTitle(title); err != nil {
			return fmt.Errorf("file %d of the artifact: %w", i, err)
		}
		if titles[title] {
			return fmt.Errorf("%w: two files of the artifact have the title %q", ErrMalformedManifest, title)
		}
		titles[title] = true
	}
	for title := range titles {
		for at, c := range title {
			if c == '/' && titles[title[:at]] {
				return fmt.Errorf("%w: title %q of the artifact is below a file", ErrMalformedManifest, title)
			}
		}
	}
	return nil
}

// titleOf returns the name of the file that a blob becomes, "" for one that is
// unpacked.
func titleOf(l ocispec.Descriptor) string {
	if l.Annotations[unpackAnnotation] == "true" && layerType(l.MediaType) {
		return ""
	}
	return l.Annotations[ocispec.AnnotationTitle]
}

// checkTitle wants a relative path that is nothing but itself.
func checkTitle(title string) error {
	refuse := func(why string) error {
		return fmt.Errorf("%w: title %q %s", ErrMalformedManifest, cut(title, maxErrorText), why)
	}
	if len(title) > maxTitle {
		return refuse(fmt.Sprintf("has more than %d bytes", maxTitle))
	}
	if !utf8.ValidString(title) || strings.ContainsFunc(title, func(r rune) bool { return !unicode.IsPrint(r) || r == '\\' }) {
		return refuse("has bytes that are no printable text")
	}
	parts := strings.Split(title, "/")
	if len(parts) > maxTitleDepth {
		return refuse(fmt.Sprintf("has more than %d parts", maxTitleDepth))
	}
	for _, p := range parts {
		switch {
		case p == "", p == ".", p == "..":
			return refuse("is not a plain relative path")
		case len(p) > maxTitlePart:
			return refuse(fmt.Sprintf("has a part of more than %d bytes", maxTitlePart))
		case strings.HasPrefix(p, whiteoutPrefix):
			return refuse("means a deletion in a layer")
		}
	}
	return nil
}

// resolveArtifact plans what the blobs of an artifact become.
func resolveArtifact(d *document, manifest digest.Digest, content []byte) (*resolved, error) {
	if manifest.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("%w: its id would be %s; ids are of sha256", ErrUnsupported, manifest)
	}
	// After a loss of image.json the manifest is all that is known of an
	// artifact: it must not read as an image then.
	config, err := decodeConfig(content)
	if err != nil || len(config.RootFS.DiffIDs) > 0 {
		return nil, fmt.Errorf("%w: it is both an artifact and an image's config", ErrMalformedManifest)
	}
	r := &resolved{
		manifest: manifest, rawManifest: content, rawConfig: content, id: manifest.String(),
		layers: d.Layers, config: &ocispec.Image{}, artifact: cut(printable(d.artifact()), maxErrorText),
	}
	for _, l := range d.Layers {
		r.config.RootFS.DiffIDs = append(r.config.RootFS.DiffIDs, placeID(titleOf(l), l.Digest))
	}
	return r, nil
}

// placeID is the id of a blob as a layer. What is hashed last is shorter than
// the smallest archive, so that no layer can have the same diffID.
func placeID(title string, blob digest.Digest) digest.Digest {
	return digest.FromString("artifact " + digest.FromString(title+"\x00"+blob.String()).String())
}

// layer returns what is to be made of the i-th blob.
func (r *resolved) layer(i int) layer {
	l := layer{blob: r.layers[i], diffID: r.config.RootFS.DiffIDs[i]}
	if r.artifact != "" {
		l.loose, l.title = true, titleOf(l.blob)
	}
	return l
}

// archived returns a blob as an archive with one file.
func archived(title string, size int64, blob io.Reader) (io.Reader, error) {
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: title, Mode: fileMode, Size: size}); err != nil {
		return nil, fmt.Errorf("%w: title %q: %w", ErrMalformedManifest, title, err)
	}
	const block = 512
	tail := make([]byte, (block-size%block)%block+2*block)
	return io.MultiReader(&head, blob, bytes.NewReader(tail)), nil
}
