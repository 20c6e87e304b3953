package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// fullImage is an image with all that a layer can hold.
func fullImage(t testing.TB, r *testRegistry) string {
	t.Helper()
	device := item{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/x", Devmajor: 1, Devminor: 3, Mode: 0o640, Uid: 5, ModTime: testTime}}
	fifo := item{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600, ModTime: testTime}}
	special := file("bin/su", "set-uid")
	special.Mode, special.Uid, special.Gid = 0o4755, 1234, 99_999
	special.PAXRecords = map[string]string{xattrPrefix + "user.note": "kept\x01", xattrPrefix + "user.empty": ""}
	special.Format = tar.FormatPAX
	precise := file("precise", "")
	precise.ModTime, precise.Format = testTime.Add(123_456_789), tar.FormatPAX
	sticky := dir("tmp", 0o1777)
	lower := gzipped(t, dir("etc", 0o750), file("etc/a", "a"), file("etc/b", "b"), dir("dev", 0o755), dir("bin", 0o755), device, fifo, special, precise, sticky,
		hardlink("bin/su2", "bin/su"), symlink("bin/sh", "../bin/su"), hardlink("bin/sh2", "bin/sh"),
		dir("old", 0o700), file("old/gone", "x"), file(strings.Repeat("deep/", 60)+strings.Repeat("n", 200), "deep"), file("b\xffd", "not UTF-8"))
	upper := gzipped(t, file("etc/.wh.a", ""), dir("old", 0o711), file("old/.wh..wh..opq", ""), file("old/new", "new"),
		file("etc/implicit/x", "etc is not described here"))
	r.putImage("all", "1", testConfig(), lower, upper, lower)
	return r.ref("all:1")
}

// listing describes a tree: everything that an archive carries.
func listing(t testing.TB, root string) []string {
	t.Helper()
	var out []string
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		line := fmt.Sprintf("%q %o %d:%d %d.%d dev %d", name, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Rdev)
		if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			line = fmt.Sprintf("%q whiteout", name)
		}
		if name == "etc/implicit" || name == "etc" && strings.Contains(line, " 40755 ") || strings.HasPrefix(name, "deep") && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			line = fmt.Sprintf("%q implicit %o", name, st.Mode) // made in passing, at the time of unpacking
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if inodes[st.Ino] == "" {
				inodes[st.Ino] = name
			}
			line += " = " + inodes[st.Ino]
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", content)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		for _, x := range []string{"user.note", "user.empty", opaqueXattr} {
			value := make([]byte, 100)
			if n, err := unix.Lgetxattr(path, x, value); err == nil {
				line += fmt.Sprintf(" %s=%q", x, value[:n])
			}
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func export(t testing.TB, s *Store, ref string) (*Export, []byte) {
	t.Helper()
	e, err := s.Export(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var b bytes.Buffer
	if err := e.Write(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return e, b.Bytes()
}

func layerTrees(t testing.TB, image *Image) [][]string {
	t.Helper()
	trees := make([][]string, 0, len(image.Layers))
	for _, dir := range image.Layers {
		trees = append(trees, listing(t, dir))
	}
	return trees
}

func TestExportImport(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	ref := fullImage(t, r)
	image := mustPull(t, s, ref)
	e, archive := export(t, s, ref)
	if _, again := export(t, s, ref); !bytes.Equal(archive, again) {
		t.Error("two exports differ")
	}
	if e.ID != image.ID || e.NewID == e.ID || !slices.Equal(e.RepoTags, []string{ref}) {
		t.Errorf("%+v", e)
	}
	onlyDocker := without(t, archive, ocispec.ImageIndexFile)
	for name, content := range map[string][]byte{"layout": archive, "docker": onlyDocker, "gzip": pack(t, archive)} {
		t.Run(name, func(t *testing.T) {
			other := openStore(t, nil)
			got, err := other.Import(t.Context(), bytes.NewReader(content), "")
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || got[0].ID != e.NewID || !slices.Equal(got[0].RepoTags, image.RepoTags) {
				t.Fatalf("%+v", got)
			}
			if digests := len(got[0].RepoDigests); digests != map[bool]int{true: 0, false: 1}[name == "docker"] {
				t.Errorf("digests %v", got[0].RepoDigests)
			}
			want, have := layerTrees(t, image), layerTrees(t, got[0])
			if len(want) != len(have) {
				t.Fatalf("%d layers, then %d", len(want), len(have))
			}
			for i := range want {
				for j := range max(len(want[i]), len(have[i])) {
					if j >= len(want[i]) || j >= len(have[i]) || want[i][j] != have[i][j] {
						t.Fatalf("layer %d, entry %d of %d: %s\nthen %s", i, j, len(want[i]), want[i][min(j, len(want[i])-1)], have[i][min(j, len(have[i])-1)])
					}
				}
			}
			if got[0].Config.Config.User != image.Config.Config.User {
				t.Errorf("config %+v", got[0].Config)
			}
			if d, err := other.Details(e.NewID); err != nil || d.Source != "import" {
				t.Errorf("%+v, %v", d, err)
			}
			// What is exported once more is the same, byte for byte.
			if next, again := export(t, other, e.NewID); !bytes.Equal(again, archive) || next.NewID != e.NewID {
				t.Error("the export of the import differs")
			}
		})
	}
	if users := mustDetails(t, s, ref).Users; len(users) != 0 {
		t.Errorf("held by %v", users)
	}
}

func mustDetails(t testing.TB, s *Store, ref string) *Details {
	t.Helper()
	d, err := s.Details(ref)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// without leaves a file out of an archive.
func without(t testing.TB, archive []byte, name string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == name {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func pack(t testing.TB, content []byte) []byte {
	t.Helper()
	return testLayer{archive: content, compress: "gzip"}.content(t)
}

// An image that is removed while it is exported stays until that is done.
func TestRemoveDuringExport(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	ref := fullImage(t, r)
	mustPull(t, s, ref)
	e, err := s.Export(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(context.Background(), ref); err != nil {
		t.Fatal(err)
	}
	err = e.Write(t.Context(), io.Discard)
	e.Close()
	if err != nil {
		t.Errorf("export: %v", err)
	}
	if u, err := s.Usage(); err != nil || u.Inodes != emptyInodes {
		t.Errorf("left: %+v, %v", u, err)
	}
	if _, err := s.Export(t.Context(), ref); !errors.Is(err, ErrNotFound) {
		t.Errorf("export of a removed image: %v", err)
	}
}

func TestExportNoLayers(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	id, _ := r.putImage("empty", "1", testConfig())
	mustPull(t, s, r.ref("empty:1"))
	e, archive := export(t, s, r.ref("empty:1"))
	if e.NewID != id { // nothing was archived anew, so the config is the old one
		t.Errorf("id %s, want %s", e.NewID, id)
	}
	other := openStore(t, nil)
	if got, err := other.Import(t.Context(), bytes.NewReader(archive), "name.example/x:2"); err != nil || len(got) != 1 ||
		got[0].ID != id || !slices.Equal(got[0].RepoTags, []string{"name.example/x:2"}) {
		t.Errorf("%+v, %v", got, err)
	}
}
