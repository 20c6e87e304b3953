package imageservice

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// dockerArchive is what docker save writes, with the layers as they are given.
func dockerArchive(t testing.TB, names []string, layers ...testLayer) []byte {
	t.Helper()
	config := testConfig()
	config.RootFS.Type = "layers"
	entry := dockerEntry{Config: "config.json", RepoTags: names}
	var files []item
	for i, l := range layers {
		if l.diffID == "" {
			l.diffID = digest.FromBytes(l.archive)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
		name := string(rune('a'+i)) + "/layer.tar"
		entry.Layers = append(entry.Layers, name)
		files = append(files, file(name, string(l.content(t))))
	}
	files = append(files, file("config.json", string(mustJSON(t, config))),
		file(dockerManifest, string(mustJSON(t, []dockerEntry{entry}))))
	return archive(t, files...)
}

func TestImportForms(t *testing.T) {
	good := testLayer{archive: archive(t, file("f", "content"))}
	squeezed := gzipped(t, file("g", "packed"))
	s := openStore(t, nil)
	images, err := s.Import(t.Context(), bytes.NewReader(dockerArchive(t, []string{"a.example/x:1", "b.example/y:2"}, good, squeezed)), "")
	if err != nil || len(images) != 1 || strings.Join(images[0].RepoTags, " ") != "a.example/x:1 b.example/y:2" ||
		len(images[0].RepoDigests) != 0 || len(images[0].Layers) != 2 {
		t.Fatalf("%+v, %v", images, err)
	}
	linked := archive(t, file("a/layer.tar", string(good.archive)), symlink("b/layer.tar", "../a/layer.tar"),
		file("c.json", string(mustJSON(t, ocispec.Image{RootFS: ocispec.RootFS{
			Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(good.archive), digest.FromBytes(good.archive)},
		}}))),
		file(dockerManifest, `[{"Config":"c.json","RepoTags":null,"Layers":["a/layer.tar","b/layer.tar"]}]`))
	if _, err := s.Import(t.Context(), bytes.NewReader(linked), ""); !errors.Is(err, ErrInvalidReference) {
		t.Errorf("no name: %v", err)
	}
	if images, err := s.Import(t.Context(), bytes.NewReader(linked), "given.example/z"); err != nil || images[0].RepoTags[0] != "given.example/z:latest" {
		t.Errorf("linked layers: %v, %v", images, err)
	}
}

// TestImportBad imports what must not come in, and sees that nothing stays.
func TestImportBad(t *testing.T) {
	s := openStore(t, nil)
	good := testLayer{archive: archive(t, file("f", "content"))}
	whole := dockerArchive(t, []string{"a.example/x:1"}, good)
	index := func(manifests string) string { return `{"schemaVersion":2,"manifests":[` + manifests + `]}` }
	for name, c := range map[string]struct {
		content []byte
		as      string
		want    error
	}{
		"nothing":            {nil, "", ErrMalformedArchive},
		"garbage":            {bytes.Repeat([]byte("garbage!"), 1000), "", ErrMalformedArchive},
		"cut short":          {whole[:len(whole)/2], "", ErrMalformedArchive},
		"cut short, packed":  {pack(t, whole)[:200], "", ErrMalformedArchive},
		"no image":           {archive(t, file("x", "y")), "", ErrMalformedArchive},
		"bad JSON":           {archive(t, file(dockerManifest, "{")), "", ErrMalformedArchive},
		"empty list":         {archive(t, file(dockerManifest, "[]")), "", ErrMalformedArchive},
		"bad index":          {archive(t, file(ocispec.ImageIndexFile, "[")), "", ErrMalformedManifest},
		"empty index":        {archive(t, file(ocispec.ImageIndexFile, index(""))), "", ErrMalformedArchive},
		"blob missing":       {archive(t, file(ocispec.ImageIndexFile, index(`{"mediaType":"`+ocispec.MediaTypeImageManifest+`","digest":"`+digest.FromString("x").String()+`","size":3}`))), "a.example/x:1", ErrMalformedArchive},
		"digest is no path":  {archive(t, file(ocispec.ImageIndexFile, index(`{"mediaType":"`+ocispec.MediaTypeImageManifest+`","digest":"sha256:../../../etc/passwd","size":3}`))), "a.example/x:1", ErrMalformedManifest},
		"huge document":      {archive(t, file(dockerManifest, strings.Repeat(" ", maxDocument+1))), "", ErrTooLarge},
		"config missing":     {archive(t, file(dockerManifest, `[{"Config":"../../etc/passwd","Layers":[]}]`)), "a:1", ErrMalformedArchive},
		"link to itself":     {archive(t, symlink("c", "c"), file(dockerManifest, `[{"Config":"c","Layers":[]}]`)), "a:1", ErrMalformedArchive},
		"link out":           {archive(t, symlink("c", "/etc/passwd"), file(dockerManifest, `[{"Config":"c","Layers":[]}]`)), "a:1", ErrMalformedArchive},
		"bad name":           {dockerArchive(t, []string{"../../x"}, good), "", ErrInvalidReference},
		"named by digest":    {whole, "a.example/x@" + digest.FromString("x").String(), ErrInvalidReference},
		"tampered":           {dockerArchive(t, []string{"a:1"}, testLayer{archive: good.archive, diffID: digest.FromString("x")}), "", ErrDigestMismatch},
		"tampered, packed":   {dockerArchive(t, []string{"a:1"}, testLayer{archive: good.archive, compress: "gzip", diffID: digest.FromString("x")}), "", ErrDigestMismatch},
		"layer climbs":       {dockerArchive(t, []string{"a:1"}, testLayer{archive: archive(t, file("../../evil", "x"))}), "", ErrMalformedLayer},
		"layer through link": {dockerArchive(t, []string{"a:1"}, testLayer{archive: archive(t, symlink("d", "/tmp"), file("d/evil", "x"))}), "", ErrMalformedLayer},
	} {
		t.Run(name, func(t *testing.T) {
			images, err := s.Import(t.Context(), bytes.NewReader(c.content), c.as)
			if !errors.Is(err, c.want) || len(images) != 0 {
				t.Errorf("%v, %v; want %v", images, err, c.want)
			}
			wantEmpty(t, s)
		})
	}
}

func wantEmpty(t *testing.T, s *Store) {
	t.Helper()
	if images := s.Images(); len(images) != 0 {
		t.Errorf("images %v", images)
	}
	for _, dir := range []string{"ingest", "layers", "records"} {
		if left, err := os.ReadDir(s.path(dir)); err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}

// An archive has the budgets of a layer, packed or not.
func TestImportLimits(t *testing.T) {
	s := openStore(t, nil)
	s.limits.bytes = 1 << 20
	bomb := archive(t, file("zeros", strings.Repeat("\x00", 4<<20)), file(dockerManifest, "[]"))
	for _, content := range [][]byte{bomb, pack(t, bomb)} {
		_, err := s.Import(t.Context(), bytes.NewReader(content), "")
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v", err)
		}
		wantEmpty(t, s)
	}
}

func TestImportCancelled(t *testing.T) {
	s := openStore(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := s.Import(ctx, r, "")
		done <- err
	}()
	if _, err := w.Write(archive(t, file("zeros", strings.Repeat("\x00", 1<<20)))[:4096]); err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = w.CloseWithError(context.Canceled)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	wantEmpty(t, s)
}
