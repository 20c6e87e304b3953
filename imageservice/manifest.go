package imageservice

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxDocument  = 8 << 20 // bytes of an index, a manifest or a config
	maxLayers    = 498     // the kernel stacks 500; two are implicit parents and the skeleton
	maxManifests = 4096    // entries of an index

	typeDockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerConfig   = "application/vnd.docker.container.image.v1+json"
	typeDockerSchema1  = "application/vnd.docker.distribution.manifest.v1+"
)

// document is an index or a manifest, as far as images need it.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	ArtifactType  string               `json:"artifactType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	FSLayers      json.RawMessage      `json:"fsLayers"`
}

// index tells whether the document is an index.
func (d *document) index() bool { return d.Config == nil }

// decodeDocument decodes and checks an index or a manifest. mediaType is what
// the registry or the index above called it, "" if nothing did.
func decodeDocument(content []byte, mediaType string) (*document, error) {
	d := &document{}
	if err := json.Unmarshal(content, d); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformedManifest, err)
	}
	if d.SchemaVersion == 1 || d.FSLayers != nil {
		return nil, refuseSchema1(typeDockerSchema1)
	}
	// CVE-2021-41190: what can be read in two ways must not be read at all.
	isIndex, isManifest := d.Manifests != nil, d.Config != nil || d.Layers != nil
	if isIndex && isManifest {
		return nil, fmt.Errorf("%w: it is both an index and a manifest", ErrMalformedManifest)
	}
	if !isIndex && d.Config == nil {
		return nil, fmt.Errorf("%w: media type %q with neither manifests nor a config", ErrMalformedManifest, mediaType)
	}
	for _, t := range []string{mediaType, d.MediaType} {
		switch t {
		case ocispec.MediaTypeImageIndex, typeDockerIndex:
			if isManifest {
				return nil, fmt.Errorf("%w: a manifest calls itself %s", ErrMalformedManifest, t)
			}
		case ocispec.MediaTypeImageManifest, typeDockerManifest:
			if isIndex {
				return nil, fmt.Errorf("%w: an index calls itself %s", ErrMalformedManifest, t)
			}
		}
	}
	if len(d.Manifests) > maxManifests || len(d.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: %d manifests and %d layers, at most %d and %d are read",
			ErrTooLarge, len(d.Manifests), len(d.Layers), maxManifests, maxLayers)
	}
	if isManifest {
		return d, checkManifest(d)
	}
	return d, nil
}

// refuseSchema1 refuses the manifests that Docker wrote before 2015, whose ids
// and layers cannot be verified.
func refuseSchema1(mediaType string) error {
	if !strings.HasPrefix(mediaType, typeDockerSchema1) {
		return nil
	}
	return fmt.Errorf("%w: it has a manifest of Docker's schema 1; push it again in a current format", ErrUnsupported)
}

func manifestType(mediaType string) bool {
	switch mediaType {
	case ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, typeDockerIndex, typeDockerManifest:
		return true
	}
	return false
}

// checkManifest sees that all parts of a manifest are of a kind we can use.
func checkManifest(d *document) error {
	if d.artifact() != "" {
		return checkArtifact(d)
	}
	switch d.Config.MediaType {
	case ocispec.MediaTypeImageConfig, typeDockerConfig:
	default:
		return fmt.Errorf("%w: its config has no media type", ErrUnsupported)
	}
	if err := checkDescriptor(*d.Config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if d.Config.Digest.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%w: its id would be %s; ids are of sha256", ErrUnsupported, d.Config.Digest)
	}
	for i, l := range d.Layers {
		if err := checkDescriptor(l); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		if !layerType(l.MediaType) {
			return fmt.Errorf("%w: layer %d is of type %q", ErrUnsupported, i, l.MediaType)
		}
	}
	return nil
}

func checkDescriptor(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("%w: digest %q: %w", ErrMalformedManifest, d.Digest, err)
	}
	if d.Size < 0 {
		return fmt.Errorf("%w: size %d", ErrMalformedManifest, d.Size)
	}
	return nil
}

// layerType tells whether a layer of that type can be unpacked. How it is
// compressed is seen from its first bytes, because some types lie.
func layerType(mediaType string) bool {
	base, compression, _ := strings.Cut(mediaType, "+")
	switch base {
	case "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar",
		"application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar":
		return compression == "" || compression == "gzip" || compression == "zstd"
	case "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.diff.tar.zstd",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return compression == ""
	}
	return false
}

// decodeConfig decodes an image's config.
func decodeConfig(content []byte) (*ocispec.Image, error) {
	config := &ocispec.Image{}
	if err := json.Unmarshal(content, config); err != nil {
		return nil, fmt.Errorf("config: %w: %w", ErrMalformedManifest, err)
	}
	for i, diffID := range config.RootFS.DiffIDs {
		if err := diffID.Validate(); err != nil {
			return nil, fmt.Errorf("config: diffID %d: %w: %w", i, ErrMalformedManifest, err)
		}
	}
	return config, nil
}

// checkConfig sees that a config fits its manifest and this node.
func checkConfig(config *ocispec.Image, manifest *document) error {
	if len(config.RootFS.DiffIDs) != len(manifest.Layers) {
		return fmt.Errorf("%w: %d layers, but %d diffIDs in the config",
			ErrMalformedManifest, len(manifest.Layers), len(config.RootFS.DiffIDs))
	}
	if !runsHere(config) {
		return fmt.Errorf("%w: it is for %s, this node is %s", ErrUnsupported,
			platforms.Format(config.Platform), platforms.Format(platforms.DefaultSpec()))
	}
	return nil
}

// runsHere tells whether this node can run the config's platform. An image
// without files or programs may leave it out.
func runsHere(config *ocispec.Image) bool {
	p := config.Platform
	if p.OS == "" && p.Architecture == "" {
		return true
	}
	return platforms.Default().Match(platforms.Normalize(p))
}

var errNoPlatform = errors.New("no manifest for this platform")

// choose orders the entries of an index: those for this node's platform, the
// best first; if there are none, those that name no platform.
func choose(entries []ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	matcher := platforms.Default()
	var fit, unnamed []ocispec.Descriptor
	var seen []string
	for _, d := range entries {
		switch {
		case d.Platform == nil:
			unnamed = append(unnamed, d)
		case matcher.Match(*d.Platform):
			fit = append(fit, d)
		default:
			seen = append(seen, platforms.Format(*d.Platform))
		}
	}
	sortPlatforms(fit, matcher)
	if len(fit) > 0 {
		return fit[:1], nil
	}
	if len(unnamed) > 0 {
		return unnamed[:min(len(unnamed), maxUnnamed)], nil
	}
	return nil, fmt.Errorf("%w: %w %s, only for %s", ErrUnsupported, errNoPlatform,
		platforms.Format(platforms.DefaultSpec()), cut(strings.Join(seen, ", "), maxErrorText))
}
