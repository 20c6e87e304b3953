package imageservice

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
	defaultACL     = "system.posix_acl_default"
	maxComponent   = 255 // bytes of one name, as all file systems have it
)

// unpacker writes one layer's archive into one directory. Every path is opened
// below the root's descriptor with RESOLVE_BENEATH, final links are never
// followed, and nobody else writes there meanwhile.
type unpacker struct {
	root   tree
	limits limits
	umask  uint32
	block  uint64
	buf    []byte

	entries  int
	bytes    int64
	replaced int
	acls     int                   // bytes in pending
	pending  map[string]attributes // of directories, set when all is written
	implicit map[string]struct{}
	hidden   map[string]struct{} // names that a whiteout and an entry share, as long as that entry is no directory
	contents contents
	result   layerRecord
}

// attributes are set on a directory after everything in it is written.
type attributes struct {
	mode  uint32
	mtime time.Time
	acl   string // default ACL, which what is made in the directory would inherit
}

// newUnpacker unpacks into dir, which is empty. The caller closes it.
func newUnpacker(dir string, s *Store, buf []byte) (*unpacker, error) {
	root, err := openTree(dir)
	if err != nil {
		return nil, err
	}
	return &unpacker{
		root:     root,
		limits:   s.limits,
		umask:    s.umask,
		block:    s.block,
		buf:      buf,
		pending:  map[string]attributes{},
		implicit: map[string]struct{}{},
		hidden:   map[string]struct{}{},
		contents: contents{sums: map[uint64]uint64{}},
	}, nil
}

func (u *unpacker) close() { u.root.close() }

// unpack writes the whole archive. What it returns besides an error describes
// the layer.
func (u *unpacker) unpack(ctx context.Context, archive io.Reader) (*layerRecord, error) {
	u.grow(u.block) // the root
	reader := tar.NewReader(archive)
	for {
		h, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return nil, archiveError(err)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if u.entries++; u.entries > u.limits.entries {
			return nil, fmt.Errorf("%w: entry %s: more than %d entries", ErrTooLarge, quote(h.Name), u.limits.entries)
		}
		if err := u.entry(ctx, h, reader); err != nil {
			return nil, fmt.Errorf("entry %s: %w", quote(h.Name), err)
		}
	}
	if err := u.finish(); err != nil {
		return nil, err
	}
	u.result.Implicit = slices.Sorted(maps.Keys(u.implicit))
	return &u.result, nil
}

// archiveError tells a malformed archive from a source that failed.
func archiveError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", ErrMalformedLayer, err)
	}
	return err
}

// quote shows a name of an archive: cut short, and without what a terminal or
// a log would take for its own.
func quote(name string) string { return fmt.Sprintf("%q", cut(name, maxErrorText)) }

// entry writes one entry.
func (u *unpacker) entry(ctx context.Context, h *tar.Header, content io.Reader) error {
	path, err := u.clean(h.Name)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	dir, base := split(path)
	if ignored, err := aufsName(dir, base); ignored || err != nil {
		return err
	}
	if path == "" {
		return u.rootEntry(h)
	}
	parent, err := u.parent(dir)
	if err != nil {
		return err
	}
	at := place{parent: parent, base: base, path: path}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(at, dir)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.directory(at, h)
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont, 0: // 0 is a file in the oldest archives
		return u.file(ctx, at, h, content)
	case tar.TypeLink:
		return u.hardLink(at, h)
	case tar.TypeSymlink:
		return u.symlink(at, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.node(at, h)
	}
	return fmt.Errorf("%w: type %q", ErrMalformedLayer, h.Typeflag)
}

// aufsName tells whether an entry belongs to the book-keeping of AUFS, which
// old builders left in layers.
func aufsName(dir, base string) (bool, error) {
	if base != whiteoutOpaque && strings.HasPrefix(base, whiteoutMeta) {
		return true, nil
	}
	if !strings.Contains(dir, whiteoutPrefix) {
		return false, nil
	}
	for c := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(c, whiteoutMeta) {
			return true, nil
		}
		if strings.HasPrefix(c, whiteoutPrefix) {
			return false, fmt.Errorf("%w: it lies in the whiteout %s", ErrMalformedLayer, quote(c))
		}
	}
	return false, nil
}

// rootEntry takes the attributes of the layer's root.
func (u *unpacker) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return fmt.Errorf("%w: the root is no directory", ErrMalformedLayer)
	}
	if err := u.describe(u.root.fd, h, true); err != nil {
		return err
	}
	return u.later("", h)
}

// clean turns the name of an entry into a path below the root: "" is the root.
// A name that climbs above the root is refused, not bent.
func (u *unpacker) clean(name string) (string, error) {
	if len(name) > u.limits.path {
		return "", fmt.Errorf("%w: a path of %d bytes, at most %d are allowed", ErrTooLarge, len(name), u.limits.path)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("%w: a zero byte in a path", ErrMalformedLayer)
	}
	var parts []string
	for c := range strings.SplitSeq(name, "/") {
		switch c {
		case "", ".":
		case "..":
			if len(parts) == 0 {
				return "", fmt.Errorf("%w: the path climbs out of the layer", ErrMalformedLayer)
			}
			parts = parts[:len(parts)-1]
		default:
			if len(c) > maxComponent {
				return "", fmt.Errorf("%w: a component of %d bytes, at most %d are allowed", ErrTooLarge, len(c), maxComponent)
			}
			parts = append(parts, c)
		}
	}
	if len(parts) > u.limits.depth {
		return "", fmt.Errorf("%w: a path of %d components, at most %d are allowed", ErrTooLarge, len(parts), u.limits.depth)
	}
	return strings.Join(parts, "/"), nil
}

