package imageservice

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	id, manifest := r.putImage("lib/x", "1", testConfig(), gzipped(t, file("f", "x")))
	mustPull(t, s, r.ref("lib/x:1"))
	encoded := strings.TrimPrefix(id, "sha256:")
	for _, c := range []struct {
		ref  string
		want error
	}{
		{id, nil},
		{encoded, nil},
		{encoded[:4], nil},
		{"sha256:" + encoded[:12], nil},
		{r.ref("lib/x:1"), nil},
		{r.ref("lib/x@" + manifest.Digest.String()), nil},
		{r.ref("lib/x:1@" + manifest.Digest.String()), nil},
		{r.ref("lib/x"), ErrNotFound},
		{encoded[:3], ErrNotFound},
		{"busybox", ErrNotFound},
		{"sha256:" + strings.Repeat("0", 64), ErrNotFound},
		{"", ErrInvalidReference},
		{"../../etc", ErrInvalidReference},
		{"a b", ErrInvalidReference},
		{"x:\xff", ErrInvalidReference},
		{strings.Repeat("a/", 1<<20), ErrInvalidReference},
	} {
		image, err := s.Image(c.ref)
		if !errors.Is(err, c.want) || (err == nil && image.ID != id) {
			t.Errorf("%.80q: %v, %v; want %v", c.ref, image, err, c.want)
		}
	}
}

func TestRestart(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")), gzipped(t, file("g", "y")))
	before := mustPull(t, s, r.ref("x:1"))
	usage, err := s.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.config); !errors.Is(err, ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	closeStore(t, s)
	if _, err := s.Pull(context.Background(), r.ref("x:1"), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("pull after Close: %v", err)
	}

	// What a killed daemon leaves: work under way, layers of no record, a
	// record without image.json.
	for _, dir := range []string{"ingest/abc/diff/deep/er", "layers/0123/diff/x", "records/4567"} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	again := openStore(t, func(c *Config) { *c = s.config })
	after, err := again.Image(r.ref("x:1"))
	if err != nil {
		t.Fatal(err)
	}
	if after.ID != before.ID || !slices.Equal(after.Layers, before.Layers) || after.Size != before.Size ||
		after.Config.Config.User != before.Config.Config.User || !after.PulledAt.Equal(before.PulledAt) {
		t.Errorf("before %+v\nafter %+v", before, after)
	}
	again.background.Wait()
	if now, _ := again.Usage(); now != usage {
		t.Errorf("usage %+v, before %+v", now, usage)
	}
}

// TestDamaged takes a layer away while the store is closed.
func TestDamaged(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"no layer":  os.RemoveAll,
		"no diff":   func(dir string) error { return os.RemoveAll(filepath.Join(dir, diffDir)) },
		"no record": func(dir string) error { return os.Truncate(filepath.Join(dir, layerFile), 0) },
	} {
		for _, closed := range []bool{true, false} {
			t.Run(name+map[bool]string{true: " closed", false: " open"}[closed], func(t *testing.T) {
				r, s := newRegistry(t), openStore(t, nil)
				r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")), gzipped(t, file("g", "y")))
				r.putImage("y", "1", testConfig(), gzipped(t, file("h", "z")))
				before := mustPull(t, s, r.ref("x:1"))
				mustPull(t, s, r.ref("y:1"))
				if closed {
					closeStore(t, s)
				}
				if err := damage(filepath.Dir(before.Layers[0])); err != nil {
					t.Fatal(err)
				}
				if closed {
					s = openStore(t, func(c *Config) { *c = s.config })
					if _, err := s.Image(r.ref("x:1")); !errors.Is(err, ErrNotFound) {
						t.Errorf("a damaged image is listed: %v", err)
					}
					if got := s.Damaged(); !slices.Equal(got, []string{before.ID}) {
						t.Errorf("damaged %v", got)
					}
				}
				if _, err := s.Image(r.ref("y:1")); err != nil {
					t.Errorf("the other image: %v", err)
				}
				r.forgetGets()
				after := mustPull(t, s, r.ref("x:1"))
				wantFile(t, filepath.Join(after.Layers[0], "g"), "y")
				wantFile(t, filepath.Join(after.Layers[1], "f"), "x")
				if gets := r.blobGets(); len(gets) > 2 {
					t.Errorf("more than the layer and the config were downloaded: %v", gets)
				}
			})
		}
	}
}

