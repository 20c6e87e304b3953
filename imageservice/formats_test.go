package imageservice

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// capability is a value of security.capability: cap_net_raw.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// makeSource makes a tree with one of everything that a layer may hold.
func makeSource(t *testing.T, dir string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	long := strings.Repeat("l", 200)
	for _, d := range []string{"a", "b/c", "sticky", "closed", "d/" + long + "/" + long} {
		check(os.MkdirAll(in(d), 0o755))
	}
	for name, content := range map[string]string{
		"a/file": "content", "empty": "", "suid": "x", "not-utf8-\xff\xfe": "x", "d/" + long + "/" + long + "/f": "far",
		"closed/in": "x", "caps": "x", strings.Repeat("n", 255): "longest name",
	} {
		check(os.WriteFile(in(name), []byte(content), 0o640))
	}
	check(os.Link(in("a/file"), in("b/c/hard")))
	check(os.Link(in("a/file"), in("a/hard")))
	check(os.Symlink("../"+strings.Repeat("t/", 100)+"target", in("b/link")))
	check(os.Symlink("/etc/passwd", in("absolute")))
	check(unix.Linkat(unix.AT_FDCWD, in("absolute"), unix.AT_FDCWD, in("b/hardlink-to-link"), 0))
	check(unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(unix.Mknod(in("disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))))
	check(unix.Mkfifo(in("fifo"), 0o600))
	check(os.Lchown(in("suid"), 1000, 1001))
	check(os.Lchown(in("absolute"), 7, 8))
	check(os.Lchown(in("b/c"), 3_000, 1))
	check(unix.Chmod(in("suid"), 0o6755))
	check(unix.Chmod(in("sticky"), 0o3777))
	check(unix.Chmod(in("closed"), 0o500))
	makeHoles(t, in("holes"))
	stamp := time.Unix(1_500_000_000, 0)
	for _, name := range []string{"a/file", "a", "b/c", "sticky", "d", "suid", "closed", "."} {
		stamp = stamp.Add(time.Hour)
		check(os.Chtimes(in(name), stamp, stamp))
	}
}

// makeHoles makes a file of 3 MiB with data at its beginning, in the middle
// and at its end.
func makeHoles(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, 1 << 20, 2<<20 + 4096, 3<<20 - 5} {
		if _, err := f.WriteAt([]byte("data!"), at); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUnpackWhatTarPacks packs a tree in each format of GNU tar.
func TestUnpackWhatTarPacks(t *testing.T) {
	needRoot(t)
	source := filepath.Join(t.TempDir(), "source")
	if err := os.Mkdir(source, 0o711); err != nil {
		t.Fatal(err)
	}
	makeSource(t, source)
	for name, flags := range map[string][]string{
		"gnu":        {"--format=gnu"},
		"gnu sparse": {"--format=gnu", "--sparse"},
		"pax":        {"--format=posix"},
		"pax 0.0":    {"--format=posix", "--sparse", "--sparse-version=0.0"},
		"pax 0.1":    {"--format=posix", "--sparse", "--sparse-version=0.1"},
		"pax 1.0":    {"--format=posix", "--sparse", "--sparse-version=1.0"},
	} {
		t.Run(name, func(t *testing.T) {
			content, err := exec.Command("tar", append(flags, "-c", "--numeric-owner", "-C", source, ".")...).Output()
			if err != nil {
				t.Skipf("needs GNU tar: %v", err)
			}
			ours := filepath.Join(t.TempDir(), "diff")
			record, err := unpackTo(t, content, ours, nil)
			if err != nil {
				t.Fatal(err)
			}
			want, got := readTree(t, source), readTree(t, ours)
			for _, name := range slices.Sorted(maps.Keys(want)) {
				if got[name] != want[name] {
					t.Errorf("%.40q is %+v, want %+v", name, got[name], want[name])
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d files, want %d", len(got), len(want))
			}
			if blocks := lstat(t, filepath.Join(ours, "holes")).Blocks; strings.Contains(strings.Join(flags, " "), "--sparse") && blocks*512 > 2<<20 {
				t.Errorf("%d blocks: the holes were written", blocks)
			}
			checkUsage(t, ours, record)
		})
	}
}

// TestUnpackXattrsOfTar packs extended attributes as GNU tar does.
func TestUnpackXattrsOfTar(t *testing.T) {
	needRoot(t)
	source, out := t.TempDir(), filepath.Join(t.TempDir(), "diff")
	values := map[string]string{"user.text": "value", "user.binary": "\x00=\n\xff", "security.capability": capability}
	for _, name := range []string{"file", "dir"} {
		path := filepath.Join(source, name)
		var err error
		if name == "dir" {
			err = os.Mkdir(path, 0o755)
		} else {
			err = os.WriteFile(path, nil, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		for key, value := range values {
			if err := unix.Setxattr(path, key, []byte(value), 0); err != nil {
				t.Skipf("needs %s on the temporary directory: %v", key, err)
			}
		}
	}
	content, err := exec.Command("tar", "-c", "--format=posix", "--xattrs", "--xattrs-include=*", "-C", source, ".").Output()
	if err != nil {
		t.Skipf("needs GNU tar: %v", err)
	}
	if _, err := unpackTo(t, content, out, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "dir"} {
		for key, want := range values {
			got := make([]byte, 100)
			n, err := unix.Lgetxattr(filepath.Join(out, name), key, got)
			if err != nil || string(got[:n]) != want {
				t.Errorf("%s of %s: %q, %v; want %q", key, name, got[:max(n, 0)], err, want)
			}
		}
	}
}

// A zstd frame may ask for a window, which is memory, far beyond what it holds.
func TestZstdWindow(t *testing.T) {
	for _, c := range []struct {
		window byte // its exponent above 10, in the upper five bits
		want   error
	}{
		{(27 - 10) << 3, nil}, // 128 MiB
		{(28 - 10) << 3, ErrTooLarge},
		{31 << 3, ErrTooLarge},
	} {
		d := &decompressor{source: bytes.NewReader([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, c.window, 1, 0, 0})}
		_, err := io.Copy(io.Discard, d)
		d.Close()
		if !errors.Is(err, c.want) {
			t.Errorf("window %#x: %v, want %v", c.window, err, c.want)
		}
	}
}
