package imageservice

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxIndexDepth = 3 // an index may list indexes
	maxUnnamed    = 8 // manifests without a platform that are tried
)

// resolved is an image as its registry describes it, verified, before any
// layer is here.
type resolved struct {
	root        digest.Digest // what the name stands for: an index or the manifest
	source      string        // what served it
	id          string
	verdict     string // of the image policy
	manifest    digest.Digest
	rawManifest []byte
	rawConfig   []byte
	config      *ocispec.Image
	artifact    string               // its type, "" for an image
	layers      []ocispec.Descriptor // the blobs; config.RootFS.DiffIDs are what is in them
}

// image follows a descriptor to the image for this node.
func (sess *session) image(ctx context.Context, root ocispec.Descriptor) (*resolved, error) {
	r, err := sess.follow(ctx, root, 0)
	if err != nil {
		return nil, err
	}
	r.root, r.source = root.Digest, sess.source
	return r, nil
}

func (sess *session) follow(ctx context.Context, desc ocispec.Descriptor, depth int) (*resolved, error) {
	if err := refuseSchema1(desc.MediaType); err != nil {
		return nil, err
	}
	from := desc
	if !manifestType(desc.MediaType) {
		from.MediaType = ocispec.MediaTypeImageManifest // some registries call it text/plain; the content tells
	}
	content, err := sess.document(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	d, err := decodeDocument(content, desc.MediaType)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	if d.index() {
		return sess.followIndex(ctx, d, depth)
	}
	if d.artifact() != "" {
		return resolveArtifact(d, desc.Digest, content)
	}
	r := &resolved{manifest: desc.Digest, rawManifest: content, layers: d.Layers, id: d.Config.Digest.String()}
	if r.rawConfig, err = sess.document(ctx, *d.Config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if r.config, err = decodeConfig(r.rawConfig); err != nil {
		return nil, err
	}
	return r, checkConfig(r.config, d)
}

// followIndex takes the best entry, or of those that name no platform the
// first whose config fits.
func (sess *session) followIndex(ctx context.Context, d *document, depth int) (*resolved, error) {
	if depth >= maxIndexDepth {
		return nil, fmt.Errorf("%w: indexes are nested more than %d deep", ErrTooLarge, maxIndexDepth)
	}
	entries, err := choose(d.Manifests)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		var r *resolved
		if r, err = sess.follow(ctx, entry, depth+1); err == nil || !errors.Is(err, ErrUnsupported) {
			return r, err
		}
	}
	return nil, err
}

func sortPlatforms(entries []ocispec.Descriptor, matcher platforms.MatchComparer) {
	slices.SortStableFunc(entries, func(a, b ocispec.Descriptor) int {
		switch {
		case matcher.Less(*a.Platform, *b.Platform):
			return -1
		case matcher.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
}
