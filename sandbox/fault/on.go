//go:build faults

package fault

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Directory is the environment variable with the directory in which the files
// "arm" and "trace" are. arm has a point's name and how many times it is to be
// passed, the last time deadly: "run.netns.pinned 1". trace gets a line for
// each point that is passed.
const Directory = "CRI_RUNTIME_FAULTS"

//nolint:gochecknoglobals // one process, one kill; not in any release
var (
	mu sync.Mutex
	// trace is opened once: a daemon that may open no file passes points, too.
	trace = sync.OnceValues(func() (*os.File, error) {
		return os.OpenFile(filepath.Join(os.Getenv(Directory), "trace"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	})
)

// Point writes name to the trace and, if a test has armed it, kills the process.
func Point(name string) {
	dir := os.Getenv(Directory)
	if dir == "" {
		return
	}
	mu.Lock()
	defer mu.Unlock()
	if err := errors.Join(note(name), meet(dir, name)); err != nil {
		panic(fmt.Sprintf("fault point %s: %v", name, err))
	}
}

func note(name string) error {
	f, err := trace()
	if err != nil {
		return err
	}
	_, err = f.WriteString(name + "\n")
	return err
}

func meet(dir, name string) error {
	arm := filepath.Join(dir, "arm")
	if _, err := os.Lstat(arm); errors.Is(err, fs.ErrNotExist) {
		return nil // found out without a descriptor
	}
	data, err := os.ReadFile(arm)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	armed, times := "", 0
	if _, err := fmt.Sscan(strings.TrimSpace(string(data)), &armed, &times); err != nil {
		return fmt.Errorf("read %s: %w", arm, err)
	}
	if armed != name {
		return nil
	}
	if times > 1 {
		return os.WriteFile(arm, fmt.Appendf(nil, "%s %d", name, times-1), 0o600)
	}
	// The next daemon must not die of it, too.
	if err := os.Remove(arm); err != nil {
		return err
	}
	if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
		return err
	}
	select {} // it is not this thread that dies first, perhaps
}
