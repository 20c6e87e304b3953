package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	lockName     = "lock"
	lockPatience = 2 * time.Second
)

// lockDir makes dir, private to its owner, and keeps every other daemon out
// of it until the returned file is closed or this process ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", dir, err)
	}
	name := filepath.Join(dir, lockName)
	if err := makePrivate(dir); err != nil {
		return nil, fmt.Errorf("make %s private: %w", dir, err)
	}
	// Opened for reading: a file system that has become read-only must not keep the daemon out.
	f, err := os.OpenFile(name, os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err = flock(f); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w (process %s): choose another directory", errInUse, holder(f))
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	// The number is for people; a full disk must not keep the daemon out either.
	if err := os.WriteFile(name, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		klog.InfoS("The lock file does not name this process", "file", name, "err", err)
	}
	return f, nil
}

// flock takes the lock at once or a little later: a child of a daemon that was killed
// may hold it until its execve.
func flock(f *os.File) error {
	last := time.NewTimer(lockPatience)
	defer last.Stop()
	again := time.NewTicker(lockPatience / 100)
	defer again.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-last.C:
			return err
		case <-again.C:
		}
	}
}

// makePrivate takes group's and others' access to dir away (CVE-2024-25621:
// it may have been there with a wider mode), but not from a directory that
// holds something else, such as /var by a slip of the hand.
func makePrivate(dir string) error {
	at, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if at.Mode().Perm()&0o077 == 0 {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	ours := func(e os.DirEntry) bool { return e.Name() == lockName }
	if len(entries) > 0 && !slices.ContainsFunc(entries, ours) {
		return fmt.Errorf("%w: mode is %04o; choose another directory or chmod it to 0700", errNotOurs, at.Mode().Perm())
	}
	return os.Chmod(dir, 0o700)
}

// holder returns the process id that a lock file names.
func holder(f *os.File) string {
	text := make([]byte, 16)
	// An empty file is answered with "unknown".
	n, _ := f.ReadAt(text, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text[:n])))
	if err != nil {
		return "unknown"
	}
	return strconv.Itoa(pid)
}
