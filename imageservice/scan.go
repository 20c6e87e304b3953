package imageservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

const blockUnit = 512 // of st_blocks, on every file system

// listed is one file of a layer, whatever its type, as the disk has it.
type listed struct {
	path     string // below the layer, "" for its root
	mode     uint32 // type and permissions
	uid, gid uint32
	size     int64 // of a file or a link
	device   uint64
	seconds  int64 // of the modification time
	nanos    int64
	sum      uint64 // of a file's content or a link's target
	xattrs   uint64 // sum of the extended attributes that matter, 0 for none
}

func (l *listed) kind() uint32 { return l.mode & unix.S_IFMT }

// scan goes through all files of a layer: a directory before what is in it,
// in the order of names.
type scan struct {
	ctx    context.Context //nolint:containedctx // of this scan alone
	sums   map[uint64]uint64
	xattrs bool // look for extended attributes: there may be some
	sizes  bool // look at nothing but what files take on the disk
	fresh  bool // read contents from the disk, not from memory
	buf    []byte
	visit  func(*listed) error
	failed func(path string, err error) error // told of what cannot be read; nil goes on

	links         map[uint64]struct{} // inodes with several names that were counted
	bytes, inodes uint64              // on the disk
	read          uint64              // of contents
}

// run scans the layer at path.
func (s *scan) run(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return s.failed("", &os.PathError{Op: "open", Path: path, Err: err})
	}
	defer func() { _ = unix.Close(fd) }()
	s.links = map[uint64]struct{}{}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return s.failed("", &os.PathError{Op: "stat", Path: path, Err: err})
	}
	root := s.listed("", &st)
	if root.xattrs, err = s.attributes("/proc/self/fd/" + strconv.Itoa(fd) + "/."); err != nil {
		return s.failed("", err)
	}
	if err := s.visit(root); err != nil {
		return err
	}
	return s.directory(fd, "")
}

// directory scans what is in a directory.
func (s *scan) directory(fd int, path string) error {
	names, err := readNames(fd, s.buf)
	if err != nil {
		return s.failed(path, fmt.Errorf("read directory: %w", err))
	}
	for _, name := range names {
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		below := name
		if path != "" {
			below = path + "/" + name
		}
		e, err := s.entry(place{parent: fd, base: name, path: below})
		if err != nil {
			if err := s.failed(below, err); err != nil {
				return err
			}
			continue
		}
		if err := s.visit(e); err != nil {
			return err
		}
		if e.kind() != unix.S_IFDIR {
			continue
		}
		if err := s.below(fd, name, below); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) below(parent int, name, path string) error {
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return s.failed(path, fmt.Errorf("open directory: %w", err))
	}
	defer func() { _ = unix.Close(fd) }()
	return s.directory(fd, path)
}

// entry looks at one file.
func (s *scan) entry(at place) (*listed, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(at.parent, at.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	e := s.listed(at.path, &st)
	if s.sizes {
		return e, nil
	}
	var err error
	switch e.kind() {
	case unix.S_IFREG:
		e.sum, err = s.content(at, &st)
	case unix.S_IFLNK:
		e.sum, err = s.target(at)
	}
	if err != nil {
		return nil, err
	}
	e.xattrs, err = s.attributes(at.proc())
	return e, err
}

// listed counts an inode and describes it.
func (s *scan) listed(path string, st *unix.Stat_t) *listed {
	_, again := s.links[st.Ino]
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		s.links[st.Ino] = struct{}{}
	}
	if !again {
		s.inodes++
		s.bytes += uint64(st.Blocks) * blockUnit
	}
	e := &listed{path: path, mode: st.Mode, uid: st.Uid, gid: st.Gid, seconds: st.Mtim.Sec, nanos: st.Mtim.Nsec}
	switch e.kind() {
	case unix.S_IFREG, unix.S_IFLNK:
		e.size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		e.device = st.Rdev
	}
	return e
}

// content returns the sum of a file's content: the known one of its inode, or
// that of what can be read.
func (s *scan) content(at place, st *unix.Stat_t) (sum uint64, err error) {
	if st.Size == 0 {
		return 0, nil
	}
	if sum, known := s.sums[st.Ino]; known {
		return sum, nil
	}
	fd, err := unix.Openat(at.parent, at.base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if s.fresh {
		_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) // what cannot be dropped is compared as it is
		defer func() { _ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) }()
	}
	var hash xxhash.Digest
	hash.Reset()
	for {
		n, err := unix.Read(fd, s.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			break
		}
		s.read += uint64(n)
		_, _ = hash.Write(s.buf[:n]) // never fails
		if s.ctx.Err() != nil {
			return 0, context.Cause(s.ctx)
		}
	}
	if st.Nlink > 1 {
		s.sums[st.Ino] = hash.Sum64()
	}
	return hash.Sum64(), nil
}

func (s *scan) target(at place) (uint64, error) {
	var text [unix.PathMax]byte
	n, err := unix.Readlinkat(at.parent, at.base, text[:])
	if err != nil {
		return 0, fmt.Errorf("read link: %w", err)
	}
	return xxhash.Sum64(text[:n]), nil
}

// attributes returns the sum of those extended attributes that belong to a
// layer. Labels of the node are left out, all that overlayfs reads is in.
func (s *scan) attributes(path string) (uint64, error) {
	if !s.xattrs {
		return 0, nil
	}
	n, err := unix.Llistxattr(path, s.buf)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return 0, fmt.Errorf("list attributes: %w", err)
	}
	if n <= 0 {
		return 0, nil
	}
	var hash xxhash.Digest
	hash.Reset()
	some := false
	for _, name := range slices.Sorted(strings.SplitSeq(strings.TrimSuffix(string(s.buf[:n]), "\x00"), "\x00")) {
		if !allowedXattr(name) && name != defaultACL && !strings.HasPrefix(name, "trusted.overlay.") && !strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(path, name, s.buf)
		if err != nil {
			return 0, fmt.Errorf("read attribute %s: %w", quote(name), err)
		}
		some = true
		_, _ = hash.WriteString(name + "\x00" + strconv.Itoa(n) + "\x00")
		_, _ = hash.Write(s.buf[:n])
	}
	if !some {
		return 0, nil
	}
	return max(hash.Sum64(), 1), nil
}

// readNames returns the names in an open directory, sorted.
func readNames(fd int, buf []byte) ([]string, error) {
	var names []string
	for {
		n, err := unix.ReadDirent(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			slices.Sort(names)
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// contents are the sums of the files that an unpacker wrote, by inode. Whatever
// happens to names later, an inode that is still there has the content that
// was written to it last.
type contents struct {
	hash   xxhash.Digest
	sums   map[uint64]uint64
	xattrs bool // an extended attribute was set
}

// begin is called before a file's content is written with add.
func (c *contents) begin() { c.hash.Reset() }

func (c *contents) add(p []byte) { _, _ = c.hash.Write(p) } // never fails

// end notes the sum of the file that is open as fd.
func (c *contents) end(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	c.sums[st.Ino] = c.hash.Sum64()
	return nil
}
