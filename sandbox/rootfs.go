package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxLinks bounds the symlinks followed on the way to one mount point.
const maxLinks = 40

const (
	maxLowerLayers  = 500 // OVL_MAX_STACK
	maxConfigString = 255 // bytes of a value, of fsconfig(2)
)

// skeleton makes the layer that lies below every image. It holds the mount
// points that every container needs: one that an image lacks need not be made
// in each writable layer, which costs a copy of its parent there.
func skeleton(dir string) error {
	for _, d := range []string{"dev", "etc", "proc", "sys"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return fmt.Errorf("make the lowest layer: %w", err)
		}
	}
	for _, f := range []string{"hostname", "hosts", "resolv.conf"} {
		file := filepath.Join(dir, "etc", f)
		if exists(file) {
			continue // the disk may be full
		}
		if err := os.WriteFile(file, nil, worldReadable); err != nil {
			return fmt.Errorf("make the lowest layer: %w", err)
		}
	}
	// The directory is the root of an image without layers.
	if info, err := os.Stat(dir); err == nil && info.Mode().Perm() == 0o755 {
		return nil
	}
	return os.Chmod(dir, 0o755)
}

// overlay mounts layers (top first) with a writable layer below dir, as a detached mount:
// it is in no mount namespace until the container's init attaches it. All its files have the
// SELinux label, if there is one, whatever the layers' own is.
func (s *Store) overlay(dir string, layers []string, label string) (*os.File, error) {
	return s.features.Overlay.mount(dir, layers, append(s.features.Overlay.chosen(), labelOption(label)...))
}

// mount makes the writable layer in dir and mounts an overlay.
func (f *OverlayFeatures) mount(dir string, layers []string, options []overlayOption) (*os.File, error) {
	if err := makeWritable(dir, len(layers)); err != nil {
		return nil, err
	}
	long := func(l string) bool { return len(l) > maxConfigString }
	if !f.AppendLayers || long(dir+"/upper") || slices.ContainsFunc(layers, long) {
		return mountByDescriptors(dir, layers, options)
	}
	return mountByPaths(dir, layers, options)
}

// makeWritable makes the directories of a writable layer over so many layers.
func makeWritable(dir string, layers int) error {
	if layers > maxLowerLayers {
		return fmt.Errorf("overlay: %d layers, the kernel stacks at most %d: %w", layers, maxLowerLayers, ErrUnsupported)
	}
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return fmt.Errorf("overlay: %w", err)
		}
	}
	return nil
}

func mountByPaths(dir string, layers []string, options []overlayOption) (*os.File, error) {
	fsfd, err := createByPaths(dir, layers, options)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fsfd)
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("overlay: make mount: %w", err)
	}
	return os.NewFile(uintptr(fd), "rootfs"), nil
}

// createByPaths gives the layers one by one, and returns an overlay without a mount. With dir ""
// it has no writable layer.
func createByPaths(dir string, layers []string, options []overlayOption) (fsfd int, err error) {
	if fsfd, err = unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC); err != nil {
		return -1, fmt.Errorf("overlay: open file system: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fsfd)
		}
	}()
	set := func(o overlayOption) {
		if err != nil {
			return
		}
		if o.value == "" {
			err = unix.FsconfigSetFlag(fsfd, o.key)
		} else {
			err = unix.FsconfigSetString(fsfd, o.key, o.value)
		}
		if err != nil {
			err = fmt.Errorf("overlay: option %s: %w%s", o, err, kernelSays(fsfd))
		}
	}
	set(overlayOption{"source", "overlay"})
	for _, l := range layers {
		set(overlayOption{"lowerdir+", l})
	}
	if dir != "" {
		set(overlayOption{"upperdir", filepath.Join(dir, "upper")})
		set(overlayOption{"workdir", filepath.Join(dir, "work")})
	}
	for _, o := range options {
		set(o)
	}
	if err != nil {
		return fsfd, err
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return fsfd, fmt.Errorf("overlay: create with %d layers in %s: %w%s", len(layers), dir, err, kernelSays(fsfd))
	}
	return fsfd, nil
}

// kernelSays reads the messages that the kernel left for a file system context.
func kernelSays(fsfd int) string {
	var b [512]byte
	var text string
	for {
		n, err := unix.Read(fsfd, b[:])
		if err != nil || n <= 0 {
			break
		}
		text += "; " + strings.TrimSpace(strings.TrimPrefix(string(b[:n]), "e "))
	}
	return text
}

// mountPoints finds where the mounts of spec go in root and makes what is
// missing. A target is as the container will see it, with the image's symlinks
// resolved below root and never by the host's rules. Targets inside another
// mount are left to the launch program.
func mountPoints(root *os.File, spec *specs.Spec, given []*os.File, as owner) (targets []string, fileSources []bool, err error) {
	targets = make([]string, len(spec.Mounts))
	fileSources = make([]bool, len(spec.Mounts))
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if m.Type == "bind" {
			if fileSources[i], err = fileSource(m, given[i]); err != nil {
				return nil, nil, err
			}
		}
		dest := path.Clean("/" + m.Destination)
		if covered(dest, targets[:i]) {
			targets[i] = dest
			continue
		}
		targets[i], err = makeInRoot(int(root.Fd()), dest, fileSources[i], as)
		if err != nil {
			return nil, nil, fmt.Errorf("mount %s: mount point in the image: %w", m.Destination, err)
		}
	}
	return targets, fileSources, nil
}

