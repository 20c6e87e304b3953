package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unpackTo unpacks an archive into dir, as a layer is.
func unpackTo(t testing.TB, content []byte, dir string, change func(*limits)) (*layerRecord, error) {
	t.Helper()
	needRoot(t)
	s := &Store{limits: defaultLimits(), umask: processUmask(), block: 4096}
	if change != nil {
		change(&s.limits)
	}
	if err := makeDiff(dir); err != nil {
		t.Fatal(err)
	}
	u, err := newUnpacker(dir, s, make([]byte, chunkSize))
	if err != nil {
		t.Fatal(err)
	}
	defer u.close()
	return u.unpack(context.Background(), bytes.NewReader(content))
}

func mustUnpack(t testing.TB, items ...item) (string, *layerRecord) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "diff")
	record, err := unpackTo(t, archive(t, items...), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return dir, record
}

func lstat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func TestUnpackAttributes(t *testing.T) {
	owned := func(i item, uid, gid int, mode int64) item {
		i.Uid, i.Gid, i.Mode = uid, gid, mode
		return i
	}
	long := strings.Repeat("long", 60)
	dir, record := mustUnpack(t,
		owned(dir("./", 0), 0, 0, 0o751),
		owned(dir("sg/", 0), 7, 8, 0o2775),
		owned(file("sg/root", "x"), 0, 0, 0o640),
		owned(dir("sticky", 0), 0, 0, 0o1777),
		owned(dir("readonly", 0), 1, 1, 0o555),
		owned(file("readonly/suid", "x"), 1000, 1001, 0o6755),
		owned(file("/absolute", "x"), 0, 0, 0o4711),
		owned(symlink("readonly/link", "/etc/../../passwd"), 5, 6, 0o777),
		owned(item{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3, ModTime: testTime}}, 0, 3, 0o666),
		owned(item{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "disk", Devmajor: 259, Devminor: 70000, ModTime: testTime}}, 0, 6, 0o660),
		owned(item{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", ModTime: testTime}}, 9, 9, 0o4644),
		owned(file("non-utf8-\xff\xfe", "x"), 0, 0, 0o600),
		owned(file(long+"/"+long+"/"+long, "x"), 3_000_000_000, 1, 0o644),
		hardlink("hard", "readonly/suid"),
		hardlink("hardsym", "readonly/link"),
		file("empty", ""),
	)
	for path, want := range map[string]struct {
		mode     uint32
		uid, gid uint32
	}{
		"":                             {unix.S_IFDIR | 0o751, 0, 0},
		"sg":                           {unix.S_IFDIR | 0o2775, 7, 8},
		"sg/root":                      {unix.S_IFREG | 0o640, 0, 0},
		"sticky":                       {unix.S_IFDIR | 0o1777, 0, 0},
		"readonly":                     {unix.S_IFDIR | 0o555, 1, 1},
		"readonly/suid":                {unix.S_IFREG | 0o6755, 1000, 1001},
		"hard":                         {unix.S_IFREG | 0o6755, 1000, 1001},
		"absolute":                     {unix.S_IFREG | 0o4711, 0, 0},
		"readonly/link":                {unix.S_IFLNK | 0o777, 5, 6},
		"hardsym":                      {unix.S_IFLNK | 0o777, 5, 6},
		"null":                         {unix.S_IFCHR | 0o666, 0, 3},
		"disk":                         {unix.S_IFBLK | 0o660, 0, 6},
		"fifo":                         {unix.S_IFIFO | 0o4644, 9, 9},
		"non-utf8-\xff\xfe":            {unix.S_IFREG | 0o600, 0, 0},
		long:                           {unix.S_IFDIR | 0o755, 0, 0},
		long + "/" + long + "/" + long: {unix.S_IFREG | 0o644, 3_000_000_000, 1},
		"empty":                        {unix.S_IFREG | 0o644, 0, 0},
	} {
		st := lstat(t, filepath.Join(dir, path))
		if st.Mode != want.mode || st.Uid != want.uid || st.Gid != want.gid {
			t.Errorf("%.40q: mode %o owner %d:%d, want %o %d:%d", path, st.Mode, st.Uid, st.Gid, want.mode, want.uid, want.gid)
		}
		implicit := path == long || path == ""
		if !implicit && st.Mtim.Sec != testTime.Unix() {
			t.Errorf("%.40q: time %v", path, time.Unix(st.Mtim.Unix()))
		}
	}
	if st := lstat(t, filepath.Join(dir, "disk")); st.Rdev != unix.Mkdev(259, 70000) {
		t.Errorf("device %x", st.Rdev)
	}
	if target, err := os.Readlink(filepath.Join(dir, "readonly/link")); err != nil || target != "/etc/../../passwd" {
		t.Errorf("link to %q, %v", target, err)
	}
	if want := []string{long, long + "/" + long}; !slices.Equal(record.Implicit, want) {
		t.Errorf("implicit %q", record.Implicit)
	}
	checkUsage(t, dir, record)
}

