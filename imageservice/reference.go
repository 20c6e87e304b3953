package imageservice

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

const (
	maxReferenceLength = 1024 // far above a name (255), a tag (128) and a digest
	minShortID         = 4    // hex digits of a shortened id
	fullIDLength       = 64
)

// name is a parsed image reference: normalized, with Docker Hub's defaults,
// and either a tag or a digest. A reference with both is one by digest.
type name struct {
	repository string // docker.io/library/busybox
	domain     string // docker.io
	tag        string
	digest     digest.Digest
}

// String returns the reference in full.
func (n name) String() string {
	if n.digest != "" {
		return n.repository + "@" + n.digest.String()
	}
	return n.repository + ":" + n.tag
}

// Normalize returns a reference in full, with Docker Hub's defaults.
func Normalize(text string) (string, error) {
	n, err := parseReference(text)
	return n.String(), err
}

// parseReference parses an image reference as users write it.
func parseReference(text string) (name, error) {
	if len(text) > maxReferenceLength {
		return name{}, fmt.Errorf("%w: %d bytes long, at most %d are allowed", ErrInvalidReference, len(text), maxReferenceLength)
	}
	named, err := reference.ParseDockerRef(text)
	if err != nil {
		return name{}, fmt.Errorf("%w %q: %w", ErrInvalidReference, text, err)
	}
	n := name{repository: named.Name(), domain: reference.Domain(named)}
	switch r := named.(type) {
	case reference.Digested:
		n.digest = r.Digest()
	case reference.Tagged:
		n.tag = r.Tag()
	default:
		return name{}, fmt.Errorf("%w %q: neither tag nor digest", ErrInvalidReference, text)
	}
	return n, nil
}

// shortID returns the hex digits of an id or a shortened one, and whether the
// text is that at all.
func shortID(text string) (digits string, prefixed, ok bool) {
	digits, prefixed = strings.CutPrefix(text, "sha256:")
	if len(digits) < minShortID || len(digits) > fullIDLength || strings.ToLower(digits) != digits {
		return "", prefixed, false
	}
	even := digits
	if len(even)%2 == 1 {
		even += "0"
	}
	_, err := hex.DecodeString(even)
	return digits, prefixed, err == nil
}

// pattern is an entry of Config.PinnedImages: a reference, or one that ends in
// "*" and stands for all that start so.
type pattern struct {
	text   string
	prefix bool
}

func parsePattern(text string) (pattern, error) {
	stem, prefix := strings.CutSuffix(text, "*")
	if !prefix {
		n, err := parseReference(text)
		return pattern{text: n.String()}, err
	}
	// A stem need not be a whole reference: complete it, then cut again.
	const filler = "x"
	named, err := reference.ParseNormalizedNamed(stem + filler)
	if err != nil {
		return pattern{}, fmt.Errorf("%w %q: %w", ErrInvalidReference, text, err)
	}
	return pattern{text: strings.TrimSuffix(named.String(), filler), prefix: true}, nil
}

func (p pattern) match(name string) bool {
	if p.prefix {
		return strings.HasPrefix(name, p.text)
	}
	return name == p.text
}
