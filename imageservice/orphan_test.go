package imageservice

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// losses are ways to lose a record.
func losses() map[string]func(dir string) error {
	none := func(dir string, names ...string) (err error) {
		for _, name := range names {
			err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
		}
		return err
	}
	return map[string]func(dir string) error{
		"no documents": func(dir string) error { return none(dir, imageFile, configFile) },
		"empty documents": func(dir string) error {
			return errors.Join(os.Truncate(filepath.Join(dir, imageFile), 0), os.Truncate(filepath.Join(dir, configFile), 0))
		},
		"no names, no manifest": func(dir string) error { return none(dir, imageFile, manifestFile) },
		"nothing":               os.RemoveAll,
	}
}

// TestOrphans loses the record of an image that a container has, while the
// store is closed: its layers stay until the container is gone, through another
// start, and through pulls of the same image.
func TestOrphans(t *testing.T) {
	for name, lose := range losses() {
		t.Run(name, func(t *testing.T) {
			r, s := newRegistry(t), openOnce(t)
			r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")), gzipped(t, file("g", "y")))
			r.putImage("y", "1", testConfig(), gzipped(t, file("h", "z")))
			image := mustPull(t, s, r.ref("x:1"))
			mustPull(t, s, r.ref("y:1"))
			closeStore(t, s)
			if err := lose(s.recordPath(image.ID)); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the layers and the record of the lost image are not in the index
				s = reopen(t, s, image.ID)
				wantFile(t, filepath.Join(image.Layers[0], "g"), "y")
				wantFile(t, filepath.Join(image.Layers[1], "f"), "x")
				if err := s.Remove(context.Background(), image.ID); err != nil {
					t.Error(err)
				}
				if list := s.Images(); len(list) != 1 {
					t.Errorf("%d images are listed", len(list))
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			s = reopen(t, s, image.ID)
			s.Release(image.ID, "c")
			for _, dir := range image.Layers {
				if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("after the container's end: %v", err)
				}
			}
			closeStore(t, s)
		})
	}
}

// openOnce opens a store that the test closes itself, and damages.
func openOnce(t *testing.T) *Store {
	t.Helper()
	needRoot(t)
	s, err := Open(Config{Root: filepath.Join(t.TempDir(), "images")})
	if err != nil {
		t.Fatal(err)
	}
	s.Collect()
	return s
}

// reopen starts with a container that has the image.
func reopen(t *testing.T, old *Store, imageID string) *Store {
	t.Helper()
	s, err := Open(old.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Hold(imageID, "c"); err != nil {
		t.Error(err)
	}
	s.Collect()
	s.background.Wait()
	return s
}

// TestOrphansPulledAgain pulls an image whose record was lost: the layers that
// a container has mounted become its layers again, if they are whole.
func TestOrphansPulledAgain(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		for name, lose := range losses() {
			t.Run(name+map[bool]string{true: ", damaged"}[damaged], func(t *testing.T) {
				r, s := newRegistry(t), openOnce(t)
				r.putImage("x", "1", testConfig(), gzipped(t, oddItems()...), gzipped(t, file("a/b/f", "x")), gzipped(t, file("a/g", "y")))
				image := mustPull(t, s, r.ref("x:1"))
				closeStore(t, s)
				if err := lose(s.recordPath(image.ID)); err != nil {
					t.Fatal(err)
				}
				s = reopen(t, s, image.ID)
				top := filepath.Join(s.layerPath(image.Config.RootFS.DiffIDs[2]), diffDir)
				inUse, err := os.Open(top)
				if err != nil {
					t.Fatal(err)
				}
				defer inUse.Close()
				if damaged {
					if err := os.WriteFile(filepath.Join(top, "a/g"), []byte("Y"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				again, err := s.Pull(context.Background(), r.ref("x:1"), nil)
				if damaged && name != "no names, no manifest" {
					if err == nil || !strings.Contains(err.Error(), "remove these containers") || !strings.Contains(err.Error(), `"a/g"`) {
						t.Errorf("a damaged layer: %v", err)
					}
					s.Release(image.ID, "c")
					mustPull(t, s, r.ref("x:1"))
					wantFile(t, filepath.Join(top, "a/g"), "y")
					closeStore(t, s)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				now, err := os.Stat(top)
				was, statErr := inUse.Stat()
				if err != nil || statErr != nil || !os.SameFile(now, was) {
					t.Errorf("the layer in use was replaced: %v, %v", err, statErr)
				}
				if !slices.Equal(again.Layers, image.Layers) || len(s.Damaged()) > 0 || len(s.orphans) > 0 {
					t.Errorf("layers %v, were %v; damaged %v; orphans %v", again.Layers, image.Layers, s.Damaged(), s.orphans)
				}
				if !damaged {
					wantWhole(t, s)
				}
				s.Release(image.ID, "c")
				closeStore(t, s)
				s = openStore(t, func(c *Config) { *c = s.config })
				if _, err := s.Image(r.ref("x:1")); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestOrphansOfArtifact loses image.json of an artifact, without which its
// layers are unknown.
func TestOrphansOfArtifact(t *testing.T) {
	r, s := newRegistry(t), openOnce(t)
	blob := r.putBlob("a", []byte("content"))
	blob.Annotations = map[string]string{ocispec.AnnotationTitle: "f"}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/x", Layers: []ocispec.Descriptor{blob}}
	m.SchemaVersion = 2
	m.Config = r.putBlob("a", []byte("{}"))
	m.Config.MediaType = ocispec.MediaTypeEmptyJSON
	r.putManifest("a", "1", ocispec.MediaTypeImageManifest, m)
	image := mustPull(t, s, r.ref("a:1"))
	closeStore(t, s)
	if err := os.Remove(filepath.Join(s.recordPath(image.ID), imageFile)); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s, image.ID)
	wantFile(t, filepath.Join(image.Layers[0], "f"), "content")
	again := mustPull(t, s, r.ref("a:1"))
	if again.Artifact != image.Artifact || !slices.Equal(again.Layers, image.Layers) {
		t.Errorf("%+v, was %+v", again, image)
	}
	if got := slices.Collect(maps.Keys(s.lost())); len(got) > 0 {
		t.Errorf("lost: %v", got)
	}
	wantWhole(t, s)
	s.Release(image.ID, "c")
	closeStore(t, s)
}