func TestRemove(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	shared := gzipped(t, file("shared", "s"))
	r.putImage("x", "1", testConfig(), shared, gzipped(t, file("a", "a")))
	r.putImage("x", "2", testConfig(), shared, gzipped(t, file("a", "a")))
	r.putImage("y", "1", testConfig(), shared, gzipped(t, file("b", "b")))
	mustPull(t, s, r.ref("x:1"))
	if x := mustPull(t, s, r.ref("x:2")); len(x.RepoTags) != 2 {
		t.Errorf("tags %v", x.RepoTags)
	}
	y := mustPull(t, s, r.ref("y:1"))
	for range 2 { // idempotent
		if err := s.Remove(context.Background(), r.ref("x:1")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Image(r.ref("x:2")); !errors.Is(err, ErrNotFound) {
		t.Errorf("the other tag stays: %v", err)
	}
	if len(s.layers) != 2 {
		t.Errorf("%d layers stay, want 2", len(s.layers))
	}
	for _, dir := range y.Layers {
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("a layer of the other image: %v", err)
		}
	}
	if err := s.Remove(context.Background(), y.ID); err != nil {
		t.Fatal(err)
	}
	if usage, err := s.Usage(); err != nil || usage.Inodes != emptyInodes {
		t.Errorf("usage of nothing: %+v, %v", usage, err)
	}
	if err := s.Remove(context.Background(), "a b"); !errors.Is(err, ErrInvalidReference) {
		t.Errorf("remove nonsense: %v", err)
	}
}

func TestHold(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
	image := mustPull(t, s, r.ref("x:1"))
	if err := s.Hold("sha256:"+strings.Repeat("0", 64), "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("hold nothing: %v", err)
	}
	for _, user := range []string{"a", "b"} {
		if err := s.Hold(image.ID, user); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(context.Background(), image.ID); err != nil {
		t.Fatal(err)
	}
	if len(s.Images()) != 0 {
		t.Error("the image is still listed")
	}
	wantFile(t, filepath.Join(image.Layers[0], "f"), "x")

	// Across a restart the daemon holds it again before Collect.
	s.Release(image.ID, "a")
	closeStore(t, s)
	s, err := Open(s.config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	if err := s.Hold(image.ID, "b"); err != nil {
		t.Fatal(err)
	}
	s.Collect()
	wantFile(t, filepath.Join(image.Layers[0], "f"), "x")
	if len(s.Images()) != 0 {
		t.Error("the image is listed again")
	}
	s.Release(image.ID, "nobody")
	wantFile(t, filepath.Join(image.Layers[0], "f"), "x")
	s.Release(image.ID, "b")
	if _, err := os.Stat(image.Layers[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the layer stays: %v", err)
	}
	mustPull(t, s, r.ref("x:1"))
}

// TestHoldPulledAgain removes a held image, pulls it again and releases it.
func TestHoldPulledAgain(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
	image := mustPull(t, s, r.ref("x:1"))
	if err := s.Hold(image.ID, "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(context.Background(), image.ID); err != nil {
		t.Fatal(err)
	}
	r.forgetGets()
	mustPull(t, s, r.ref("x:1"))
	if gets := r.blobGets(); len(gets) > 1 {
		t.Errorf("layers that were here were downloaded: %v", gets)
	}
	s.Release(image.ID, "a")
	wantFile(t, filepath.Join(image.Layers[0], "f"), "x")
}

// TestTagMoves pulls a tag that stands for another image now.
func TestTagMoves(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "old")))
	old := mustPull(t, s, r.ref("x:1"))
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "new")))
	image := mustPull(t, s, r.ref("x:1"))
	if image.ID == old.ID {
		t.Fatal("the same image")
	}
	check := func(s *Store) {
		t.Helper()
		got, err := s.Image(old.ID)
		if err != nil || len(got.RepoTags) != 0 || len(got.RepoDigests) != 1 {
			t.Errorf("old image %+v, %v", got, err)
		}
		if got, err = s.Image(r.ref("x:1")); err != nil || got.ID != image.ID {
			t.Errorf("tag %+v, %v", got, err)
		}
	}
	check(s)
	// A crash between the two records: both claim the tag, the later has it.
	record := s.images[old.ID].record.clone()
	record.Tags = []string{r.ref("x:1")}
	if err := writeRecord(s.recordPath(old.ID), record); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	check(openStore(t, func(c *Config) { *c = s.config }))
}

