package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// openLog opens the container's log for appending; nil without one. No link below the
// pod's log directory is followed: whoever may write there, like a container with the
// logs as a volume, would choose a file of the host's.
func (c *Container) openLog() (*os.File, error) {
	path := c.record.LogPath
	if path == "" {
		return nil, nil
	}
	dir := c.box.Status().Config.GetLogDirectory()
	name, err := filepath.Rel(dir, path)
	if err != nil || !filepath.IsLocal(name) { // a record of other times
		dir, name = filepath.Split(path)
	}
	fd, err := openLogBelow(dir, name)
	if errors.Is(err, unix.ENOENT) {
		if err = makeLogDir(dir, filepath.Dir(name)); err == nil {
			fd, err = openLogBelow(dir, name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open log %s, where no link is followed: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("open log %s: not a regular file: %w", path, ErrInvalid)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func openLogBelow(dir, name string) (int, error) {
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	return unix.Openat2(at, name, &unix.OpenHow{
		// A FIFO or a device in the log's place must not hang the daemon.
		Flags: unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_NONBLOCK | unix.O_CLOEXEC, Mode: 0o640,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
}

func makeLogDir(dir, sub string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.MkdirAll(sub, 0o755)
}
