package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	labelXattr = "security.selinux"
	// maxRelabelDepth bounds the descriptors that one relabelling holds.
	maxRelabelDepth = 256
	relabelBatch    = 512 // directory entries read at once
)

// unlabelled are directories that belong to the host: with the label of one
// container the host could not work any more.
func unlabelled() []string {
	return []string{
		"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root", "/run", "/sbin",
		"/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/sbin", "/usr/share", "/var", "/var/lib", "/var/lib/kubelet",
		"/var/log", "/var/run", "/var/tmp",
	}
}

// relabelVolumes gives the volumes that ask for it the container's file label.
func (l *launch) relabelVolumes(ctx context.Context) error {
	if !l.store.host.SELinux || l.labels.Mount == "" {
		return nil
	}
	for i, m := range l.config.GetMounts() {
		if !m.GetSelinuxRelabel() || m.GetHostPath() == "" {
			continue
		}
		if err := relabel(ctx, m.GetHostPath(), l.labels.Mount); err != nil {
			return fmt.Errorf("config.mounts[%d].selinux_relabel: %w", i, err)
		}
	}
	return nil
}

// relabel labels the file or tree at root. A tree whose top has the label is done: the
// top comes last, so that a relabelling that was broken off is begun again.
func relabel(ctx context.Context, root, label string) error {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("relabel %s: %w: %w", root, err, ErrInvalid)
	}
	defer unix.Close(fd)
	real, err := pathOf(fd)
	if err != nil {
		return fmt.Errorf("relabel %s: %w", root, err)
	}
	if slices.Contains(unlabelled(), path.Clean(real)) {
		return fmt.Errorf("%s belongs to the host, its files keep their labels; mount a directory of the pod's own: %w", real, ErrInvalid)
	}
	var old [512]byte
	n, err := unix.Getxattr(descriptorPath(fd), labelXattr, old[:])
	switch {
	case errors.Is(err, unix.ENOTSUP):
		klog.V(2).InfoS("The volume's file system has no labels", "path", root)
		return nil
	case err == nil && string(trimNul(old[:n])) == label:
		return nil
	}
	w := &relabeller{apply: func(fd int) error { return setLabel(fd, label) }}
	if err := w.tree(ctx, fd, 0); err != nil {
		return fmt.Errorf("relabel %s as %s, at %s: %w", root, label, w.at, err)
	}
	return nil
}

func descriptorPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func trimNul(b []byte) []byte {
	if len(b) > 0 && b[len(b)-1] == 0 {
		return b[:len(b)-1]
	}
	return b
}

// setLabel labels what an O_PATH descriptor is open on, a symlink itself too.
func setLabel(fd int, label string) error {
	err := unix.Setxattr(descriptorPath(fd), labelXattr, []byte(label), 0)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EROFS) {
		return nil // its label is not ours to give: the container finds out
	}
	return err
}

// relabeller walks by descriptors. Another container of the pod may move things
// about meanwhile: no name is looked up twice, no symlink followed and no mount entered.
type relabeller struct {
	apply func(fd int) error
	at    string // where it went wrong
}

// tree labels what lies below the O_PATH descriptor fd, then that itself.
func (w *relabeller) tree(ctx context.Context, fd, depth int) error {
	if depth > maxRelabelDepth {
		return fmt.Errorf("deeper than %d directories: %w", maxRelabelDepth, ErrInvalid)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := w.children(ctx, fd, depth); err != nil {
			return err
		}
	}
	return w.apply(fd)
}

func (w *relabeller) children(ctx context.Context, fd, depth int) error {
	open, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(open), ".")
	defer dir.Close()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		names, err := dir.Readdirnames(relabelBatch)
		for _, name := range names {
			if err := w.child(ctx, open, name, depth); err != nil {
				w.at = path.Join(name, w.at)
				return err
			}
		}
		if errors.Is(err, io.EOF) || (err == nil && len(names) == 0) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (w *relabeller) child(ctx context.Context, dir int, name string, depth int) error {
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EXDEV): // gone meanwhile; a mount, which is not the volume's
		return nil
	case err != nil:
		return err
	}
	defer unix.Close(fd)
	return w.tree(ctx, fd, depth+1)
}
