package imageservice

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// signer is a key of each kind that may sign.
type signer struct {
	private crypto.Signer
	file    string // with the public key
}

func newSigner(t testing.TB, kind string) signer {
	t.Helper()
	var s signer
	var err error
	switch kind {
	case "ecdsa":
		s.private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ed25519":
		_, s.private, err = ed25519.GenerateKey(rand.Reader)
	case "rsa":
		s.private, err = rsa.GenerateKey(rand.Reader, minRSABits)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.file = pemFile(t, "PUBLIC KEY", s.private.Public())
	return s
}

func pemFile(t testing.TB, kind string, public any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pub")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func (s signer) sign(t testing.TB, text []byte) string {
	t.Helper()
	var value []byte
	var err error
	if _, plain := s.private.(ed25519.PrivateKey); plain {
		value, err = s.private.Sign(rand.Reader, text, crypto.Hash(0))
	} else {
		sum := sha256.Sum256(text)
		value, err = s.private.Sign(rand.Reader, sum[:], crypto.SHA256)
	}
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(value)
}

func payloadOf(d digest.Digest, reference string) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":%q},"optional":null}`,
		reference, d, payloadType)
}

// attach uploads signatures of a digest as cosign does: under the tag, or as a
// referrer.
func (r *testRegistry) attach(repo string, subject ocispec.Descriptor, referrer bool, texts map[string][]byte) {
	r.t.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = r.putBlob(repo, []byte("{}"))
	m.Config.MediaType = ocispec.MediaTypeImageConfig
	for value, text := range texts {
		l := r.putBlob(repo, text)
		l.MediaType, l.Annotations = typeSimpleSigning, map[string]string{signatureAnnotation: value}
		m.Layers = append(m.Layers, l)
	}
	if !referrer {
		r.putManifest(repo, "sha256-"+subject.Digest.Encoded()+".sig", ocispec.MediaTypeImageManifest, m)
		return
	}
	m.ArtifactType, m.Subject = typeCosignArtifact, &subject
	desc := r.putManifest(repo, "", ocispec.MediaTypeImageManifest, m)
	desc.ArtifactType = typeCosignArtifact
	r.putManifest(repo, "sha256-"+subject.Digest.Encoded(), ocispec.MediaTypeImageIndex, index(desc))
}

func TestSignatures(t *testing.T) {
	good, other := newSigner(t, "ecdsa"), newSigner(t, "ecdsa")
	for _, c := range []struct {
		name     string
		key      signer // that signs
		keys     []string
		identity string
		text     func(d digest.Digest, repo string) []byte
		deny     string // "" for an image that comes in
	}{
		{name: "ecdsa", key: good},
		{name: "ed25519", key: newSigner(t, "ed25519")},
		{name: "rsa", key: newSigner(t, "rsa")},
		{name: "second key", key: good, keys: []string{other.file, good.file}},
		{name: "other key", key: other, keys: []string{good.file}, deny: "another key"},
		{name: "other image", key: good, deny: "another image", text: func(_ digest.Digest, repo string) []byte {
			return payloadOf(digest.FromString("x"), repo)
		}},
		{name: "other name", key: good, deny: "another name", text: func(d digest.Digest, repo string) []byte {
			return payloadOf(d, repo+"x")
		}},
		{name: "any name", key: good, identity: "any", text: func(d digest.Digest, _ string) []byte {
			return payloadOf(d, "elsewhere.example/y")
		}},
		{name: "named", key: good, identity: "upstream.example/y", text: func(d digest.Digest, _ string) []byte {
			return payloadOf(d, "upstream.example/y:tag")
		}},
		{name: "not named", key: good, identity: "upstream.example/y", deny: "another name"},
		{name: "other type", key: good, deny: "is a", text: func(d digest.Digest, repo string) []byte {
			return []byte(strings.Replace(string(payloadOf(d, repo)), payloadType, "letter", 1))
		}},
		{name: "no JSON", key: good, deny: "not JSON", text: func(digest.Digest, string) []byte { return []byte("hello") }},
	} {
		for _, referrer := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s referrer %v", c.name, referrer), func(t *testing.T) {
				r := newRegistry(t)
				_, desc := r.putImage("team/x", "1", testConfig(), gzipped(t, file("f", "x")))
				if c.text == nil {
					c.text = payloadOf
				}
				text := c.text(desc.Digest, r.ref("team/x"))
				r.attach("team/x", desc, referrer, map[string][]byte{c.key.sign(t, text): text})
				if c.keys == nil {
					c.keys = []string{c.key.file}
				}
				s := openStore(t, func(config *Config) {
					config.Policy = Policy{Default: PolicyReject, Rules: []PolicyRule{
						{Prefix: r.ref("team"), Type: PolicySigstore, Keys: c.keys, Identity: c.identity},
					}}
				})
				_, err := s.Pull(context.Background(), r.ref("team/x:1"), nil)
				if (c.deny == "") != (err == nil) {
					t.Fatalf("got %v", err)
				}
				if err != nil && (!errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), c.deny) || !strings.Contains(err.Error(), r.ref("team"))) {
					t.Errorf("got %v, want the rule and %q", err, c.deny)
				}
				if err != nil && (len(r.blobGets()) > 1 || len(s.Images()) > 0) {
					t.Errorf("downloaded before the verdict: %v", r.blobGets())
				}
			})
		}
	}
}

