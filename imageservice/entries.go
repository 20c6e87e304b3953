package imageservice

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	permissionBits = 0o7777
	xattrPrefix    = "SCHILY.xattr."
	sparsePrefix   = "GNU.sparse."
	shortSymlink   = 60 // bytes that most file systems keep in the inode
)

// permissions returns the mode bits of an entry, set-uid and the like included.
func permissions(h *tar.Header) uint32 { return uint32(h.Mode & permissionBits) }

// times returns the access and the modification time for an entry.
func times(mtime time.Time) []unix.Timespec {
	t := unix.Timespec{Sec: mtime.Unix(), Nsec: int64(mtime.Nanosecond())}
	return []unix.Timespec{t, t}
}

// hides tells whether what is at a place hides what lower layers have there,
// also after something else takes its place.
func hides(at place) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(at.parent, at.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, &os.PathError{Op: "stat", Path: at.path, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev == 0, nil
	case unix.S_IFDIR:
		_, err := unix.Lgetxattr(at.proc(), opaqueXattr, nil)
		return err == nil, nil
	}
	return false, nil
}

// replace removes what a place holds, for a later entry of the same name.
func (u *unpacker) replace(at place) error {
	hid, err := hides(at)
	if err == nil && hid {
		err = u.hide(at.path)
	}
	if err != nil {
		return err
	}
	u.root.forgetBelow(at)
	err = unix.Unlinkat(at.parent, at.base, 0)
	if !errors.Is(err, unix.EISDIR) {
		if err != nil {
			return &os.PathError{Op: "unlink", Path: at.path, Err: err}
		}
		return nil
	}
	if u.replaced++; u.replaced > u.limits.replaced {
		return fmt.Errorf("%w: more than %d directories are replaced", ErrTooLarge, u.limits.replaced)
	}
	below := at.path + "/"
	for path := range u.pending {
		if path == at.path || strings.HasPrefix(path, below) {
			delete(u.pending, path)
		}
	}
	for path := range u.implicit {
		if path == at.path || strings.HasPrefix(path, below) {
			delete(u.implicit, path)
		}
	}
	return os.RemoveAll(at.proc())
}

// make runs a call that makes a name, and once more after removing what was
// there.
func (u *unpacker) make(at place, call func() error) error {
	err := call()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := u.replace(at); err != nil {
		return err
	}
	return call()
}

// directory makes a directory, or describes one that is there already.
func (u *unpacker) directory(at place, h *tar.Header) error {
	made := true
	err := unix.Mkdirat(at.parent, at.base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(at.parent, at.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("stat: %w", err)
		}
		made = st.Mode&unix.S_IFMT != unix.S_IFDIR
		err = nil
		if made {
			err = u.make(at, func() error { return unix.Mkdirat(at.parent, at.base, 0o700) })
		}
	}
	if err != nil {
		return fmt.Errorf("mkdir: %w", err)
	}
	fd, err := openBelow(at.parent, at.base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if made {
		u.grow(u.block)
	}
	if _, hidden := u.hidden[at.path]; hidden {
		if err := u.opaque(fd); err != nil {
			return err
		}
		delete(u.hidden, at.path)
	}
	delete(u.implicit, at.path)
	if err := u.describe(fd, h, true); err != nil {
		return err
	}
	// Nothing in the layer is reachable for others yet, so the mode can wait.
	return u.later(at.path, h)
}

// file makes a regular file.
func (u *unpacker) file(ctx context.Context, at place, h *tar.Header, content io.Reader) error {
	if u.bytes += h.Size; h.Size < 0 || u.bytes > u.limits.bytes || u.bytes < 0 {
		return fmt.Errorf("%w: its files have more than %d bytes", ErrTooLarge, u.limits.bytes)
	}
	mode := permissions(h)
	fd := -1
	err := u.make(at, func() (err error) {
		fd, err = unix.Openat(at.parent, at.base,
			unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode&0o777)
		return err
	})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	u.contents.begin()
	written, err := u.write(ctx, fd, h, content)
	if err == nil {
		err = u.contents.end(fd)
	}
	if err == nil {
		u.grow(uint64(written))
		err = u.describe(fd, h, mode&^0o777 != 0 || mode&u.umask != 0)
	}
	if closeErr := unix.Close(fd); err == nil && closeErr != nil {
		err = fmt.Errorf("close: %w", closeErr)
	}
	if err != nil {
		return err
	}
	return u.touch(at, h)
}

// write copies the content and returns the bytes that are no hole.
func (u *unpacker) write(ctx context.Context, fd int, h *tar.Header, content io.Reader) (int64, error) {
	sparse := isSparse(h)
	var size, written int64
	for size < h.Size {
		n, err := content.Read(u.buf[:min(int64(len(u.buf)), h.Size-size)])
		if n > 0 {
			u.contents.add(u.buf[:n])
			if sparse && zero(u.buf[:n]) {
				size += int64(n)
			} else {
				if err := writeAt(fd, u.buf[:n], size); err != nil {
					return written, err
				}
				size += int64(n)
				written += int64(n)
			}
		}
		if err != nil && (size < h.Size || !errors.Is(err, io.EOF)) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return written, archiveError(err)
		}
		if sparse && ctx.Err() != nil {
			return written, context.Cause(ctx) // holes do not come from the source, which would tell
		}
	}
	if sparse {
		if err := unix.Ftruncate(fd, h.Size); err != nil {
			return written, fmt.Errorf("truncate to %d bytes: %w", h.Size, err)
		}
	}
	return written, nil
}

