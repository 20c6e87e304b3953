package sandbox

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci"
)

// maxSources bounds the descriptors that the making of one container takes; the
// launch program has slots for a few more.
const maxSources = 200

// openSources prepares the sources that the launch program cannot open by itself:
// images, and trees whose ids are mapped.
func (l *launch) openSources() error {
	l.sources = make([]*os.File, len(l.spec.Mounts))
	l.options.Sources = oci.GivenSources(l.spec)
	given := 0
	for _, is := range l.options.Sources {
		if is {
			given++
		}
	}
	if given > maxSources {
		return fmt.Errorf("config.mounts: %d are images or have mapped ids, at most %d are possible: %w", given, maxSources, ErrInvalid)
	}
	for i := range l.spec.Mounts {
		if !l.options.Sources[i] {
			continue
		}
		m := &l.spec.Mounts[i]
		var err error
		if l.sources[i], err = l.source(m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	return nil
}

// source returns the detached mount that is m's source.
func (l *launch) source(m *specs.Mount) (*os.File, error) {
	if ref, sub, ok := oci.ImageSource(m); ok {
		image := l.image.Volumes[ref]
		if image == nil {
			return nil, fmt.Errorf("image %q: %w", ref, ErrNotFound)
		}
		f, err := l.imageVolume(image.Layers, sub)
		if err != nil {
			err = fmt.Errorf("image %s: %w", ref, err)
		}
		return f, err
	}
	ids := idMap{m.UIDMappings, m.GIDMappings}
	if err := checkPropagation(m); err != nil {
		return nil, err
	}
	ns := l.userNS
	if ns == nil || !ids.equal(l.ids) {
		var err error
		if ns, err = ids.open(l.store.binary); err != nil {
			return nil, err
		}
		defer ns.Close()
	}
	f, err := idMapped(m.Source, ns, slices.Contains(m.Options, "rbind"))
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("source: %w: %w", err, ErrInvalid)
	}
	return f, err
}

// imageVolume returns the tree of an image, or of what is at sub in it, as a
// detached mount. The image chose what lies at sub: symlinks are resolved inside it.
func (l *launch) imageVolume(layers []string, sub string) (*os.File, error) {
	var tree *os.File
	var err error
	stacked := len(layers) > 1
	switch {
	case len(layers) == 0:
		tree, err = emptyTree(l.labels.Mount)
	case stacked, l.labels.Mount != "": // a label of its own needs a file system of its own
		stacked = true
		tree, err = l.store.stackLayers(layers, l.labels.Mount, l.userNS)
	default: // the one directory is the whole truth
		tree, err = os.OpenFile(layers[0], unix.O_PATH|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return nil, err
	}
	if (stacked || len(layers) == 0) && sub == "" {
		return tree, nil
	}
	defer tree.Close()
	fd, err := openInRoot(int(tree.Fd()), sub, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("image_sub_path %q does not exist in it: %w", sub, ErrInvalid)
	}
	if err != nil {
		return nil, fmt.Errorf("image_sub_path %q: %w", sub, err)
	}
	place := os.NewFile(uintptr(fd), sub)
	defer place.Close()
	info, err := place.Stat()
	if err != nil {
		return nil, fmt.Errorf("image_sub_path %q: %w", sub, err)
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("image_sub_path %q is neither a file nor a directory: %w", sub, ErrInvalid)
	}
	ns := l.userNS
	if stacked || len(layers) == 0 {
		ns = nil // its layers are mapped
	}
	return cloneTree(place, ns)
}

// cloneTree returns a detached copy of the mount at f from there on, with the ids of userNS if
// there is one.
func cloneTree(f, userNS *os.File) (*os.File, error) {
	if userNS != nil {
		return idMapped("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), userNS, false)
	}
	fd, err := unix.OpenTree(int(f.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("part of an image of several layers needs Linux 6.15: %w: %w", err, ErrUnsupported)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// stackLayers mounts layers (top first) without a writable one, ids mapped by userNS and files
// labelled if that is given.
func (s *Store) stackLayers(layers []string, label string, userNS *os.File) (*os.File, error) {
	if !s.features.Overlay.AppendLayers {
		return nil, fmt.Errorf("overlay: image volumes of several layers need Linux 6.7: %w", ErrUnsupported)
	}
	if len(layers) > maxLowerLayers {
		return nil, fmt.Errorf("overlay: %d layers, the kernel stacks at most %d: %w", len(layers), maxLowerLayers, ErrUnsupported)
	}
	short := make([]string, len(layers))
	for i, path := range layers {
		var f *os.File
		var err error
		if userNS != nil {
			f, err = idMapped(path, userNS, false)
		} else {
			f, err = os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
		}
		if err != nil {
			return nil, fmt.Errorf("overlay: %w", err)
		}
		defer f.Close()
		short[i] = "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	}
	if len(layers) == 1 { // the kernel wants two
		empty, err := emptyTree("")
		if err != nil {
			return nil, err
		}
		defer empty.Close()
		short = append(short, descriptorPath(int(empty.Fd())))
	}
	options := slices.DeleteFunc(s.features.Overlay.chosen(), func(o overlayOption) bool { return o.key == "volatile" })
	return mountByPaths("", short, append(options, labelOption(label)...))
}

// emptyTree is the tree of an image without layers.
func emptyTree(label string) (*os.File, error) {
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("tmpfs: %w", err)
	}
	defer unix.Close(fsfd)
	for _, o := range append(labelOption(label), overlayOption{"mode", "555"}) {
		if err := unix.FsconfigSetString(fsfd, o.key, o.value); err != nil {
			return nil, fmt.Errorf("tmpfs: option %s: %w", o, err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, fmt.Errorf("tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("tmpfs: %w", err)
	}
	return os.NewFile(uintptr(fd), "empty image"), nil
}
