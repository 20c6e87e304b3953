package imageservice

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fuzzNames are what generated archives consist of: few, so that entries meet.
var fuzzNames = []string{
	"a", "b", "c", "a/b", "a/b/c", "b/c", "./a", "/a", "../a", "a/../b", "a/../../b", "..", ".", "", "/", "//a//",
	".wh.a", "a/.wh.b", ".wh..wh..opq", "a/.wh..wh..opq", ".wh..wh.plnk", ".wh.", "a/.wh...", ".wh.a/b", "a/b/..",
	"/../outside", "../../outside/x", "a/b/../../../outside", "\xff", strings.Repeat("n", 300), "outside",
	"c/" + strings.Repeat("d/", 40) + "e", strings.Repeat("m", 255), "b/" + strings.Repeat("long/", 30) + "name", "a/.wh.c", "c/b", ".wh.b",
}

// fuzzItems turns bytes into entries, three bytes each.
func fuzzItems(program []byte) []item {
	types := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeFifo, tar.TypeXGlobalHeader}
	var items []item
	for ; len(program) >= 3 && len(items) < 64; program = program[3:] {
		i := file(fuzzNames[int(program[1])%len(fuzzNames)], "written")
		i.Typeflag = types[int(program[0])%len(types)]
		i.Linkname = fuzzNames[int(program[2])%len(fuzzNames)]
		i.Mode = int64(program[2]) << 4
		switch i.Typeflag {
		case tar.TypeSymlink, tar.TypeLink:
			if program[2] >= 128 {
				i.Linkname = "/" + i.Linkname
			}
		case tar.TypeXGlobalHeader:
			i = item{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "../x"}}}
		default:
			i.Linkname = ""
		}
		items = append(items, i)
	}
	return items
}

// fuzzArchive writes what archive/tar accepts of the entries.
func fuzzArchive(items []item) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		if i.Typeflag == tar.TypeReg {
			i.Size = int64(len(i.content))
		}
		if w.WriteHeader(&i.Header) != nil {
			w = tar.NewWriter(&b) // it refuses all that follows an error
			continue
		}
		if i.Typeflag == tar.TypeReg {
			_, _ = w.Write([]byte(i.content))
		}
		_ = w.Flush()
	}
	_ = w.Close()
	return b.Bytes()
}

// FuzzUnpack unpacks generated archives beside a guarded directory and looks
// whether anything but the layer changed.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte{2, 0, 130, 0, 3, 0})
	f.Add([]byte{1, 0, 0, 2, 3, 8, 0, 4, 0, 3, 1, 3})
	f.Add([]byte{2, 0, 8, 2, 1, 0, 0, 5, 0, 1, 0, 5, 1, 2, 3})
	f.Fuzz(func(t *testing.T, program []byte) {
		checkContained(t, fuzzArchive(fuzzItems(program)))
	})
}

// FuzzUnpackRaw unpacks arbitrary bytes.
func FuzzUnpackRaw(f *testing.F) {
	f.Add(rawEntry("../x", '0', "x"))
	f.Add(append(rawEntry("a", '2', ""), rawEntry("a/b", '0', "x")...))
	f.Add(append(rawEntry("P", 'x', paxHeader(map[string]string{"path": "../../x"})), rawEntry("x", '0', "x")...))
	f.Fuzz(func(t *testing.T, content []byte) {
		checkContained(t, content)
	})
}

func checkContained(t *testing.T, content []byte) {
	base := t.TempDir()
	guarded := filepath.Join(base, "outside")
	if err := os.Mkdir(guarded, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(guarded, "file"), []byte("guarded"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, base)
	record, err := unpackTo(t, content, filepath.Join(base, "diff"), func(l *limits) { l.bytes = 1 << 20 })
	if after := snapshot(t, base); after != before {
		t.Fatalf("outside of the layer\n%s\nbecame\n%s", before, after)
	}
	if err != nil {
		var path *fs.PathError
		if !errors.Is(err, ErrMalformedLayer) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, fs.ErrInvalid) || errors.As(err, &path) {
			t.Fatalf("an error of no kind: %v", err)
		}
		return
	}
	checkUsageAtLeast(t, filepath.Join(base, "diff"), record)
}

// snapshot lists all but the layer.
func snapshot(t *testing.T, base string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(base, "diff") {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		if info.Mode().IsRegular() {
			c, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(c)
		}
		st := lstat(t, path)
		b.WriteString(strings.Join([]string{path, info.Mode().String(), content}, " "))
		if !d.IsDir() {
			b.WriteString(" links " + string(rune('0'+st.Nlink)))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// checkUsageAtLeast sees that no inode is missing from the count; a replaced
// entry may be counted twice.
func checkUsageAtLeast(t *testing.T, dir string, record *layerRecord) {
	t.Helper()
	n := uint64(0)
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if st := lstat(t, path); err == nil && !seen[st.Ino] {
			seen[st.Ino] = true
			n++
		}
		return err
	})
	if n > record.Inodes {
		t.Fatalf("%d inodes, %d counted", n, record.Inodes)
	}
}
