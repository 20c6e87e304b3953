package imageservice

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// jail is a directory with GNU tar and what it needs, to run it in a chroot:
// what a hostile archive makes it do outside of its target stays in there.
type jail string

func newJail(t testing.TB) jail {
	t.Helper()
	needRoot(t)
	program, err := exec.LookPath("tar")
	if err != nil {
		t.Skipf("needs tar: %v", err)
	}
	if version, err := exec.Command(program, "--version").Output(); err != nil || !bytes.Contains(version, []byte("GNU tar")) {
		t.Skipf("needs GNU tar: %q, %v", version, err)
	}
	libraries, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Skipf("needs ldd: %v", err)
	}
	j := jail(t.TempDir())
	for _, field := range append(strings.Fields(string(libraries)), program) {
		if !strings.HasPrefix(field, "/") {
			continue
		}
		content, err := os.ReadFile(field)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(string(j), field)
		if field == program {
			to = filepath.Join(string(j), "tar")
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return j
}

// clean removes what an archive made beside the target.
func (j jail) clean(t *testing.T) {
	t.Helper()
	for _, name := range names(t, string(j)) {
		if name == "tar" || strings.HasPrefix(name, "lib") {
			continue
		}
		if err := os.RemoveAll(filepath.Join(string(j), name)); err != nil {
			t.Fatal(err)
		}
	}
}

// extract runs tar on the entries and returns its tree, or "" when tar refused
// anything of them. It makes links at once (-P), where its caution would put
// files in their places for the time being; names are made relative for it, and
// one spelling: told to set directories' modes at its end, it keeps a mode for
// each spelling of a name and sets the first entry's last. Told nothing it sets
// that of the last entry, as the layer's unpacker does: ./a of mode 1400 and
// then //a// of mode 1420 are one directory of mode 1420.
func (j jail) extract(t *testing.T, items []item) string {
	t.Helper()
	items = slices.Clone(items)
	for k, i := range items {
		if i.Name = strings.TrimLeft(i.Name, "/"); i.Name != "" {
			i.Name = path.Clean(i.Name)
		}
		if i.Typeflag == tar.TypeLink {
			i.Linkname = strings.TrimLeft(i.Linkname, "/")
		}
		items[k] = i
	}
	content := fuzzArchive(items)
	j.clean(t)
	to := filepath.Join(string(j), "x")
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("/tar", "-x", "-P", "-p", "--numeric-owner", "--delay-directory-restore", "-C", "/x")
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: string(j)}
	c.Dir = "/"
	c.Stdin = bytes.NewReader(content)
	c.Env = []string{"LC_ALL=C"}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		if out.Len() == 0 {
			t.Fatalf("tar: %v", err)
		}
		return ""
	}
	return to
}

// node is what is compared of a file.
type node struct {
	mode     uint32
	uid, gid uint32
	rdev     uint64
	size     int64
	mtime    int64
	content  string // hash, or the target of a link
	first    string // the least name of its hard links
	opaque   bool
}

