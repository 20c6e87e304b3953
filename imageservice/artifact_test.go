package imageservice

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blobOf is a blob of a test artifact.
type blobOf struct {
	title, mediaType string
	content          []byte
	unpack           bool
}

func (r *testRegistry) putArtifact(repo, tag, artifactType string, blobs ...blobOf) ocispec.Descriptor {
	r.t.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType}
	m.Config = r.putBlob(repo, []byte("{}"))
	m.Config.MediaType = ocispec.MediaTypeEmptyJSON
	for _, b := range blobs {
		l := r.putBlob(repo, b.content)
		if l.MediaType = b.mediaType; l.MediaType == "" {
			l.MediaType = "application/octet-stream"
		}
		l.Annotations = map[string]string{}
		if b.title != "" {
			l.Annotations[ocispec.AnnotationTitle] = b.title
		}
		if b.unpack {
			l.Annotations[unpackAnnotation] = "true"
		}
		m.Layers = append(m.Layers, l)
	}
	return r.putManifest(repo, tag, ocispec.MediaTypeImageManifest, m)
}

const typeTar = "application/vnd.oci.image.layer.v1.tar"

func TestArtifact(t *testing.T) {
	r := newRegistry(t)
	root := filepath.Join(t.TempDir(), "images")
	s := openStore(t, func(c *Config) { c.Root = root })
	long := strings.Repeat("n", 200) + "/é"
	desc := r.putArtifact("models/m", "1", "application/vnd.example.model",
		blobOf{title: "weights.bin", content: []byte(strings.Repeat("w", 100_000))},
		blobOf{title: "conf/a.json", content: []byte("{}")},
		blobOf{title: "conf/empty"},
		blobOf{title: long, content: []byte("long")},
		blobOf{title: "plain.txt", mediaType: typeTar, content: []byte("oras calls files archives")},
		blobOf{mediaType: typeTar, content: archive(t, dir("tree", 0o755), file("tree/x", "unpacked"))},
		blobOf{title: "dir", mediaType: typeTar + "+gzip", unpack: true, content: gzipped(t, dir("dir", 0o755), file("dir/y", "too")).content(t)})
	want := map[string]string{
		"weights.bin": strings.Repeat("w", 100_000), "conf/a.json": "{}", "conf/empty": "", long: "long",
		"plain.txt": "oras calls files archives", "tree/x": "unpacked", "dir/y": "too",
	}
	check := func(s *Store, image *Image) {
		t.Helper()
		if image.ID != desc.Digest.String() || image.Artifact != "application/vnd.example.model" || image.Config.RootFS.DiffIDs != nil {
			t.Errorf("%+v", image)
		}
		for name, content := range want {
			found := false
			for _, l := range image.Layers {
				got, err := os.ReadFile(filepath.Join(l, name))
				found = found || err == nil && string(got) == content
			}
			if !found {
				t.Errorf("%s is not in the artifact", name)
			}
		}
		manifest, _, err := s.Documents(image.ID)
		if err != nil || digest.FromBytes(manifest) != desc.Digest {
			t.Errorf("documents: %s, %v", manifest, err)
		}
	}
	check(s, mustPull(t, s, r.ref("models/m:1")))
	if images := s.Images(); len(images) != 1 {
		t.Errorf("%d images", len(images))
	}
	r.forgetGets()
	r.putArtifact("models/m", "2", "application/vnd.example.model", blobOf{title: "conf/a.json", content: []byte("{}")})
	mustPull(t, s, r.ref("models/m:2"))
	if gets := r.blobGets(); len(gets) > 0 {
		t.Errorf("downloaded again: %v", gets)
	}
	if err := s.Remove(context.Background(), r.ref("models/m:2")); err != nil {
		t.Error(err)
	}
	closeStore(t, s)
	s = openStore(t, func(c *Config) { c.Root = root })
	image, err := s.Image(r.ref("models/m:1"))
	if err != nil {
		t.Fatal(err)
	}
	check(s, image)
}