// checkUsage compares the counted inodes with the real ones.
func checkUsage(t *testing.T, dir string, record *layerRecord) {
	t.Helper()
	inodes := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			st := lstat(t, path)
			inodes[st.Ino] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if uint64(len(inodes)) != record.Inodes {
		t.Errorf("%d inodes counted, %d are there", record.Inodes, len(inodes))
	}
}

func TestUnpackXattrs(t *testing.T) {
	records := map[string]string{
		"SCHILY.xattr.security.capability":      capability,
		"SCHILY.xattr.user.x":                   "y",
		"SCHILY.xattr.trusted.overlay.opaque":   "y",
		"SCHILY.xattr.trusted.overlay.redirect": "/../../etc",
		"SCHILY.xattr.trusted.other":            "y",
		"SCHILY.xattr.user.overlay.redirect":    "/etc",
		"SCHILY.xattr.security.selinux":         "system_u:object_r:etc_t:s0",
	}
	f, d, l := file("f", "x"), dir("d", 0o755), symlink("l", "f")
	f.PAXRecords, d.PAXRecords, l.PAXRecords = records, records, map[string]string{"SCHILY.xattr.user.x": "y"}
	f.Uid = 1000 // the change of owner must come before the capability
	root, _ := mustUnpack(t, f, d, l)
	for name, want := range map[string][]string{"f": {"security.capability", "user.x"}, "d": {"security.capability", "user.x"}, "l": nil} {
		list := make([]byte, 4096)
		n, err := unix.Llistxattr(filepath.Join(root, name), list)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		if n > 0 {
			got = strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00")
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s has %q, want %q", name, got, want)
		}
	}
}

func TestUnpackReplaces(t *testing.T) {
	root, record := mustUnpack(t,
		file("a", "first"), file("a", "second"),
		dir("b", 0o700), file("b/x", "x"), dir("b/d", 0o700), file("b", "file now"),
		file("c", "file"), dir("c", 0o711), file("c/x", "in"),
		symlink("d", "c"), dir("d", 0o755), file("d/x", "not in c"),
		dir("e", 0o700), file("e/x", "kept"), dir("e", 0o750),
		file("f", "x"), hardlink("f", "f"), hardlink("g", "f"), file("f", "y"),
		symlink("h", "nowhere"), file("h", "file"),
		dir("rel", 0o755), symlink("via", "rel"), file("via/x", "followed"), file("rel/../up", "cleaned"),
		dir("i/j", 0o700), symlink("i", "rel"), file("i/k", "through"),
	)
	for path, want := range map[string]string{
		"a": "second", "b": "file now", "c/x": "in", "d/x": "not in c", "e/x": "kept", "f": "y", "g": "x", "h": "file",
		"rel/x": "followed", "up": "cleaned", "rel/k": "through",
	} {
		wantFile(t, filepath.Join(root, path), want)
	}
	if st := lstat(t, filepath.Join(root, "e")); st.Mode&0o777 != 0o750 {
		t.Errorf("e has mode %o", st.Mode)
	}
	if len(record.Implicit) != 0 {
		t.Errorf("implicit %q", record.Implicit)
	}
}

