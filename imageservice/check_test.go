package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// mustCheck wants a report without an error.
func mustCheck(t testing.TB, s *Store, repair bool) *CheckReport {
	t.Helper()
	report, err := s.Check(context.Background(), CheckOptions{Repair: repair})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// wantWhole wants every image of the store to be as it was pulled.
func wantWhole(t testing.TB, s *Store) *CheckReport {
	t.Helper()
	report := mustCheck(t, s, false)
	for _, image := range report.Images {
		if len(image.Damage) > 0 {
			t.Errorf("image %s %v is damaged: %+v", image.ID, image.Names, image.Damage)
		}
	}
	return report
}

// oddItems are a layer with every kind of file.
func oddItems() []item {
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	marked := file("bin/ping", "ping")
	marked.PAXRecords = map[string]string{xattrPrefix + "security.capability": capability}
	return []item{
		dir("bin", 0o755), file("bin/a", strings.Repeat("content", 100000)), file("bin/empty", ""), marked,
		hardlink("bin/b", "bin/a"), symlink("bin/c", "a"), dir("bin-x", 0o1777), file("bin-x/f", "x"), file("bin.y", "y"),
		{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: testTime}},
		{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600, ModTime: testTime}},
		file(".wh.gone", ""), dir("opaque", 0o755), file("opaque/"+whiteoutOpaque, ""), file("opaque/f", "new"),
		file("implicit/f", "no entry describes its directory"),
		file("bin/a2", "first"), file("bin/a2", "second"), file("dir/f", "1"), file("dir", "a file now"),
	}
}