func writeAt(fd int, p []byte, offset int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, offset)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		p = p[n:]
		offset += int64(n)
	}
	return nil
}

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, sparsePrefix) {
			return true
		}
	}
	return false
}

func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// hardLink links to a file of this layer. Its content is looked for nowhere
// else: lower layers are other layers' property.
func (u *unpacker) hardLink(at place, h *tar.Header) error {
	target, err := u.clean(h.Linkname)
	if err != nil {
		return fmt.Errorf("link to %s: %w", quote(h.Linkname), err)
	}
	dir, base := split(target)
	fd, err := u.root.open(dir)
	if err == nil {
		defer func() { _ = unix.Close(fd) }()
		err = u.link(fd, base, at)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: link to %s, which is not in this layer", ErrMalformedLayer, quote(h.Linkname))
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: link to %s, which is a directory", ErrMalformedLayer, quote(h.Linkname))
	case err != nil:
		return fmt.Errorf("link to %s: %w", quote(h.Linkname), err)
	}
	return nil
}

func (u *unpacker) link(fd int, base string, at place) error {
	var target, old unix.Stat_t
	if err := unix.Fstatat(fd, base, &target, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	err := unix.Linkat(fd, base, at.parent, at.base, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := unix.Fstatat(at.parent, at.base, &old, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if old.Ino == target.Ino && old.Dev == target.Dev {
		return nil // removing it first would remove the target
	}
	return u.make(at, func() error { return unix.Linkat(fd, base, at.parent, at.base, 0) })
}

// symlink makes a symbolic link. Its target is only text.
func (u *unpacker) symlink(at place, h *tar.Header) error {
	if len(h.Linkname) > u.limits.path {
		return fmt.Errorf("%w: a link's target of %d bytes, at most %d are allowed", ErrTooLarge, len(h.Linkname), u.limits.path)
	}
	if h.Linkname == "" || strings.IndexByte(h.Linkname, 0) >= 0 {
		return fmt.Errorf("%w: a link to %s", ErrMalformedLayer, quote(h.Linkname))
	}
	if err := u.make(at, func() error { return unix.Symlinkat(h.Linkname, at.parent, at.base) }); err != nil {
		return fmt.Errorf("make a symbolic link: %w", err)
	}
	size := uint64(0)
	if len(h.Linkname) >= shortSymlink {
		size = u.block
	}
	u.grow(size)
	return u.describeName(at, h)
}

// node makes a device or a fifo.
func (u *unpacker) node(at place, h *tar.Header) error {
	const maxMajor, maxMinor = 1<<12 - 1, 1<<20 - 1
	if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
		return fmt.Errorf("%w: device %d:%d", ErrMalformedLayer, h.Devmajor, h.Devminor)
	}
	mode, dev := uint32(unix.S_IFIFO), 0
	switch h.Typeflag {
	case tar.TypeChar:
		mode, dev = unix.S_IFCHR, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	case tar.TypeBlock:
		mode, dev = unix.S_IFBLK, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	}
	if err := u.make(at, func() error { return unix.Mknodat(at.parent, at.base, mode|0o600, dev) }); err != nil {
		return fmt.Errorf("make a node: %w", err)
	}
	u.grow(0)
	return u.describeName(at, h)
}

// owner returns the ids of an entry.
func owner(h *tar.Header) (uid, gid int, err error) {
	// The largest number means "leave it" to the kernel.
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return 0, 0, fmt.Errorf("%w: owner %d:%d", ErrMalformedLayer, h.Uid, h.Gid)
	}
	return h.Uid, h.Gid, nil
}
