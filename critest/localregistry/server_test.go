package localregistry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/cri-runtime/cri-runtime/critest/images"
)

func start(t *testing.T, o Options) (*Server, images.Named) {
	t.Helper()
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	a, err := images.Spec{Layers: []images.Layer{{Entries: []images.Entry{images.File("x", "body\n", 0)}}}}.Build()
	if err != nil {
		t.Fatal(err)
	}
	n := images.Named{Repository: "a/b", Tag: "v1", Artifact: a}
	if err := s.Push(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	return s, n
}

func get(ctx context.Context, s *Server, auth authn.Authenticator) (v1.Image, error) {
	ref, err := name.ParseReference(s.Address + "/a/b:v1")
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	if s.CA != nil {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(s.CA)
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return remote.Image(ref, remote.WithContext(ctx), remote.WithAuth(auth), remote.WithTransport(transport),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}))
}

func TestAuthentication(t *testing.T) {
	right := &authn.Basic{Username: "me", Password: "secret"}
	wrong := &authn.Basic{Username: "me", Password: "guess"}
	for _, test := range []struct {
		name    string
		options Options
		auth    authn.Authenticator
		ok      bool
	}{
		{"http anonymous", Options{}, authn.Anonymous, true},
		{"https anonymous", Options{TLS: true}, authn.Anonymous, true},
		{"basic", Options{User: "me", Password: "secret"}, right, true},
		{"basic wrong", Options{User: "me", Password: "secret"}, wrong, false},
		{"basic missing", Options{User: "me", Password: "secret"}, authn.Anonymous, false},
		{"token", Options{User: "me", Password: "secret", Token: true, TLS: true}, right, true},
		{"token wrong", Options{User: "me", Password: "secret", Token: true, TLS: true}, wrong, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, n := start(t, test.options)
			image, err := get(t.Context(), s, test.auth)
			if (err == nil) != test.ok {
				t.Fatalf("pull: %v, want success: %v", err, test.ok)
			}
			if err != nil {
				return
			}
			if d, err := image.Digest(); err != nil || d.String() != n.Artifact.Digest() {
				t.Errorf("digest %s (%v), want %s", d, err, n.Artifact.Digest())
			}
			if s.Requests("/manifests/") == 0 {
				t.Error("the request was not counted")
			}
		})
	}
}

func TestFaults(t *testing.T) {
	for f, what := range map[Fault]string{
		Truncate: "truncate", Tamper: "tamper", Unavailable: "unavailable",
	} {
		t.Run(what, func(t *testing.T) {
			s, _ := start(t, Options{})
			s.Break("/blobs/", f)
			if err := readLayer(t.Context(), s); err == nil {
				t.Error("a broken blob was accepted")
			}
			s.Mend()
			if err := readLayer(t.Context(), s); err != nil {
				t.Error("after Mend:", err)
			}
		})
	}
}

func TestHangEndsWithTheClient(t *testing.T) {
	for _, f := range []Fault{Hang, HangInBody} {
		s, _ := start(t, Options{})
		s.Break("/blobs/", f)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		err := readLayer(ctx, s)
		cancel()
		if err == nil {
			t.Error("a hanging blob was read")
		}
	}
}

func TestOnlyLoopback(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", "[::]:0", "example.org:0"} {
		if _, err := Start(t.Context(), Options{Listen: listen}); !errors.Is(err, ErrNotLoopback) {
			t.Errorf("%s: %v", listen, err)
		}
	}
}

func readLayer(ctx context.Context, s *Server) error {
	image, err := get(ctx, s, authn.Anonymous)
	if err != nil {
		return err
	}
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	r, err := layers[0].Compressed()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}
