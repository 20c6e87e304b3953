package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func TestCatalogIsWhatAnIndependentClientSees(t *testing.T) {
	catalog, err := Catalog(t.Context())
	if err != nil {
		t.Skip("needs busybox-static:", err)
	}
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	for _, n := range catalog {
		if err := n.Artifact.Push(t.Context(), h, n.Repository, n.Tag); err != nil {
			t.Fatalf("%s: %v", n.Repository, err)
		}
		if strings.Contains(n.Repository, "hostile") {
			continue
		}
		t.Run(n.Repository, func(t *testing.T) {
			ref, err := name.ParseReference(host + "/" + n.Repository + ":" + n.Tag)
			if err != nil {
				t.Fatal(err)
			}
			desc, err := remote.Get(ref)
			if err != nil {
				t.Fatal(err)
			}
			if desc.Digest.String() != n.Artifact.Digest() {
				t.Errorf("digest %s, want %s", desc.Digest, n.Artifact.Digest())
			}
			if n.Artifact.Children != nil {
				return
			}
			image, err := desc.Image()
			if err != nil {
				t.Fatal(err)
			}
			layers, err := image.Layers()
			if err != nil {
				t.Fatal(err)
			}
			for i, l := range layers {
				diffID, err := l.DiffID()
				if err != nil || diffID.String() != n.Artifact.DiffIDs[i] {
					t.Errorf("layer %d: diff id %s (%v), want %s", i, diffID, err, n.Artifact.DiffIDs[i])
				}
				blob, err := l.Compressed()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, blob); err != nil { // checks the digest
					t.Errorf("layer %d: %v", i, err)
				}
				blob.Close()
			}
			if id, err := image.ConfigName(); err != nil || id.String() != n.Artifact.ConfigID {
				t.Errorf("image id %s (%v), want %s", id, err, n.Artifact.ConfigID)
			}
		})
	}
}

func TestBuildIsReproducible(t *testing.T) {
	spec := Spec{Layers: []Layer{{Entries: []Entry{
		{Name: "x", Body: []byte("y"), Xattrs: map[string]string{"user.a": "1", "user.b": "2"}},
	}, Compression: Zstd}}}
	first, err := spec.Build()
	if err != nil {
		t.Fatal(err)
	}
	second, err := spec.Build()
	if err != nil {
		t.Fatal(err)
	}
	if first.Digest() != second.Digest() {
		t.Errorf("%s and %s", first.Digest(), second.Digest())
	}
}

func TestLayerTar(t *testing.T) {
	lower, _ := multiLayers()
	data, err := lower.Tar()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]*tar.Header{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seen[h.Name] = h
	}
	if got := seen["t/xattr"].PAXRecords["SCHILY.xattr.user.critest"]; got != "value one" {
		t.Errorf("xattr %q", got)
	}
	if h := seen["t/owned"]; h.Uid != 4711 || h.Gid != 815 || h.Mode != 0o4755 {
		t.Errorf("owner %d:%d mode %o", h.Uid, h.Gid, h.Mode)
	}
	if h := seen["t/hard-2"]; h.Typeflag != tar.TypeLink || h.Linkname != "t/hard-1" {
		t.Errorf("hard link %+v", h)
	}
}

func TestUnknownCompression(t *testing.T) {
	if _, err := (Spec{Layers: []Layer{{Compression: 42}}}).Build(); err == nil {
		t.Error("an unknown compression was accepted")
	}
}

func TestIndexNamesItsPlatforms(t *testing.T) {
	a, err := platforms(Layer{}, false)
	if err != nil {
		t.Fatal(err)
	}
	var m manifest
	if err := json.Unmarshal(a.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	if len(m.Manifests) != 3 || m.Manifests[2].Platform.Architecture != "amd64" {
		t.Errorf("manifests %+v", m.Manifests)
	}
}