// TestArtifactRefused pulls artifacts that must not come in.
func TestArtifactRefused(t *testing.T) {
	r := newRegistry(t)
	many := make([]blobOf, maxLayers+1)
	for i := range many {
		many[i] = blobOf{title: strings.Repeat("x", i/200+1) + strings.Repeat("y", i%200)}
	}
	for name, c := range map[string]struct {
		blobs []blobOf
		want  error
		text  string
	}{
		"climbs":     {[]blobOf{{title: "../evil"}}, ErrMalformedManifest, "relative"},
		"inside":     {[]blobOf{{title: "a/../../evil"}}, ErrMalformedManifest, "relative"},
		"absolute":   {[]blobOf{{title: "/etc/passwd"}}, ErrMalformedManifest, "relative"},
		"dot":        {[]blobOf{{title: "."}}, ErrMalformedManifest, "relative"},
		"slash":      {[]blobOf{{title: "a/"}}, ErrMalformedManifest, "relative"},
		"backslash":  {[]blobOf{{title: `..\evil`}}, ErrMalformedManifest, "printable"},
		"control":    {[]blobOf{{title: "a\nb"}}, ErrMalformedManifest, "printable"},
		"zero":       {[]blobOf{{title: "a\x00b"}}, ErrMalformedManifest, "printable"},
		"override":   {[]blobOf{{title: "a\u202eb"}}, ErrMalformedManifest, "printable"},
		"whiteout":   {[]blobOf{{title: "a/.wh..wh..opq"}}, ErrMalformedManifest, "deletion"},
		"long":       {[]blobOf{{title: strings.Repeat("a/", 600) + "a"}}, ErrMalformedManifest, "bytes"},
		"deep":       {[]blobOf{{title: strings.Repeat("a/", 40) + "a"}}, ErrMalformedManifest, "parts"},
		"long part":  {[]blobOf{{title: strings.Repeat("a", 256)}}, ErrMalformedManifest, "part of"},
		"twice":      {[]blobOf{{title: "a"}, {title: "a", content: []byte("b")}}, ErrMalformedManifest, "two files"},
		"below":      {[]blobOf{{title: "a"}, {title: "a/b"}}, ErrMalformedManifest, "below"},
		"no title":   {[]blobOf{{content: []byte("x")}}, ErrUnsupported, "neither"},
		"no archive": {[]blobOf{{mediaType: typeTar, content: []byte(strings.Repeat("garbage!", 200))}}, ErrMalformedLayer, ""},
		"many":       {many, ErrTooLarge, strconv.Itoa(maxLayers + 1)},
		"empty":      {nil, ErrUnsupported, "without files"},
	} {
		t.Run(name, func(t *testing.T) {
			r.putArtifact("a", "1", "application/x", c.blobs...)
			s := openStore(t, nil)
			_, err := s.Pull(context.Background(), r.ref("a:1"), nil)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
			if len(s.Images()) > 0 || len(s.layers) > 0 {
				t.Error("something stays")
			}
		})
	}
	t.Run("an image's config too", func(t *testing.T) {
		l := r.putBlob("a", []byte("x"))
		l.Annotations = map[string]string{ocispec.AnnotationTitle: "x"}
		config := r.putBlob("a", []byte("{}"))
		config.MediaType = "application/x"
		r.putManifest("a", "both", ocispec.MediaTypeImageManifest, map[string]any{
			"schemaVersion": 2, "config": config, "layers": []any{l},
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest.FromString("y").String()}},
		})
		if _, err := openStore(t, nil).Pull(context.Background(), r.ref("a:both"), nil); !errors.Is(err, ErrMalformedManifest) {
			t.Errorf("got %v", err)
		}
	})
}

// FuzzTitle lets no title leave its directory.
func FuzzTitle(f *testing.F) {
	for _, title := range []string{"a", "a/b", "../a", "/a", "a//b", "a/./b", ".wh.a", "\xff", "é"} {
		f.Add(title)
	}
	f.Fuzz(func(t *testing.T, title string) {
		if checkTitle(title) == nil && (!filepath.IsLocal(title) || filepath.Clean(title) != title || len(title) > maxTitle) {
			t.Errorf("%q passes", title)
		}
	})
}