// damages change one thing each in a layer of oddItems; want is the path that
// the report names.
func damages() map[string]struct {
	want   string
	damage func(diff string) error
} {
	keep := func(path string, change func() error) error {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		return errors.Join(change(), os.Chtimes(path, time.Time{}, time.Unix(st.Mtim.Unix())))
	}
	type damage = struct {
		want   string
		damage func(diff string) error
	}
	at := filepath.Join
	return map[string]damage{
		"content": {"bin/a", func(d string) error {
			return keep(at(d, "bin/a"), func() error {
				f, err := os.OpenFile(at(d, "bin/a"), os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				_, err = f.WriteAt([]byte{0}, 400000)
				return errors.Join(err, f.Close())
			})
		}},
		"cut":         {"bin/a", func(d string) error { return os.Truncate(at(d, "bin/a"), 10) }},
		"zeros":       {"bin-x/f", func(d string) error { return os.WriteFile(at(d, "bin-x/f"), []byte{0}, 0) }},
		"filled":      {"bin/empty", func(d string) error { return os.WriteFile(at(d, "bin/empty"), []byte{0}, 0) }},
		"mode":        {"bin/ping", func(d string) error { return os.Chmod(at(d, "bin/ping"), 0o4755) }},
		"sticky":      {"bin-x", func(d string) error { return os.Chmod(at(d, "bin-x"), 0o777) }},
		"owner":       {"bin/c", func(d string) error { return os.Lchown(at(d, "bin/c"), 0, 7) }},
		"time":        {"bin.y", func(d string) error { return os.Chtimes(at(d, "bin.y"), time.Time{}, time.Unix(1, 1)) }},
		"root":        {"", func(d string) error { return os.Chmod(d, 0o700) }},
		"missing":     {"opaque/f", func(d string) error { return os.Remove(at(d, "opaque/f")) }},
		"missing dir": {"bin-x/f", func(d string) error { return os.RemoveAll(at(d, "bin-x")) }},
		"one more":    {"bin/z", func(d string) error { return os.WriteFile(at(d, "bin/z"), nil, 0o600) }},
		"first":       {"+", func(d string) error { return os.WriteFile(at(d, "+"), nil, 0o600) }},
		"type": {"bin.y", func(d string) error {
			return errors.Join(os.Remove(at(d, "bin.y")), os.Mkdir(at(d, "bin.y"), 0o644))
		}},
		"link": {"bin/c", func(d string) error {
			return errors.Join(os.Remove(at(d, "bin/c")), os.Symlink("b", at(d, "bin/c")))
		}},
		"device": {"null", func(d string) error {
			return errors.Join(os.Remove(at(d, "null")), unix.Mknod(at(d, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
		}},
		"capability": {"bin/ping", func(d string) error { return unix.Removexattr(at(d, "bin/ping"), "security.capability") }},
		"opaque":     {"opaque", func(d string) error { return unix.Removexattr(at(d, "opaque"), opaqueXattr) }},
		"redirect": {"bin", func(d string) error {
			return unix.Setxattr(at(d, "bin"), "trusted.overlay.redirect", []byte("/etc"), 0)
		}},
		"whiteout":   {"gone", func(d string) error { return os.Remove(at(d, "gone")) }},
		"listing":    {"", func(d string) error { return os.Truncate(at(d, "../listing"), 200) }},
		"no listing": {"", func(d string) error { return os.Remove(at(d, "../listing")) }},
		"other listing": {layerFile, func(d string) error {
			content, err := os.ReadFile(at(d, "..", layerFile))
			if err != nil {
				return err
			}
			i := bytes.Index(content, []byte(`"listing":"`)) + len(`"listing":"`)
			content[i] = "10"[content[i]&1]
			unsealed := content[:bytes.LastIndex(content, []byte(`,"crc32c"`))]
			if content, err = ledger.Seal(append(unsealed, '}')); err != nil {
				return err
			}
			return os.WriteFile(at(d, "..", layerFile), content, 0o600)
		}},
		"no record": {"", func(d string) error { return os.Truncate(at(d, "..", layerFile), 0) }},
		"no diff":   {"", os.RemoveAll},
	}
}

// TestCheckLayer damages one layer of two images, in each way, and wants that
// to be found, and mended by a download of that layer alone.
func TestCheckLayer(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	shared := gzipped(t, file("shared", "s"))
	r.putImage("x", "1", testConfig(), shared, gzipped(t, oddItems()...))
	r.putImage("y", "1", testConfig(), shared, gzipped(t, file("own", "o")))
	x, y := mustPull(t, s, r.ref("x:1")), mustPull(t, s, r.ref("y:1"))
	report := wantWhole(t, s)
	if report.Layers != 3 || len(report.Images) != 2 || report.Entries < 20 || report.Bytes < 700000 {
		t.Errorf("%+v", report)
	}
	for name, c := range damages() {
		t.Run(name, func(t *testing.T) {
			if err := c.damage(x.Layers[0]); err != nil {
				t.Fatal(err)
			}
			report := mustCheck(t, s, false)
			if report.Damaged() != 1 {
				t.Fatalf("%+v", report)
			}
			for _, image := range report.Images {
				if (image.ID == y.ID) != (len(image.Damage) == 0) {
					t.Errorf("%+v", image)
				}
				for _, d := range image.Damage {
					t.Logf("%s: %s", d.Path, d.Problem)
				}
				found := func(d Damage) bool {
					return d.Path == c.want && d.Layer.Encoded() == filepath.Base(filepath.Dir(x.Layers[0]))
				}
				if image.ID == x.ID && !slices.ContainsFunc(image.Damage, found) {
					t.Errorf("it does not name %q", c.want)
				}
			}
			r.forgetGets()
			if report := mustCheck(t, s, true); report.Damaged() != 0 {
				t.Errorf("not repaired: %+v", report)
			}
			if gets := r.blobGets(); len(gets) > 2 {
				t.Errorf("more than the layer and the config were downloaded: %v", gets)
			}
			wantWhole(t, s)
			if again, err := s.Image(r.ref("x:1")); err != nil || again.ID != x.ID || !slices.Equal(again.RepoTags, x.RepoTags) {
				t.Errorf("%+v, %v", again, err)
			}
		})
	}
}

// TestCheckRecord damages the documents of an image.
func TestCheckRecord(t *testing.T) {
	for _, c := range []struct {
		name   string
		path   string
		damage func(path string) error
	}{
		{"config", configFile, func(p string) error { return os.WriteFile(p, []byte("{}"), 0o600) }},
		{"no config", configFile, os.Remove},
		{"manifest", manifestFile, func(p string) error { return os.Truncate(p, 10) }},
		{"no manifest", manifestFile, os.Remove},
		{"record", imageFile, func(p string) error { return os.Truncate(p, 10) }},
		{"parents", parentsDir + "/d", func(p string) error { return os.Chmod(p, 0o777) }},
		{"no parents", parentsDir, os.RemoveAll},
	} {
		for _, reopen := range []bool{false, true} {
			t.Run(c.name+map[bool]string{true: " at a start"}[reopen], func(t *testing.T) {
				r, s := newRegistry(t), openStore(t, nil)
				r.putImage("x", "1", testConfig(), gzipped(t, dir("d", 0o700)), gzipped(t, file("d/f", "x")))
				x := mustPull(t, s, r.ref("x:1"))
				wantWhole(t, s)
				if err := c.damage(filepath.Join(s.recordPath(x.ID), c.path)); err != nil {
					t.Fatal(err)
				}
				if reopen {
					closeStore(t, s)
					s = openStore(t, func(config *Config) { *config = s.config })
				}
				if c.path == imageFile && reopen {
					// Its names are lost, it is still whole.
					if again, err := s.Image(x.ID); err != nil || len(again.RepoTags) > 0 {
						t.Errorf("%+v, %v", again, err)
					}
				} else if mustCheck(t, s, false).Damaged() != 1 {
					t.Error("it is not found")
				}
				r.forgetGets()
				if c.path == imageFile {
					mustPull(t, s, r.ref("x:1"))
				} else if report := mustCheck(t, s, true); report.Damaged() != 0 {
					t.Errorf("not repaired: %+v", report)
				}
				if gets := r.blobGets(); len(gets) > 1 {
					t.Errorf("more than the config was downloaded: %v", gets)
				}
				wantWhole(t, s)
				if again, err := s.Image(r.ref("x:1")); err != nil || !slices.Equal(again.Layers, x.Layers) || again.Size != x.Size {
					t.Errorf("%+v, %v; before %+v", again, err, x)
				}
			})
		}
	}
}

// TestCheckInUse leaves the layers of an image alone that a container has.
func TestCheckInUse(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	shared := gzipped(t, file("f", "shared"))
	r.putImage("x", "1", testConfig(), shared)
	r.putImage("y", "1", testConfig(), shared, gzipped(t, file("own", "o")))
	x, y := mustPull(t, s, r.ref("x:1")), mustPull(t, s, r.ref("y:1"))
	if err := s.Hold(x.ID, "container"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(x.Layers[0], "f"), []byte("damage"), 0); err != nil {
		t.Fatal(err)
	}
	report := mustCheck(t, s, true)
	for _, image := range report.Images {
		if image.Repaired || !strings.Contains(image.Problem, "in use by container") {
			t.Errorf("%+v", image)
		}
	}
	wantFile(t, filepath.Join(x.Layers[0], "f"), "damage")
	if _, err := s.Image(y.ID); err != nil {
		t.Error(err)
	}
	s.Release(x.ID, "container")
	if report := mustCheck(t, s, true); report.Damaged() != 0 {
		t.Errorf("%+v", report)
	}
	wantFile(t, filepath.Join(x.Layers[0], "f"), "shared")
}

// TestCheckWithoutRegistry takes the damaged layer away; the next pull brings it.
func TestCheckWithoutRegistry(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")), gzipped(t, file("g", "y")))
	x := mustPull(t, s, r.ref("x:1"))
	if err := os.Remove(filepath.Join(x.Layers[0], "g")); err != nil {
		t.Fatal(err)
	}
	r.setHook(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	report := mustCheck(t, s, true)
	if report.Damaged() != 1 || report.Images[0].Problem == "" {
		t.Errorf("%+v", report)
	}
	if _, err := s.Image(x.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("a damaged image is listed: %v", err)
	}
	r.setHook(nil)
	r.forgetGets()
	mustPull(t, s, r.ref("x:1"))
	if gets := r.blobGets(); len(gets) != 2 {
		t.Errorf("not the layer and the config were downloaded: %v", gets)
	}
	wantWhole(t, s)
}

func TestCheckCancelled(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	r.putImage("x", "1", testConfig(), gzipped(t, oddItems()...))
	mustPull(t, s, r.ref("x:1"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Check(ctx, CheckOptions{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	closeStore(t, s)
	if _, err := s.Check(context.Background(), CheckOptions{}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// TestListing writes a listing and reads it again.
func TestListing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "l")
	w, err := createListing(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []*listed{
		{},
		{path: "a", mode: 0xffffffff, uid: 1<<32 - 2, size: 1 << 62, device: 1<<64 - 1, seconds: -1, nanos: 999999999, sum: 1<<64 - 1, xattrs: 1},
		{path: "a/b\xff\n"},
		{path: "a/" + strings.Repeat("x", 4000)},
		{path: "b", seconds: 1 << 62},
	}
	for _, l := range want {
		if err := w.add(l); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.close(nil); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil || int64(len(content)) != w.size {
		t.Fatal(len(content), w.size, err)
	}
	r := newListingReader(bytes.NewReader(content), int64(len(content)))
	for _, l := range want {
		if got, err := r.next(); err != nil || *got != *l {
			t.Errorf("got %+v, %v; want %+v", got, err, l)
		}
	}
	if _, err := r.next(); !errors.Is(err, errListingEnd) {
		t.Error(err)
	}
	for i := range content {
		bad := slices.Clone(content)
		bad[i] ^= 1
		if err := readListing(bad); !errors.Is(err, errListing) {
			t.Fatalf("byte %d: %v", i, err)
		}
		if err := readListing(content[:i]); !errors.Is(err, errListing) {
			t.Fatalf("%d bytes: %v", i, err)
		}
	}
}

func readListing(content []byte) error {
	r := newListingReader(bytes.NewReader(content), int64(len(content)))
	for {
		if _, err := r.next(); err != nil {
			return err
		}
	}
}

func FuzzListing(f *testing.F) {
	f.Add([]byte(listingMagic))
	f.Add([]byte(listingMagic + "\x00\x01a\x00\x00\x00\x00\x00\x00\x0012345678\x0012345678"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := readListing(content); !errors.Is(err, errListing) && !errors.Is(err, errListingEnd) {
			t.Error(err)
		}
	})
}

// TestBefore wants the order of a scan.
func TestBefore(t *testing.T) {
	order := []string{"", "a", "a/b", "a/b/c", "a/b-", "a-", "a-/x", "aa", "b"}
	for i, a := range order {
		for j, b := range order {
			if got := before(a, b); got != (i < j) {
				t.Errorf("before(%q, %q) = %v", a, b, got)
			}
		}
	}
}