func readTree(t *testing.T, dir string) map[string]node {
	t.Helper()
	tree := map[string]node{}
	inodes := map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		st := lstat(t, p)
		n := node{mode: st.Mode, uid: st.Uid, gid: st.Gid, mtime: st.Mtim.Sec, first: inodes[st.Ino]}
		if n.first == "" {
			n.first, inodes[st.Ino] = name, name
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			n.size, n.content = st.Size, fmt.Sprintf("%x", sha256.Sum256(content))
		case unix.S_IFLNK:
			n.content, err = os.Readlink(p)
		case unix.S_IFCHR, unix.S_IFBLK:
			n.rdev = st.Rdev
		case unix.S_IFDIR:
			size, xattrErr := unix.Lgetxattr(p, opaqueXattr, nil)
			n.opaque = xattrErr == nil && size == 1
		}
		tree[name] = n
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// translate turns the whiteouts in tar's tree into overlayfs's, as the image
// specification defines them: they hide what lower layers have, nothing else.
func translate(tree map[string]node) {
	var hidden, opaque []string
	for name := range tree {
		base := path.Base(name)
		if !strings.HasPrefix(base, whiteoutPrefix) {
			continue
		}
		switch {
		case base == whiteoutOpaque:
			opaque = append(opaque, path.Dir(name))
		case !strings.HasPrefix(base, whiteoutMeta):
			hidden = append(hidden, path.Join(path.Dir(name), strings.TrimPrefix(base, whiteoutPrefix)))
		}
		delete(tree, name)
	}
	for _, name := range hidden {
		n, ok := tree[name]
		switch {
		case !ok:
			tree[name] = node{mode: unix.S_IFCHR, first: name}
		case n.mode&unix.S_IFMT == unix.S_IFDIR:
			opaque = append(opaque, name)
		}
	}
	for _, name := range opaque {
		n := tree[name]
		n.opaque = true
		tree[name] = n
	}
}

// comparable tells whether tar and an unpacker of layers agree on what an
// entry means.
func comparable(i item) bool {
	switch {
	case i.Typeflag == tar.TypeXGlobalHeader:
		return false // no layer's path is decided by one
	case slices.Contains(strings.Split(i.Name, "/"), ".."), slices.Contains(strings.Split(i.Linkname, "/"), "..") && i.Typeflag == tar.TypeLink:
		return false // tar refuses them all, also those that stay inside
	case i.Typeflag != tar.TypeDir && strings.HasSuffix(i.Name, "/"):
		return false // a directory for tar
	case strings.HasPrefix(path.Base(i.Name), whiteoutPrefix) && i.Typeflag != tar.TypeReg:
		return false // a whiteout is a file
	}
	return true
}

// replacesDirectory tells whether a name is a directory and later something
// else. At its end tar gives that the directory's mode when it got the
// directory's inode number.
func replacesDirectory(items []item) bool {
	directories := map[string]bool{}
	for _, i := range items {
		name := path.Clean("/" + i.Name)
		if i.Typeflag == tar.TypeDir {
			directories[name] = true
		} else if directories[name] {
			return true
		}
	}
	return false
}

// checkAgainstTar unpacks an archive with tar and as a layer. Where both take
// all of it, the trees must be the same. It returns whether they did.
func checkAgainstTar(t *testing.T, j jail, items []item) bool {
	t.Helper()
	kept := slices.DeleteFunc(items, func(i item) bool { return !comparable(i) })
	for k := range kept {
		if kept[k].Typeflag == tar.TypeChar {
			kept[k].Devmajor = 1 // 0:0 is a whiteout
		}
	}
	content := fuzzArchive(kept)
	theirs := j.extract(t, kept)
	base := t.TempDir()
	before := snapshot(t, base)
	ours := filepath.Join(base, "diff")
	record, err := unpackTo(t, content, ours, nil)
	if after := snapshot(t, base); after != before {
		t.Fatalf("beside the layer\n%s\nbecame\n%s", before, after)
	}
	if theirs == "" || err != nil || replacesDirectory(kept) {
		return false
	}
	want, got := readTree(t, theirs), readTree(t, ours)
	translate(want)
	for _, name := range record.Implicit { // nobody says when these were changed, nor by whom
		for _, tree := range []map[string]node{want, got} {
			if n, ok := tree[name]; ok {
				n.mode, n.mtime = n.mode&unix.S_IFMT, 0
				tree[name] = n
			}
		}
	}
	forget := func(tree map[string]node, name string) {
		n := tree[name]
		n.mtime = 0
		tree[name] = n
	}
	if !slices.ContainsFunc(kept, func(i item) bool { return strings.Trim(i.Name, "./") == "" }) {
		forget(want, ".")
		forget(got, ".")
	}
	for name, n := range got { // nor a whiteout's owner and time
		if n.mode == unix.S_IFCHR && n.rdev == 0 && n.uid == 0 && n.gid == 0 {
			forget(got, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if n, ok := got[name]; !ok || n != want[name] {
			t.Errorf("%q is %+v, want %+v", name, n, want[name])
		}
	}
	for name, n := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%q is there: %+v", name, n)
		}
	}
	if t.Failed() {
		for _, i := range kept {
			t.Logf("%c %q -> %q mode %o", i.Typeflag, i.Name, i.Linkname, i.Mode)
		}
	}
	return true
}

// TestUnpackAgainstTar unpacks generated archives, always the same.
func TestUnpackAgainstTar(t *testing.T) {
	archives := rounds(t, 20) * 10
	least := archives / 7
	j := newJail(t)
	compared := 0
	for seed := range archives {
		random := rand.New(rand.NewPCG(uint64(seed), 5))
		program := make([]byte, 3*(1+random.IntN(20)))
		for i := range program {
			program[i] = byte(random.Uint32())
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			if checkAgainstTar(t, j, fuzzItems(program)) {
				compared++
			}
		})
	}
	if compared < least {
		t.Errorf("only %d of %d archives were compared: the generator is too hostile", compared, archives)
	}
	t.Logf("%d of %d archives compared", compared, archives)
}

// FuzzUnpackAgainstTar looks for an archive that tar unpacks otherwise.
func FuzzUnpackAgainstTar(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 3, 9, 2, 1, 3, 3, 2, 1})
	f.Add([]byte{0, 16, 0, 1, 0, 0, 0, 4, 0})
	f.Add([]byte("2+01%10"))
	f.Add([]byte{1, 6, 48, 1, 15, 49})
	j := newJail(f)
	f.Fuzz(func(t *testing.T, program []byte) {
		checkAgainstTar(t, j, fuzzItems(program))
	})
}