func TestUnpackSparse(t *testing.T) {
	// archive/tar writes no sparse files: this is GNU's format 1.0, by hand.
	const hole = 1 << 20
	data := "the end"
	sparseMap := fmt.Sprintf("1\n%d\n%d\n", hole, len(data))
	content := sparseMap + strings.Repeat("\x00", 512-len(sparseMap)) + data
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	pax := paxHeader(map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "holes",
		"GNU.sparse.realsize": fmt.Sprint(hole + len(data)),
	})
	raw := rawEntry("PaxHeader", 'x', pax)
	raw = append(raw, rawEntry("ignored", '0', content)...)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "diff")
	if _, err := unpackTo(t, append(raw, b.Bytes()...), dir, nil); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(dir, "holes"), strings.Repeat("\x00", hole)+data)
	if st := lstat(t, filepath.Join(dir, "holes")); st.Blocks*512 > hole/2 {
		t.Errorf("%d blocks: the hole was written", st.Blocks)
	}
}

func paxHeader(records map[string]string) string {
	var b strings.Builder
	for k, v := range records {
		line := fmt.Sprintf(" %s=%s\n", k, v)
		n := len(line) + 1
		for len(fmt.Sprint(n))+len(line) != n {
			n = len(fmt.Sprint(n)) + len(line)
		}
		fmt.Fprintf(&b, "%d%s", n, line)
	}
	return b.String()
}

// rawEntry makes an entry that archive/tar would not write.
func rawEntry(name string, typeflag byte, content string) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00%011o\x00", len(content), testTime.Unix()))
	copy(h[148:], "        ")
	h[156] = typeflag
	copy(h[257:], "ustar\x0000")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	h = append(h, content...)
	return append(h, make([]byte, (512-len(content)%512)%512)...)
}

