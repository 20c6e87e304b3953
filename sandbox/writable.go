package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	measureEvery  = 10 * time.Second // that a measurement serves, at least
	measureShare  = 50               // and at least so many times as long as it took: 2 % of one processor
	measureAtOnce = 4096             // files that a first call counts itself
	measureQueue  = 4096             // containers that wait to be measured
	anchorBytes   = 2048             // of a path, before it starts anew at an open directory
	maxAnchors    = 1024             // open at a time: no walk goes deeper
)

// measurement is what a container's writable layer took on the disk.
type measurement struct {
	bytes, inodes uint64
	at            time.Time
	took          time.Duration
}

// writableLayer is a container's part of the measurer's state.
type writableLayer struct {
	last   atomic.Pointer[measurement]
	queued atomic.Bool
}

// measurer counts writable layers in the background, one at a time.
type measurer struct {
	queue chan *Container
	stop  context.CancelFunc
	done  chan struct{}
}

func newMeasurer() *measurer {
	ctx, stop := context.WithCancel(context.Background())
	m := &measurer{queue: make(chan *Container, measureQueue), stop: stop, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		for {
			select {
			case <-ctx.Done():
				return
			case c := <-m.queue:
				c.writable.queued.Store(false)
				c.measure(ctx, 0)
			}
		}
	}()
	return m
}

func (m *measurer) close() {
	m.stop()
	<-m.done
}

// WritableLayer returns what the container's writable layer takes on the disk,
// and when that was counted. It never walks a large tree: an older figure is
// returned while a newer one is being counted. at is zero when there is none yet.
func (c *Container) WritableLayer() (bytes, inodes uint64, at time.Time) {
	last := c.writable.last.Load()
	if last == nil {
		c.measure(context.Background(), measureAtOnce)
		last = c.writable.last.Load()
	}
	if last == nil {
		c.queueMeasure()
		return 0, 0, time.Time{}
	}
	if time.Since(last.at) > max(measureEvery, measureShare*last.took) {
		c.queueMeasure()
	}
	return last.bytes, last.inodes, last.at
}

func (c *Container) queueMeasure() {
	if !c.writable.queued.CompareAndSwap(false, true) {
		return
	}
	select {
	case c.store.measurer.queue <- c:
	default:
		c.writable.queued.Store(false) // a later call tries again
	}
}

// measure counts a writable layer of at most limit files; 0: of any number.
func (c *Container) measure(ctx context.Context, limit int) {
	start := time.Now()
	bytes, inodes, err := diskUsage(ctx, c.root("upper"), limit)
	switch {
	case err == nil, errors.Is(err, errTooDeep):
		c.writable.last.Store(&measurement{bytes: bytes, inodes: inodes, at: start, took: time.Since(start)})
	case errors.Is(err, errTooMany), errors.Is(err, context.Canceled), errors.Is(err, os.ErrNotExist):
	default:
		klog.V(2).InfoS("Count the writable layer", "container", c.id, "pod", c.box.id, "err", err)
	}
}

// Filesystem is what containers take on one file system.
type Filesystem struct {
	Path          string // directory that holds their writable layers
	Bytes, Inodes uint64
	At            time.Time // of the oldest figure in the sum
}

// Filesystem returns what the writable layers of all containers take. Like
// WritableLayer it is cheap; a container that was not counted yet is left out.
func (s *Store) Filesystem() Filesystem {
	fs := Filesystem{Path: s.root("containers"), At: time.Now()}
	for _, c := range s.Containers() {
		bytes, inodes, at := c.WritableLayer()
		if at.IsZero() {
			continue
		}
		fs.Bytes += bytes
		fs.Inodes += inodes
		if at.Before(fs.At) {
			fs.At = at
		}
	}
	return fs
}

// anchor is an open directory that the paths of a walk start from.
type anchor struct {
	fd, users int
}

func (w *walk) leave(a *anchor) {
	if a.users--; a.users == 0 {
		_ = unix.Close(a.fd)
		w.anchors--
	}
}

// walk counts what a tree takes on the disk while somebody may change it. Each
// directory is opened without following links, below one that is open already,
// so no renaming leads the walk out of the tree.
type walk struct {
	ctx           context.Context //nolint:containedctx // of this walk alone
	limit         int
	seen          map[uint64]struct{} // inodes with several names
	bytes, inodes uint64
	todo          []branch
	anchors       int
	deep          bool
}

type branch struct {
	from *anchor
	path string
}

// diskUsage counts the tree at path as du does: blocks, and inodes once. limit
// ends it with errTooMany; 0 is none.
func diskUsage(ctx context.Context, path string, limit int) (bytes, inodes uint64, err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	w := &walk{ctx: ctx, limit: limit, seen: map[uint64]struct{}{}, anchors: 1}
	w.todo = []branch{{from: &anchor{fd: fd, users: 1}, path: "."}}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		w.count(&st)
	}
	for len(w.todo) > 0 {
		next := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		if err == nil {
			err = w.branch(next)
		}
		w.leave(next.from)
	}
	if err == nil && w.deep {
		err = errTooDeep
	}
	if err != nil {
		err = fmt.Errorf("count %s: %w", path, err)
	}
	return w.bytes, w.inodes, err
}

// branch counts what is in one directory.
func (w *walk) branch(b branch) error {
	fd, err := unix.Openat2(b.from.fd, b.path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return changed(err)
	}
	dir := os.NewFile(uintptr(fd), b.path)
	defer dir.Close()
	from, prefix := b.from, b.path+"/"
	if len(prefix) > anchorBytes {
		if w.anchors == maxAnchors {
			w.deep = true
			return nil
		}
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		w.anchors++
		from, prefix = &anchor{fd: own, users: 1}, ""
		defer w.leave(from)
	}
	const atATime = 256
	for {
		entries, err := dir.ReadDir(atATime)
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := w.entry(fd, from, prefix, e.Name()); err != nil {
				return err
			}
		}
	}
}

func (w *walk) entry(dir int, from *anchor, prefix, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return changed(err)
	}
	w.count(&st)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		from.users++
		w.todo = append(w.todo, branch{from: from, path: prefix + name})
	}
	if w.limit > 0 && w.inodes > uint64(w.limit) {
		return errTooMany
	}
	return w.ctx.Err()
}

func (w *walk) count(st *unix.Stat_t) {
	const unit = 512 // of st_blocks, on every file system
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if _, again := w.seen[st.Ino]; again {
			return
		}
		w.seen[st.Ino] = struct{}{}
	}
	w.inodes++
	w.bytes += uint64(st.Blocks) * unit
}

// changed hides the errors of a tree that changes under the walk.
func changed(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP),
		errors.Is(err, unix.EXDEV), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return nil
	}
	return err
}
