package imageservice

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// openDirs is how many directories a tree keeps open. Consecutive entries of
// an archive mostly share a few parents.
const openDirs = 64

// tree opens directories below one directory, and nothing else.
type tree struct {
	fd   int
	kept map[string]*openDir
	tick int
}

type openDir struct {
	fd   int
	used int
}

// place is where an entry goes: a name in an open directory.
type place struct {
	parent int    // descriptor, owned by the tree
	base   string // one component
	path   string // below the root
}

// proc returns the place as a path of the host, for the calls that take no
// descriptor. Only the last component is resolved in it.
func (p place) proc() string {
	return "/proc/self/fd/" + strconv.Itoa(p.parent) + "/" + p.base
}

func openTree(path string) (tree, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return tree{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return tree{fd: fd, kept: map[string]*openDir{}}, nil
}

func (t *tree) close() {
	t.forget()
	_ = unix.Close(t.fd)
}

// dir returns a descriptor of a directory, which the tree keeps and may close
// at its next call of dir.
func (t *tree) dir(path string) (int, error) {
	if path == "" {
		return t.fd, nil
	}
	t.tick++
	if d := t.kept[path]; d != nil {
		d.used = t.tick
		return d.fd, nil
	}
	fd, err := t.open(path)
	if err != nil {
		return -1, err
	}
	if len(t.kept) >= openDirs {
		t.evict()
	}
	t.kept[path] = &openDir{fd: fd, used: t.tick}
	return fd, nil
}

// evict closes the directory that was used longest ago.
func (t *tree) evict() {
	oldest, used := "", t.tick
	for path, d := range t.kept {
		if d.used < used {
			oldest, used = path, d.used
		}
	}
	_ = unix.Close(t.kept[oldest].fd)
	delete(t.kept, oldest)
}

// forget closes all directories: after a name was removed or replaced, a path
// may lead elsewhere.
func (t *tree) forget() {
	for path, d := range t.kept {
		_ = unix.Close(d.fd)
		delete(t.kept, path)
	}
}

// open opens a directory; the caller closes it.
func (t *tree) open(path string) (int, error) {
	if path == "" {
		path = "."
	}
	fd, err := openBelow(t.fd, path, unix.O_RDONLY|unix.O_DIRECTORY)
	switch {
	case errors.Is(err, unix.EXDEV):
		return -1, fmt.Errorf("%w: %s leads out of the layer through a symbolic link: %w", ErrMalformedLayer, quote(path), err)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return -1, fmt.Errorf("%w: %s is no directory: %w", ErrMalformedLayer, quote(path), err)
	case err != nil:
		return -1, &os.PathError{Op: "openat2", Path: path, Err: err}
	}
	return fd, nil
}

// openBelow opens a path that must stay below dir, whatever links are in it.
func openBelow(dir int, path string, flags uint64) (int, error) {
	const attempts = 16
	how := &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for i := 0; ; i++ {
		fd, err := unix.Openat2(dir, path, how)
		// EAGAIN: a rename anywhere on the machine raced with a "..".
		if i < attempts && (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)) {
			continue
		}
		return fd, err
	}
}
