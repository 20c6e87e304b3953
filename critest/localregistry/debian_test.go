package localregistry

import (
	"errors"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/cri-runtime/cri-runtime/critest/images"
)

func TestDebian(t *testing.T) {
	d, err := StartDebian(t.Context(), t.TempDir())
	if errors.Is(err, ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	a, err := images.Spec{Layers: []images.Layer{{Entries: []images.Entry{images.File("x", "body\n", 0)}}}}.Build()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Push(t.Context(), images.Named{Repository: "a/b", Tag: "v1", Artifact: a}); err != nil {
		t.Fatal(err)
	}
	s := &Server{Address: d.Address, CA: d.CA}
	if _, err := get(t.Context(), s, authn.Anonymous); err == nil {
		t.Error("pulled without a user")
	}
	image, err := get(t.Context(), s, &authn.Basic{Username: DebianUser, Password: DebianPassword})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := image.Digest(); err != nil || got.String() != a.Digest() {
		t.Errorf("digest %s (%v), want %s", got, err, a.Digest())
	}
}
