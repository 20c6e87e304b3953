package imageservice

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// An archive may hold root/.profile without describing root. Such an implicit
// directory gets mode 0755, and as overlayfs shows the attributes of the
// topmost layer, it would open up a /root that a lower layer describes as
// 0700. Layers are shared between images, so they are not corrected; instead
// an image that needs it has one layer more, records/ID/parents, which goes on
// top and holds only such directories, with the attributes of the topmost
// layer that describes them.

// maxParentLookups bounds the work for one image: implicit directories times
// layers.
const maxParentLookups = 4 << 20

// stack is an image's layers, the top one first.
type stack struct {
	roots    []int
	implicit []map[string]bool
}

// writeParents makes that layer at path and tells whether it is needed. It is
// not made if not. The layers are on the disk and pinned.
func (s *Store) writeParents(path string, layers []digest.Digest) (needed bool, err error) {
	k, paths, err := s.openStack(layers)
	if err != nil {
		return false, err
	}
	defer k.close()
	if len(paths)*len(k.roots) > maxParentLookups {
		return false, fmt.Errorf("%w: %d directories that no entry describes in %d layers", ErrTooLarge, len(paths), len(k.roots))
	}
	for _, p := range paths {
		fd, found, err := k.described(p)
		if err != nil {
			return false, err
		}
		if !found {
			continue
		}
		_ = unix.Close(fd)
		if !needed {
			needed = true
			if err := k.copyRoot(path); err != nil {
				return false, err
			}
		}
		if err := k.copyPath(path, p); err != nil {
			return false, err
		}
	}
	return needed, nil
}

// openStack opens the layers and lists all implicit directories, parents first.
func (s *Store) openStack(layers []digest.Digest) (*stack, []string, error) {
	k := &stack{}
	var paths []string
	seen := map[digest.Digest]bool{}
	for _, diffID := range slices.Backward(layers) {
		if seen[diffID] {
			continue
		}
		seen[diffID] = true
		s.mu.Lock()
		record := s.layers[diffID]
		s.mu.Unlock()
		if record == nil {
			k.close()
			return nil, nil, fmt.Errorf("layer %s is gone", diffID)
		}
		dir := filepath.Join(s.layerPath(diffID), diffDir)
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			k.close()
			return nil, nil, &os.PathError{Op: "open", Path: dir, Err: err}
		}
		implicit := map[string]bool{}
		for _, p := range record.Implicit {
			implicit[p] = true
		}
		k.roots = append(k.roots, fd)
		k.implicit = append(k.implicit, implicit)
		paths = append(paths, record.Implicit...)
		if record.OpaqueRoot {
			break
		}
	}
	slices.Sort(paths)
	return k, slices.Compact(paths), nil
}

func (k *stack) close() {
	for _, fd := range k.roots {
		_ = unix.Close(fd)
	}
}

// described finds the topmost description of a directory whose topmost
// occurrence is implicit, and opens it.
func (k *stack) described(path string) (fd int, found bool, err error) {
	covered := false
	for i := range k.roots {
		fd, last, err := k.look(i, path)
		switch {
		case err != nil:
			return -1, false, err
		case fd >= 0 && !k.implicit[i][path]:
			if covered {
				return fd, true, nil
			}
			_ = unix.Close(fd)
			return -1, false, nil // the description is what overlayfs shows
		case fd >= 0:
			_ = unix.Close(fd)
			covered = true
		}
		if last {
			return -1, false, nil
		}
	}
	return -1, false, nil
}

// look opens a directory in one layer; -1 if it is not there. last tells that
// the layer hides what is below it.
func (k *stack) look(i int, path string) (fd int, last bool, err error) {
	fd, err = unix.Dup(k.roots[i])
	if err != nil {
		return -1, false, err
	}
	for c := range strings.SplitSeq(path, "/") {
		next, err := openBelow(fd, c, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		_ = unix.Close(fd)
		switch {
		case errors.Is(err, unix.ENOENT):
			return -1, last, nil
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return -1, true, nil // a whiteout, or another kind of file
		case err != nil:
			return -1, false, fmt.Errorf("look at %s: %w", quote(path), err)
		}
		fd = next
		if n, err := unix.Fgetxattr(fd, opaqueXattr, nil); err == nil && n > 0 {
			last = true
		}
	}
	return fd, last, nil
}

// copyRoot makes the layer's root, like that of the layer below it.
func (k *stack) copyRoot(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return copyAttributes(k.roots[0], path)
}

// copyPath makes a directory and those above it, each with the attributes that
// are to be seen.
func (k *stack) copyPath(root, path string) error {
	at := 0
	for {
		end := strings.IndexByte(path[at:], '/')
		part := path
		if end >= 0 {
			part = path[:at+end]
		}
		if err := k.copyDir(root, part); err != nil {
			return err
		}
		if end < 0 {
			return nil
		}
		at += end + 1
	}
}

func (k *stack) copyDir(root, path string) error {
	target := filepath.Join(root, path) // all of root is made here, without links
	if err := os.Mkdir(target, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	}
	fd, found, err := k.described(path)
	for i := 0; err == nil && !found && i < len(k.roots); i++ {
		fd, _, err = k.look(i, path)
		found = fd >= 0
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return copyAttributes(fd, target)
}

// copyAttributes gives the directory at path the owner, mode, time and
// extended attributes of an open one.
func copyAttributes(from int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return fmt.Errorf("stat for %s: %w", path, err)
	}
	if err := os.Lchown(path, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	list := make([]byte, 64<<10)
	n, err := unix.Flistxattr(from, list)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("list attributes for %s: %w", path, err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:max(n, 0)]), "\x00"), "\x00") {
		if !allowedXattr(name) && name != defaultACL {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(from, name, value)
		if err == nil {
			err = unix.Lsetxattr(path, name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("copy attribute %s to %s: %w", quote(name), path, err)
		}
	}
	if err := unix.Chmod(path, st.Mode&permissionBits); err != nil {
		return &os.PathError{Op: "chmod", Path: path, Err: err}
	}
	return nil
}