// TestPolicyRules lets the longest prefix decide, component by component.
func TestPolicyRules(t *testing.T) {
	key := newSigner(t, "ecdsa").file
	p, err := readPolicy(Policy{Default: PolicyReject, Rules: []PolicyRule{
		{Prefix: "docker.io/library", Type: PolicyAccept},
		{Prefix: "registry.example:5000", Type: PolicyAccept},
		{Prefix: "registry.example:5000/team", Type: PolicySigstore, Keys: []string{key}},
		{Prefix: "registry.example:5000/team/tools", Type: PolicyReject},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for repository, want := range map[string]string{
		"docker.io/library/busybox":          PolicyAccept,
		"docker.io/librarian/x":              PolicyReject,
		"registry.example:5000/x":            PolicyAccept,
		"registry.example:5000/team":         PolicySigstore,
		"registry.example:5000/team/x":       PolicySigstore,
		"registry.example:5000/teamster/x":   PolicyAccept,
		"registry.example:5000/team/tools/x": PolicyReject,
		"registry.example/x":                 PolicyReject,
	} {
		if got := p.rule(repository).Type; got != want {
			t.Errorf("%s: %s, want %s", repository, got, want)
		}
	}
}

func TestPolicyErrors(t *testing.T) {
	key := newSigner(t, "ecdsa").file
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sigstore := func(prefix string, keys ...string) Policy {
		return Policy{Rules: []PolicyRule{{Prefix: prefix, Type: PolicySigstore, Keys: keys}}}
	}
	rules := func(r ...PolicyRule) Policy { return Policy{Rules: r} }
	for name, c := range map[string]struct {
		policy Policy
		text   string
	}{
		"default":     {Policy{Default: PolicySigstore}, "neither"},
		"no type":     {rules(PolicyRule{Prefix: "*"}), "none of"},
		"keyless":     {rules(PolicyRule{Prefix: "*", Type: "keyless"}), "keyless"},
		"no key":      {sigstore("*"), "keyless"},
		"certificate": {sigstore("*", pemFile(t, "CERTIFICATE", p384.Public())), "keyless"},
		"private":     {sigstore("*", pemFile(t, "PRIVATE KEY", p384.Public())), "PRIVATE KEY"},
		"curve":       {sigstore("*", pemFile(t, "PUBLIC KEY", p384.Public())), "P-384"},
		"weak":        {sigstore("*", pemFile(t, "PUBLIC KEY", weak.Public())), "1024"},
		"no file":     {sigstore("*", filepath.Join(t.TempDir(), "none")), "no such file"},
		"empty file":  {sigstore("*", os.DevNull), "no public key"},
		"prefix":      {sigstore("library/busybox", key), "docker.io"},
		"upper case":  {sigstore("registry.example/Team", key), "no registry"},
		"tag":         {sigstore("registry.example/team:1", key), "no registry"},
		"slash":       {sigstore("registry.example/team/", key), "no registry"},
		"index":       {sigstore("index.docker.io/library", key), "docker.io"},
		"twice":       {rules(PolicyRule{Prefix: "a.b", Type: "accept"}, PolicyRule{Prefix: "a.b", Type: "reject"}), "another rule"},
		"stray keys":  {rules(PolicyRule{Prefix: "a.b", Type: "accept", Keys: []string{key}}), "no meaning"},
		"identity": {
			rules(PolicyRule{Prefix: "a.b", Type: PolicySigstore, Keys: []string{key}, Identity: "a.b/c:1"}),
			"identity",
		},
	} {
		if _, err := readPolicy(c.policy); !errors.Is(err, errPolicy) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPolicyChanges pulls under one policy what is here from another.
func TestPolicyChanges(t *testing.T) {
	r, key := newRegistry(t), newSigner(t, "ecdsa")
	_, signed := r.putImage("x", "signed", testConfig(), gzipped(t, file("f", "x")))
	r.putImage("x", "unsigned", testConfig(), gzipped(t, file("f", "y")))
	text := payloadOf(signed.Digest, r.ref("x"))
	r.attach("x", signed, false, map[string][]byte{key.sign(t, text): text})
	root := filepath.Join(t.TempDir(), "images")
	under := func(p Policy, check func(*Store)) {
		t.Helper()
		s := openStore(t, func(c *Config) { c.Root, c.Policy = root, p })
		check(s)
		closeStore(t, s)
	}
	wants := func(s *Store, tag string, want error) {
		t.Helper()
		if _, err := s.Pull(context.Background(), r.ref("x:"+tag), nil); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", tag, err, want)
		}
	}
	asked := func() int {
		n := 0
		r.mu.Lock()
		defer r.mu.Unlock()
		for path, count := range r.gets {
			if strings.HasSuffix(path, ".sig") {
				n += count
			}
		}
		return n
	}
	under(Policy{}, func(s *Store) { wants(s, "signed", nil); wants(s, "unsigned", nil) })
	if asked() != 0 {
		t.Error("signatures were asked for without a rule")
	}
	keyed := Policy{Rules: []PolicyRule{{Prefix: r.host, Type: PolicySigstore, Keys: []string{key.file}}}}
	under(keyed, func(s *Store) {
		wants(s, "signed", nil)
		wants(s, "unsigned", ErrDenied)
		if len(s.Images()) != 2 {
			t.Error("an image that is here went")
		}
	})
	before := asked()
	under(keyed, func(s *Store) { wants(s, "signed", nil) })
	if asked() != before {
		t.Error("a recorded verdict was not used")
	}
	under(Policy{Rules: []PolicyRule{{Prefix: r.host, Type: PolicySigstore, Keys: []string{newSigner(t, "ecdsa").file}}}},
		func(s *Store) { wants(s, "signed", ErrDenied) })
	under(Policy{Default: PolicyReject}, func(s *Store) { wants(s, "signed", ErrDenied) })
}

// TestSignaturesUnavailable denies nothing for good when the registry is busy,
// and admits nothing.
func TestSignaturesUnavailable(t *testing.T) {
	r, key := newRegistry(t), newSigner(t, "ecdsa")
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, ".sig") {
			return false
		}
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	s := openStore(t, func(c *Config) {
		c.Policy = Policy{Rules: []PolicyRule{{Prefix: "*", Type: PolicySigstore, Keys: []string{key.file}}}}
	})
	if _, err := s.Pull(context.Background(), r.ref("x:1"), nil); !errors.Is(err, ErrRegistryUnavailable) {
		t.Errorf("got %v", err)
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add("docker.io/library", "docker.io/library/busybox")
	f.Add("*", "registry.example:5000/x")
	f.Fuzz(func(t *testing.T, prefix, repository string) {
		p, err := readPolicy(Policy{Default: PolicyReject, Rules: []PolicyRule{{Prefix: prefix, Type: PolicyAccept}}})
		if err != nil {
			return
		}
		accepted := p.rule(repository).Type == PolicyAccept
		if want := prefix == "*" || repository == prefix || strings.HasPrefix(repository, prefix+"/"); accepted != want {
			t.Errorf("%q for %q: %v", prefix, repository, accepted)
		}
	})
}

func FuzzSignature(f *testing.F) {
	key := newSigner(f, "ecdsa")
	text := payloadOf(digest.FromString("x"), "registry.example/x")
	f.Add(text, key.sign(f, text))
	r, err := readRule(PolicyRule{Prefix: "*", Type: PolicySigstore, Keys: []string{key.file}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, signed []byte, value string) {
		err := r.verify(signature{payload: signed, value: value}, "registry.example/x", digest.FromString("x"))
		if err == nil && string(signed) != string(text) {
			t.Errorf("%q was never signed", signed)
		}
	})
}
