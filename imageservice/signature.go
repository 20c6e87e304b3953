package imageservice

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Signatures are cosign's: a manifest, found by its tag or as a referrer, with
// a layer for each signature. The layer is the signed text, which names the
// image's digest; an annotation of the layer holds the signature.
const (
	typeSimpleSigning   = "application/vnd.dev.cosign.simplesigning.v1+json"
	typeCosignArtifact  = "application/vnd.dev.cosign.artifact.sig.v1+json"
	signatureAnnotation = "dev.cosignproject.cosign/signature"
	payloadType         = "cosign container image signature"

	maxKeyFile    = 64 << 10
	maxPayload    = 64 << 10
	maxSignature  = 8 << 10 // in base64
	maxSignatures = 32
	minRSABits    = 2048
)

var (
	errKeyless   = errors.New("keyless signatures (Fulcio certificates) are not supported, name a public key")
	errOtherKey  = errors.New("it was made with another key")
	errOtherName = errors.New("it is for another name")
)

// publicKey is a key that may sign.
type publicKey struct {
	key any
	id  string
}

func readKeys(file string) ([]publicKey, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	rest, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(rest) > maxKeyFile {
		return nil, fmt.Errorf("%s has more than %d bytes", file, maxKeyFile)
	}
	keys, err := parseKeys(rest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return keys, nil
}

func parseKeys(rest []byte) ([]publicKey, error) {
	var keys []publicKey
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if bytes.Contains(rest, []byte("-----BEGIN")) {
				return nil, errors.New("a PEM block in it does not end, or is damaged")
			}
			break
		}
		switch block.Type {
		case "PUBLIC KEY":
		case "CERTIFICATE":
			return nil, fmt.Errorf("it is a certificate: %w", errKeyless)
		default:
			return nil, fmt.Errorf("a PEM block of type %q is no PUBLIC KEY", cut(block.Type, maxErrorText))
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		if err := usableKey(key); err != nil {
			return nil, err
		}
		sum := sha256.Sum256(block.Bytes)
		keys = append(keys, publicKey{key: key, id: hex.EncodeToString(sum[:])})
	}
	if len(keys) == 0 {
		return nil, errors.New("no public key in PEM is in it")
	}
	return keys, nil
}

func usableKey(key any) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return fmt.Errorf("an ECDSA key on %s is not supported, only on P-256", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSABits {
			return fmt.Errorf("an RSA key of %d bits is too weak, %d are asked for", k.N.BitLen(), minRSABits)
		}
	default:
		return fmt.Errorf("a key of type %T is not supported", key)
	}
	return nil
}

// signed tells whether the key made a signature of a text.
func (k publicKey) signed(text, signature []byte) bool {
	sum := sha256.Sum256(text)
	switch key := k.key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, sum[:], signature)
	case ed25519.PublicKey:
		return ed25519.Verify(key, text, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature) == nil
	}
	return false
}

// signature is one found in a registry. All of it is hostile until verified.
type signature struct {
	payload []byte
	value   string // base64
}

// payload is what cosign signs.
type payload struct {
	Critical struct {
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			Digest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
}

// verify checks one signature of an image: first who made it, then of what.
func (r *rule) verify(sig signature, repository string, root digest.Digest) error {
	value, err := base64.StdEncoding.DecodeString(sig.value)
	if err != nil {
		return errors.New("it is not base64")
	}
	by := false
	for _, k := range r.keys {
		by = by || k.signed(sig.payload, value)
	}
	if !by {
		return errOtherKey
	}
	var text payload
	if err := json.Unmarshal(sig.payload, &text); err != nil {
		return fmt.Errorf("what was signed is not JSON: %w", err)
	}
	c := text.Critical
	if c.Type != payloadType {
		return fmt.Errorf("what was signed is a %q", cut(printable(c.Type), maxErrorText))
	}
	if c.Image.Digest != root.String() {
		return fmt.Errorf("it is of another image, %q", cut(printable(c.Image.Digest), maxErrorText))
	}
	want := r.Identity
	switch want {
	case identityAny:
		return nil
	case identityRepository:
		want = repository
	}
	named, err := reference.ParseNormalizedNamed(c.Identity.Reference)
	if err != nil || named.Name() != want {
		return fmt.Errorf("%w, %q instead of %q", errOtherName, cut(printable(c.Identity.Reference), maxErrorText), want)
	}
	return nil
}

// signatures finds those of a digest: by cosign's tag, then among the
// referrers.
func (sess *session) signatures(ctx context.Context, root digest.Digest) ([]signature, error) {
	content, err := sess.tagged(ctx, root.Algorithm().String()+"-"+root.Encoded()+".sig")
	if err != nil {
		return nil, err
	}
	var found []signature
	if content != nil {
		if found, err = sess.signaturesIn(ctx, content, nil); err != nil {
			return nil, err
		}
	}
	list, err := sess.referrers(ctx, root, typeCosignArtifact)
	if err != nil {
		return nil, err
	}
	for _, desc := range list {
		if len(found) >= maxSignatures {
			break
		}
		content, err := sess.document(ctx, desc)
		if lasting(ctx, err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("referrer: %w", err)
		}
		if found, err = sess.signaturesIn(ctx, content, found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// signaturesIn reads a manifest of signatures. What is in it that is none is
// passed over: others may attach what they like.
func (sess *session) signaturesIn(ctx context.Context, manifest []byte, found []signature) ([]signature, error) {
	var m ocispec.Manifest
	if json.Unmarshal(manifest, &m) != nil {
		m.Layers = nil
	}
	for _, l := range m.Layers {
		value := l.Annotations[signatureAnnotation]
		if l.MediaType != typeSimpleSigning || value == "" || len(value) > maxSignature || l.Size > maxPayload ||
			checkDescriptor(l) != nil {
			continue
		}
		if len(found) >= maxSignatures {
			return found, nil
		}
		content, err := sess.document(ctx, ocispec.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size})
		if lasting(ctx, err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("signature: %w", err)
		}
		found = append(found, signature{payload: content, value: value})
	}
	return found, nil
}

// lasting tells whether a document is broken, not the way to it: that is worth
// no more than what was never there.
func lasting(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() == nil && !errors.Is(err, ErrRegistryUnavailable) && !errors.Is(err, ErrStalled)
}