func TestUnpackRefuses(t *testing.T) {
	big := dir("d", 0o755)
	big.PAXRecords = map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", 5000)}
	device := item{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev", Devmajor: 1 << 20}}
	few := func(l *limits) {
		*l = limits{entries: 10, directories: 3, implicit: 2, replaced: 1, bytes: 1000, depth: 4, path: 100, xattrs: 1000, acls: 10}
	}
	var many []item
	for i := range 11 {
		many = append(many, file(fmt.Sprint(i), ""))
	}
	for _, c := range []struct {
		name  string
		items []item
		want  error
		text  string
	}{
		{"climbs", []item{file("a/../../x", "x")}, ErrMalformedLayer, "climbs out"},
		{"climbs absolutely", []item{file("/../x", "x")}, ErrMalformedLayer, "climbs out"},
		{"climbs as directory", []item{dir("../x", 0o755)}, ErrMalformedLayer, "climbs out"},
		{"absolute link", []item{symlink("l", "/tmp"), file("l/x", "x")}, ErrMalformedLayer, "symbolic link"},
		{"climbing link", []item{symlink("l", ".."), file("l/x", "x")}, ErrMalformedLayer, "symbolic link"},
		{"link chain", []item{symlink("a", "."), symlink("b", "a/a/a/.."), dir("b/x", 0o755)}, ErrMalformedLayer, "symbolic link"},
		{"link loop", []item{symlink("a", "b"), symlink("b", "a"), file("a/x", "x")}, ErrMalformedLayer, "no directory"},
		{"link to nowhere", []item{symlink("a", "b"), file("a/x", "x")}, ErrMalformedLayer, "not in this layer"},
		{"proc", []item{symlink("a", "/proc/self/root"), file("a/x", "x")}, ErrMalformedLayer, "symbolic link"},
		{"file as parent", []item{file("a", "x"), file("a/x", "x")}, ErrMalformedLayer, "no directory"},
		{"hard link out", []item{hardlink("x", "../../etc/passwd")}, ErrMalformedLayer, "climbs out"},
		{"hard link through", []item{symlink("l", "/etc"), hardlink("x", "l/passwd")}, ErrMalformedLayer, "symbolic link"},
		{"hard link to nothing", []item{hardlink("x", "lower")}, ErrMalformedLayer, "not in this layer"},
		{"hard link to directory", []item{dir("d", 0o755), hardlink("x", "d")}, ErrMalformedLayer, "directory"},
		{"whiteout of nothing", []item{file(".wh.", "")}, ErrMalformedLayer, "whiteout"},
		{"whiteout of parent", []item{file("a/.wh...", "")}, ErrMalformedLayer, "whiteout"},
		{"below whiteout", []item{file(".wh.a/b", "")}, ErrMalformedLayer, "whiteout"},
		{"root as file", []item{symlink("./", "/etc")}, ErrMalformedLayer, "root"},
		{"device number", []item{device}, ErrMalformedLayer, "device"},
		{"entries", many, ErrTooLarge, "10 entries"},
		{"directories", []item{dir("a", 0), dir("b", 0), dir("c", 0), dir("d", 0)}, ErrTooLarge, "3 directories"},
		{"implicit", []item{file("a/b/c/d", "")}, ErrTooLarge, "2 directories"},
		{"replaced", []item{dir("a", 0), file("a", ""), dir("a", 0), file("a", "")}, ErrTooLarge, "replaced"},
		{"bytes", []item{file("a", strings.Repeat("x", 600)), file("b", strings.Repeat("x", 600))}, ErrTooLarge, "1000 bytes"},
		{"depth", []item{dir("a/b/c/d/e", 0)}, ErrTooLarge, "components"},
		{"path", []item{dir(strings.Repeat("a/", 60), 0)}, ErrTooLarge, "path"},
		{"link target", []item{symlink("a", strings.Repeat("a/", 60))}, ErrTooLarge, "target"},
		{"xattrs", []item{big}, ErrTooLarge, "attributes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := t.TempDir()
			_, err := unpackTo(t, archive(t, c.items...), filepath.Join(base, "diff"), few)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "entry") {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
			if got := names(t, base); !slices.Equal(got, []string{"diff"}) {
				t.Errorf("beside the layer: %v", got)
			}
		})
	}
	for name, content := range map[string][]byte{
		"cut in content": archive(t, file("f", strings.Repeat("x", 2000)))[:1024],
		"cut in header":  archive(t, file("f", ""))[:300],
		"noise":          bytes.Repeat([]byte("noise "), 500),
		"zero byte":      append(rawEntry("PaxHeader", 'x', paxHeader(map[string]string{"path": "a\x00b"})), rawEntry("x", '0', "")...),
		"type":           rawEntry("x", 'Z', ""),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := unpackTo(t, content, filepath.Join(t.TempDir(), "diff"), nil)
			if !errors.Is(err, ErrMalformedLayer) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestWhiteouts mounts an overlay of layers and looks at what containers see.
func TestWhiteouts(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	bottom := gzipped(t,
		dir("keep", 0o755), file("keep/a", "1"), file("keep/b", "1"),
		dir("opaque", 0o755), file("opaque/gone", "1"),
		dir("gone", 0o755), file("gone/x", "1"),
		dir("again", 0o755), file("again/lower", "1"),
		dir("again2", 0o755), file("again2/lower", "1"),
		dir("both", 0o755), file("file", "1"),
		dir("root", 0o700), file("root/.profile", "1"), dir("tmp", 0o1777))
	top := gzipped(t,
		file("keep/.wh.a", ""), file(".wh.gone", ""),
		dir("opaque", 0o755), file("opaque/new", "2"), file("opaque/.wh..wh..opq", ""),
		file(".wh.again", ""), dir("again", 0o755), file("again/upper", "2"),
		dir("again2", 0o755), file("again2/upper", "2"), file(".wh.again2", ""),
		file(".wh.file", ""), file("file", "2"),
		file(".wh..wh.plnk/1.2", ""), file(".wh..wh.aufs", ""),
		file("root/.bashrc", "2"), file("tmp/x", "2"))
	r.putImage("x", "1", testConfig(), bottom, top)
	image := mustPull(t, s, r.ref("x:1"))
	root := mountOverlay(t, image.Layers)
	var got []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if rel, relErr := filepath.Rel(root, path); relErr == nil && rel != "." {
			got = append(got, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"again", "again/upper", "again2", "again2/upper", "both", "file", "keep", "keep/b",
		"opaque", "opaque/new", "root", "root/.bashrc", "root/.profile", "tmp", "tmp/x",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the overlay shows\n%q, want\n%q", got, want)
	}
	wantFile(t, filepath.Join(root, "file"), "2")
	for path, mode := range map[string]uint32{"root": 0o700, "tmp": 0o1777, "keep": 0o755} {
		if st := lstat(t, filepath.Join(root, path)); st.Mode&0o7777 != mode {
			t.Errorf("%s has mode %o, want %o: a layer that only holds it changed it", path, st.Mode&0o7777, mode)
		}
	}
}

// TestWhiteoutOfReplaced has names that a layer both hides and has, as several
// things one after another.
func TestWhiteoutOfReplaced(t *testing.T) {
	for name, items := range map[string][]item{
		"whiteout, file, directory":           {file(".wh.a", ""), file("a", ""), dir("a", 0o755)},
		"file, whiteout, directory":           {file("a", ""), file(".wh.a", ""), dir("a", 0o755)},
		"directory, whiteout, file, again":    {dir("a", 0o755), file(".wh.a", ""), file("a", ""), dir("a", 0o755)},
		"whiteout, link, hard link, a parent": {file(".wh.a", ""), symlink("a", "x"), file("x", ""), hardlink("a", "x"), dir("a/", 0o755), file("a/b", "")},
	} {
		t.Run(name, func(t *testing.T) {
			root, _ := mustUnpack(t, items...)
			if n := readTree(t, root)["a"]; !n.opaque {
				t.Errorf("a lower layer's directory would show: %+v", n)
			}
		})
	}
}

// mountOverlay mounts layers read-only, without a name in the mount table, and
// returns a path to the mount.
func mountOverlay(t testing.TB, layers []string) string {
	t.Helper()
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skipf("needs overlayfs and fsopen: %v", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if len(layers) == 1 {
		layers = append(slices.Clone(layers), t.TempDir())
	}
	for _, layer := range layers {
		if err := unix.FsconfigSetString(fd, "lowerdir+", layer); err != nil {
			t.Skipf("needs overlayfs with lowerdir+ (Linux 6.5): %v", err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		t.Fatal(err)
	}
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(mount) })
	return fmt.Sprintf("/proc/self/fd/%d/.", mount)
}

// TestLayersTwice has a layer twice in an image, and an opaque root.
func TestLayersTwice(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	a, b := gzipped(t, file("x", "a"), file("y", "a")), gzipped(t, file("x", "b"), file(".wh.y", ""))
	r.putImage("x", "1", testConfig(), a, b, a)
	root := mountOverlay(t, mustPull(t, s, r.ref("x:1")).Layers)
	wantFile(t, filepath.Join(root, "x"), "a")
	wantFile(t, filepath.Join(root, "y"), "a")

	r.putImage("x", "2", testConfig(), a, gzipped(t, file(".wh..wh..opq", ""), file("z", "c")))
	root = mountOverlay(t, mustPull(t, s, r.ref("x:2")).Layers)
	wantFile(t, filepath.Join(root, "z"), "c")
	if got := names(t, root); !slices.Equal(got, []string{"z"}) {
		t.Errorf("below an opaque root: %v", got)
	}
	r.putImage("x", "3", testConfig())
	if image := mustPull(t, s, r.ref("x:3")); len(image.Layers) != 0 {
		t.Errorf("an image without layers has %v", image.Layers)
	}
}
