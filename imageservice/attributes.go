package imageservice

import (
	"archive/tar"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// describe sets the owner, the mode and the extended attributes of an open
// file or directory, in this order: a change of owner takes set-uid bits and
// capabilities away. What is new belongs to root already.
func (u *unpacker) describe(fd int, h *tar.Header, chmod bool) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	if uid != 0 || gid != 0 || h.Typeflag == tar.TypeDir {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return fmt.Errorf("chown to %d:%d: %w", uid, gid, err)
		}
		chmod = chmod || permissions(h)&^0o777 != 0
	}
	if chmod && h.Typeflag != tar.TypeDir {
		if err := unix.Fchmod(fd, permissions(h)); err != nil {
			return fmt.Errorf("chmod to %#o: %w", permissions(h), err)
		}
	}
	return u.xattrs(h, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) })
}

// describeName does the same for a link or a node, which cannot be opened
// without effects, and sets its time.
func (u *unpacker) describeName(at place, h *tar.Header) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	if uid != 0 || gid != 0 {
		if err := unix.Fchownat(at.parent, at.base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("chown to %d:%d: %w", uid, gid, err)
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		// The node was made a moment ago in a directory that is ours alone.
		if err := unix.Fchmodat(at.parent, at.base, permissions(h), 0); err != nil {
			return fmt.Errorf("chmod to %#o: %w", permissions(h), err)
		}
	}
	err = u.xattrs(h, func(name string, value []byte) error { return unix.Lsetxattr(at.proc(), name, value, 0) })
	if err != nil {
		return err
	}
	return u.touch(at, h)
}

func (u *unpacker) touch(at place, h *tar.Header) error {
	if err := unix.UtimesNanoAt(at.parent, at.base, times(h.ModTime), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the time: %w", err)
	}
	return nil
}

// xattrs sets the extended attributes of an entry that an image may have.
func (u *unpacker) xattrs(h *tar.Header, set func(string, []byte) error) error {
	total := 0
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok || !allowedXattr(name) {
			continue
		}
		if total += len(name) + len(value); total > u.limits.xattrs {
			return fmt.Errorf("%w: more than %d bytes of extended attributes", ErrTooLarge, u.limits.xattrs)
		}
		u.contents.xattrs = true
		err := set(name, []byte(value))
		if err == nil || optionalXattr(name, err) {
			continue
		}
		return fmt.Errorf("set attribute %s of %d bytes: %w", quote(name), len(value), err)
	}
	return nil
}

// allowedXattr says which attributes an image may bring (a default ACL is
// set in finish). Never those that
// overlayfs reads (trusted.overlay.*, user.overlay.*: a forged redirect or
// metacopy shows other files of the host's file system), and no labels, which
// are the node's to give.
func allowedXattr(name string) bool {
	switch {
	case strings.HasPrefix(name, "user.overlay."):
		return false
	case strings.HasPrefix(name, "user."), name == "security.capability", name == "system.posix_acl_access":
		return true
	}
	return false
}

// optionalXattr tells whether an attribute may be missing: this file system or
// this kind of file has none. A capability may not, a program needs it.
func optionalXattr(name string, err error) bool {
	return name != "security.capability" && (errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM))
}

// forgetBelow is forget, but keeps the directory that a place is in.
func (t *tree) forgetBelow(at place) {
	for path, d := range t.kept {
		if d.fd == at.parent {
			continue
		}
		_ = unix.Close(d.fd)
		delete(t.kept, path)
	}
}
