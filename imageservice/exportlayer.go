package imageservice

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// layerWriter writes a layer's directory as an archive, the opposite of
// unpacker. The same directory always gives the same bytes.
type layerWriter struct {
	ctx      context.Context //nolint:containedctx // of this layer alone
	tar      *tar.Writer
	implicit map[string]struct{}
	links    map[uint64]string // the first name of inodes with several
	buf      []byte
}

// writeLayer writes the layer whose diff is at dir to w.
func writeLayer(ctx context.Context, w io.Writer, dir string, record *layerRecord) error {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	l := &layerWriter{
		ctx: ctx, tar: tar.NewWriter(w), implicit: map[string]struct{}{}, links: map[uint64]string{},
		buf: make([]byte, chunkSize),
	}
	for _, path := range record.Implicit {
		l.implicit[path] = struct{}{}
	}
	if err := l.directory(root, ""); err != nil {
		return err
	}
	return l.tar.Close()
}

// directory writes an open directory and all below it, and closes it. Those
// that the archive once held without describing them are not described now
// either: their attributes would hide those of a layer below.
func (l *layerWriter) directory(fd int, path string) error {
	d := os.NewFile(uintptr(fd), path)
	defer d.Close()
	if _, implicit := l.implicit[path]; !implicit {
		if err := l.describe(fd, path); err != nil {
			return fmt.Errorf("directory %s: %w", quote(path), err)
		}
	}
	if n, err := unix.Fgetxattr(fd, opaqueXattr, nil); err == nil && n > 0 {
		if err := l.tar.WriteHeader(whiteoutHeader(join(path, whiteoutOpaque))); err != nil {
			return fmt.Errorf("directory %s: %w", quote(path), err)
		}
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("directory %s: %w", quote(path), err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := context.Cause(l.ctx); err != nil {
			return err
		}
		if err := l.entry(fd, name, join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func whiteoutHeader(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
}

// describe writes the entry of an open directory.
func (l *layerWriter) describe(fd int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	h, err := headerOf(&st, join(path, ""))
	if err != nil {
		return err
	}
	if path == "" {
		h.Name = "./"
	}
	get := func(name string, value []byte) (int, error) { return unix.Fgetxattr(fd, name, value) }
	list, err := listXattrs(func(list []byte) (int, error) { return unix.Flistxattr(fd, list) })
	if err == nil {
		err = addXattrs(h, list, get)
	}
	if err != nil {
		return err
	}
	return l.tar.WriteHeader(h)
}

// entry writes what a directory has under a name.
func (l *layerWriter) entry(parent int, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("entry %s: stat: %w", quote(path), err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		fd, err := openBelow(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return fmt.Errorf("entry %s: open: %w", quote(path), err)
		}
		return l.directory(fd, path)
	}
	var err error
	if kind == unix.S_IFCHR && st.Rdev == 0 {
		dir, base := split(path)
		err = l.tar.WriteHeader(whiteoutHeader(join(dir, whiteoutPrefix+base)))
	} else {
		err = l.leaf(place{parent: parent, base: name, path: path}, &st)
	}
	if err != nil {
		return fmt.Errorf("entry %s: %w", quote(path), err)
	}
	return nil
}

// leaf writes anything but a directory.
func (l *layerWriter) leaf(at place, st *unix.Stat_t) error {
	h, err := headerOf(st, at.path)
	if err != nil {
		return err
	}
	if st.Nlink > 1 {
		if first, ok := l.links[st.Ino]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return l.tar.WriteHeader(h)
		}
		l.links[st.Ino] = at.path
	}
	if h.Typeflag == tar.TypeSymlink {
		n, err := unix.Readlinkat(at.parent, at.base, l.buf)
		if err != nil {
			return fmt.Errorf("read link: %w", err)
		}
		h.Linkname = string(l.buf[:n])
	}
	list, err := listXattrs(func(list []byte) (int, error) { return unix.Llistxattr(at.proc(), list) })
	if err == nil {
		err = addXattrs(h, list, func(name string, value []byte) (int, error) { return unix.Lgetxattr(at.proc(), name, value) })
	}
	if err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return l.tar.WriteHeader(h)
	}
	fd, err := openBelow(at.parent, at.base, unix.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	f := os.NewFile(uintptr(fd), at.base)
	defer f.Close()
	if err := l.tar.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyBuffer(onlyWriter{l.tar}, &untilDone{ctx: l.ctx, Reader: io.LimitReader(f, h.Size)}, l.buf)
	if err == nil && n != h.Size {
		err = fmt.Errorf("%w: it has %d bytes, %d were expected", io.ErrUnexpectedEOF, n, h.Size)
	}
	return err
}

// onlyWriter keeps io.Copy from the buffers that tar.Writer would make.
type onlyWriter struct{ io.Writer }

// untilDone is a reader that ends with its context.
type untilDone struct {
	io.Reader
	ctx context.Context //nolint:containedctx // io.Reader has no other way to get it
}

// Read implements io.Reader.
func (u *untilDone) Read(p []byte) (int, error) {
	if err := context.Cause(u.ctx); err != nil {
		return 0, err
	}
	return u.Reader.Read(p)
}

// headerOf describes an inode.
func headerOf(st *unix.Stat_t, name string) (*tar.Header, error) {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & permissionBits), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), Format: tar.FormatPAX, PAXRecords: map[string]string{},
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		return nil, fmt.Errorf("%w: a layer cannot hold a file of mode %#o", ErrMalformedLayer, st.Mode)
	}
	return h, nil
}

// listXattrs returns the names of extended attributes.
func listXattrs(list func([]byte) (int, error)) ([]string, error) {
	buf := make([]byte, 64<<10) // what the kernel returns at most
	n, err := list(buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	return slices.DeleteFunc(names, func(name string) bool {
		return !allowedXattr(name) && name != defaultACL
	}), nil
}

func addXattrs(h *tar.Header, names []string, get func(string, []byte) (int, error)) error {
	for _, name := range names {
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := get(name, value)
		if err != nil {
			return fmt.Errorf("read attribute %s: %w", quote(name), err)
		}
		h.PAXRecords[xattrPrefix+name] = string(value[:n])
	}
	return nil
}