func TestPinned(t *testing.T) {
	r := newRegistry(t)
	r.putImage("a/x", "1", testConfig(), gzipped(t, file("f", "1")))
	r.putImage("a/y", "1", testConfig(), gzipped(t, file("f", "2")))
	r.putImage("b/z", "1", testConfig(), gzipped(t, file("f", "3")))
	s := openStore(t, func(c *Config) { c.PinnedImages = []string{r.ref("a/*"), r.ref("b/z:2")} })
	for name, want := range map[string]bool{"a/x:1": true, "a/y:1": true, "b/z:1": false} {
		if image := mustPull(t, s, r.ref(name)); image.Pinned != want {
			t.Errorf("%s pinned %v", name, image.Pinned)
		}
	}
	if _, err := Open(Config{Root: t.TempDir(), PinnedImages: []string{"Not A Name"}}); !errors.Is(err, ErrInvalidReference) {
		t.Errorf("got %v", err)
	}
}

func TestConcurrentPullRemove(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	shared := gzipped(t, file("shared", "s"))
	for _, tag := range []string{"1", "2", "3"} {
		r.putImage("x", tag, testConfig(), shared, gzipped(t, file("f", tag)))
	}
	done := make(chan struct{})
	for i := range 6 {
		go func() {
			defer func() { done <- struct{}{} }()
			for j := range 20 {
				ref := r.ref("x:" + []string{"1", "2", "3"}[(i+j)%3])
				if i%2 == 0 {
					if _, err := s.Pull(context.Background(), ref, nil); err != nil {
						t.Error(err)
					}
				} else if err := s.Remove(context.Background(), ref); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	for range 6 {
		<-done
	}
	for _, image := range s.Images() {
		wantFile(t, filepath.Join(image.Layers[1], "shared"), "s")
	}
}

func FuzzReference(f *testing.F) {
	for _, text := range []string{"busybox", "a/b:c", "localhost:5000/x@sha256:" + strings.Repeat("a", 64), "::", "a\x00"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseReference(text)
		if err != nil {
			if !errors.Is(err, ErrInvalidReference) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if (n.tag == "") == (n.digest == "") || n.domain == "" {
			t.Fatalf("%q: %+v", text, n)
		}
		again, err := parseReference(n.String())
		if err != nil || again != n {
			t.Fatalf("%q: %+v, then %+v, %v", text, n, again, err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:00","size":1},"layers":[]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"platform":{"os":"linux"}}]}`), typeDockerIndex)
	f.Fuzz(func(t *testing.T, content []byte, mediaType string) {
		d, err := decodeDocument(content, mediaType)
		if err != nil {
			return
		}
		if d.index() {
			_, _ = choose(d.Manifests)
			return
		}
		if config, err := decodeConfig(content); err == nil {
			_ = checkConfig(config, d)
		}
	})
}

// TestTagOfTwo lets two records claim a tag, as a crash during its move does.
// The later one has it, whatever the clock said, and the tag does not come back
// to the other when the later one is removed.
func TestTagOfTwo(t *testing.T) {
	needRoot(t)
	r, config := newRegistry(t), Config{Root: filepath.Join(t.TempDir(), "images")}
	open := func() *Store {
		s, err := Open(config)
		if err != nil {
			t.Fatal(err)
		}
		s.Collect()
		return s
	}
	s := open()
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "old")))
	old := mustPull(t, s, r.ref("x:1"))
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "new")))
	moved := mustPull(t, s, r.ref("x:1"))
	record := s.images[old.ID].record.clone()
	record.Tags = []string{r.ref("x:1")}
	record.PulledAt = record.PulledAt.AddDate(1, 0, 0)
	closeStore(t, s)
	if err := writeRecord(s.recordPath(old.ID), record); err != nil {
		t.Fatal(err)
	}
	s = open()
	if got, err := s.Image(r.ref("x:1")); err != nil || got.ID != moved.ID {
		t.Errorf("%v, %v; want %s", got, err, moved.ID)
	}
	if err := s.Remove(context.Background(), moved.ID); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = open()
	defer closeStore(t, s)
	if got, err := s.Image(r.ref("x:1")); !errors.Is(err, ErrNotFound) {
		t.Errorf("the tag came back: %v, %v", got, err)
	}
	if got, err := s.Image(old.ID); err != nil || len(got.RepoTags) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}
