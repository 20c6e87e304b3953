package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxReferrers is how many of the manifests that refer to one are looked at.
const maxReferrers = 32

// referrers lists the manifests of a type that refer to a digest: as the
// registry's API tells, or by the index under the digest's tag where the
// registry has no such API. All of it is what somebody claims.
func (sess *session) referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	content, err := sess.fetch(ctx, "referrers/"+subject.String(), url.Values{"artifactType": {artifactType}})
	if err != nil {
		return nil, err
	}
	if content == nil {
		if content, err = sess.tagged(ctx, subject.Algorithm().String()+"-"+subject.Encoded()); err != nil {
			return nil, err
		}
	}
	if content == nil {
		return nil, nil
	}
	var list ocispec.Index
	if err := json.Unmarshal(content, &list); err != nil {
		return nil, fmt.Errorf("%w: list of referrers: %w", ErrMalformedManifest, err)
	}
	var fit []ocispec.Descriptor
	for _, d := range list.Manifests {
		if d.ArtifactType != artifactType || checkDescriptor(d) != nil {
			continue // a registry may leave the choice to us
		}
		if fit = append(fit, d); len(fit) == maxReferrers {
			break
		}
	}
	return fit, nil
}

// tagged returns the manifest under a tag of the image's repository, nil if
// there is none.
func (sess *session) tagged(ctx context.Context, tag string) ([]byte, error) {
	return sess.fetch(ctx, "manifests/"+tag, nil)
}

// fetch reads a document of the repository, nil if no host has it.
func (sess *session) fetch(ctx context.Context, what string, query url.Values) (content []byte, err error) {
	err = sess.each(ctx, pulls, func(h *host) error {
		u, err := url.Parse(h.url(sess.name.domain, sess.repository, what))
		if err != nil {
			return err
		}
		all := u.Query()
		for k, v := range query {
			all[k] = v
		}
		u.RawQuery = all.Encode()
		content, _, err = h.get(ctx, u.String(), acceptManifests())
		return err
	})
	var answer *statusError
	if errors.As(err, &answer) && (answer.code == http.StatusNotFound || answer.code == http.StatusMethodNotAllowed) {
		return nil, nil // the last host, the registry itself, has none
	}
	if err != nil {
		return nil, sess.explain(err)
	}
	return content, nil
}