// fileSource tells whether the source of a mount is something else than a directory. given is
// its detached mount, if there is one.
func fileSource(m *specs.Mount, given *os.File) (bool, error) {
	if given != nil {
		info, err := given.Stat()
		return err == nil && !info.IsDir(), err
	}
	info, err := os.Stat(m.Source)
	if err != nil {
		return false, fmt.Errorf("mount %s: source: %w: %w", m.Destination, err, ErrInvalid)
	}
	return !info.IsDir(), checkPropagation(m)
}

// checkPropagation refuses what the kernel would grant without effect: mounts
// are passed on only where the source's mount is shared, and received where it is
// shared or a slave.
func checkPropagation(m *specs.Mount) error {
	var need []string
	switch {
	case slices.Contains(m.Options, "rshared"), slices.Contains(m.Options, "shared"):
		need = []string{"shared:"}
	case slices.Contains(m.Options, "rslave"), slices.Contains(m.Options, "slave"):
		need = []string{"shared:", "master:"}
	default:
		return nil
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, m.Source, 0, unix.STATX_MNT_ID, &st); err != nil {
		return fmt.Errorf("mount %s: source %s: %w", m.Destination, m.Source, err)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Destination, err)
	}
	id := strconv.FormatUint(st.Mnt_id, 10)
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 7 || fields[0] != id {
			continue
		}
		for _, f := range fields[6:slices.Index(fields, "-")] {
			if slices.ContainsFunc(need, func(p string) bool { return strings.HasPrefix(f, p) }) {
				return nil
			}
		}
	}
	return fmt.Errorf("mount %s: propagation: source %s is not on a shared mount (mount --make-rshared makes one): %w", m.Destination, m.Source, ErrInvalid)
}

// covered tells whether p lies below one of the mounts.
func covered(p string, mounts []string) bool {
	for _, m := range mounts {
		if m != "/" && strings.HasPrefix(p, m+"/") {
			return true
		}
	}
	return false
}

// openInRoot opens a path as if root were the root directory.
func openInRoot(root int, p string, flags uint64) (int, error) {
	rel := strings.TrimPrefix(p, "/")
	if rel == "" {
		rel = "."
	}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(root, rel, &unix.OpenHow{
			Flags:   flags | unix.O_PATH | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		// EAGAIN: something was renamed meanwhile, it could not be ruled out that ".." led out.
		if (err != unix.EINTR && err != unix.EAGAIN) || tries == maxLinks {
			return fd, err
		}
	}
}

// makeInRoot makes the path p below root, a directory or an empty file, and
// returns it without symlinks. A dangling symlink of the image is
// followed and its target made, inside root.
func makeInRoot(root int, p string, file bool, as owner) (string, error) {
	fd, err := openInRoot(root, p, 0)
	if err == nil {
		defer unix.Close(fd)
		return pathOf(fd)
	}
	if !errors.Is(err, unix.ENOENT) {
		return "", &os.PathError{Op: "open", Path: p, Err: err}
	}
	return walkInRoot(root, p, file, as)
}

// walkInRoot is makeInRoot for a path that is not all there.
func walkInRoot(root int, p string, file bool, as owner) (string, error) {
	rest := strings.Split(strings.Trim(p, "/"), "/")
	at, links := "/", 0
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		dir, err := openInRoot(root, at, unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return "", &os.PathError{Op: "open", Path: at, Err: err}
		}
		link, err := makePart(dir, part, file && len(rest) == 0, as)
		_ = unix.Close(dir)
		if err != nil {
			return "", &os.PathError{Op: "make", Path: path.Join(at, part), Err: err}
		}
		if link == "" {
			at = path.Join(at, part)
			continue
		}
		if links++; links > maxLinks {
			return "", &os.PathError{Op: "make", Path: p, Err: unix.ELOOP}
		}
		if path.IsAbs(link) {
			at = "/"
		}
		rest = append(strings.Split(strings.Trim(link, "/"), "/"), rest...)
	}
	return at, nil
}

// makePart makes one component in dir if it is missing and returns the text of the symlink
// that it may be.
func makePart(dir int, part string, file bool, as owner) (link string, err error) {
	if file {
		err = unix.Mknodat(dir, part, unix.S_IFREG|0o644, 0)
	} else {
		err = unix.Mkdirat(dir, part, 0o755)
	}
	if err == nil && as != (owner{}) {
		err = unix.Fchownat(dir, part, as.uid, as.gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil || !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(dir, part, buf[:])
	if errors.Is(err, unix.EINVAL) {
		return "", nil
	}
	return string(buf[:max(n, 0)]), err
}

// pathOf returns the path of an open file within its detached mount.
func pathOf(fd int) (string, error) {
	p, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	if !path.IsAbs(p) || strings.HasSuffix(p, " (deleted)") {
		return "", &os.PathError{Op: "resolve", Path: p, Err: unix.ENOENT}
	}
	return p, nil
}

// mountRootfs makes the root file system, in a pod with a user namespace with ids of that.
func (l *launch) mountRootfs() (err error) {
	layers := append(slices.Clone(l.image.Layers), l.store.root("skeleton"))
	if !l.box.ownUser() {
		l.rootfs, err = l.store.overlay(l.root(), layers, l.labels.Mount)
		return err
	}
	if l.ids, err = l.box.ids(); err != nil {
		return err
	}
	if l.userNS, err = os.Open(l.box.state("ns", "user")); err != nil {
		return fmt.Errorf("open the pod's user namespace: %w", err)
	}
	if l.rootfs, err = l.store.mappedOverlay(l.root(), layers, l.labels.Mount, l.userNS, l.ids.root()); err != nil {
		return errors.Join(err, l.userNS.Close())
	}
	return nil
}