// split cuts a clean path before its last component.
func split(path string) (dir, base string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// parent opens a directory of the layer and makes it if it is not there. A
// relative link on the way is followed while it stays inside.
func (u *unpacker) parent(dir string) (int, error) {
	fd, err := u.root.dir(dir)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	above, base := split(dir)
	fd, err = u.parent(above)
	if err != nil {
		return -1, err
	}
	if len(u.implicit) >= u.limits.implicit {
		return -1, fmt.Errorf("%w: more than %d directories that no entry describes", ErrTooLarge, u.limits.implicit)
	}
	switch err := unix.Mkdirat(fd, base, 0o700); {
	case errors.Is(err, unix.EEXIST):
		// It exists, yet opening it found nothing.
		return -1, fmt.Errorf("%w: %s is a link to something that is not in this layer", ErrMalformedLayer, quote(dir))
	case err != nil:
		return -1, &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	u.grow(u.block)
	u.implicit[dir] = struct{}{}
	fd, err = u.root.dir(dir)
	if err != nil {
		return -1, err
	}
	if err := unix.Fchmod(fd, 0o755); err != nil {
		return -1, &os.PathError{Op: "chmod", Path: dir, Err: err}
	}
	return fd, nil
}

// later notes a directory's attributes for the end. Until then it is not
// set-gid, so that what is made in it belongs to root first.
func (u *unpacker) later(path string, h *tar.Header) error {
	if len(u.pending) >= u.limits.directories {
		return fmt.Errorf("%w: more than %d directories", ErrTooLarge, u.limits.directories)
	}
	a := attributes{mode: permissions(h), mtime: h.ModTime, acl: h.PAXRecords[xattrPrefix+defaultACL]}
	u.contents.xattrs = u.contents.xattrs || a.acl != ""
	if u.acls += len(a.acl); u.acls > u.limits.acls {
		return fmt.Errorf("%w: more than %d bytes of default ACLs", ErrTooLarge, u.limits.acls)
	}
	u.pending[path] = a
	return nil
}

// finish sets the attributes of directories.
func (u *unpacker) finish() error {
	for path, a := range u.pending {
		fd, err := u.root.open(path)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EXDEV) {
			continue // a later entry replaced it, or a link on the way
		}
		if err != nil {
			return fmt.Errorf("entry %s: %w", quote(path), err)
		}
		err = a.apply(fd)
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("entry %s: set mode and time: %w", quote(path), err)
		}
	}
	return nil
}

func (a attributes) apply(fd int) error {
	if a.acl != "" {
		err := unix.Fsetxattr(fd, defaultACL, []byte(a.acl), 0)
		if err != nil && !optionalXattr(defaultACL, err) {
			return err
		}
	}
	if err := unix.Fchmod(fd, a.mode); err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, ".", times(a.mtime), 0)
}

// grow counts an inode and the disk space of bytes.
func (u *unpacker) grow(bytes uint64) {
	u.result.Inodes++
	u.result.Bytes += (bytes + u.block - 1) / u.block * u.block
}

// whiteout hides what lower layers have under a name, or all they have in the
// directory. It hides nothing of its own layer.
func (u *unpacker) whiteout(at place, dir string) error {
	if at.base == whiteoutOpaque {
		if dir == "" {
			u.result.OpaqueRoot = true
		}
		return u.opaque(at.parent)
	}
	hidden := strings.TrimPrefix(at.base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return fmt.Errorf("%w: a whiteout of nothing", ErrMalformedLayer)
	}
	err := unix.Mknodat(at.parent, hidden, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		if err != nil {
			return fmt.Errorf("make a whiteout: %w", err)
		}
		u.grow(0)
		return nil
	}
	// The layer has that name too. Anything but a directory hides the lower
	// one by being there; a directory must not be merged with it.
	fd, err := openBelow(at.parent, hidden, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return u.hide(join(dir, hidden))
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", quote(hidden), err)
	}
	defer func() { _ = unix.Close(fd) }()
	return u.opaque(fd)
}

// hide remembers that what lower layers have at a path is hidden by something
// that a directory may replace yet, which must then be opaque.
func (u *unpacker) hide(path string) error {
	if len(u.hidden) >= u.limits.implicit {
		return fmt.Errorf("%w: more than %d names that are hidden and there", ErrTooLarge, u.limits.implicit)
	}
	u.hidden[path] = struct{}{}
	return nil
}

func (u *unpacker) opaque(fd int) error {
	u.contents.xattrs = true
	if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("set %s: %w", opaqueXattr, err)
	}
	return nil
}
