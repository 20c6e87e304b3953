package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

const (
	// maxKillPasses bounds the race with processes that fork while they are
	// being killed. Where there is a pids controller the second pass ends it.
	maxKillPasses = 200
	firstWait     = 200 * time.Microsecond
	longestWait   = 20 * time.Millisecond
	maxSurvivors  = 5 // named in an error
)

// backoff waits between attempts, longer each time.
type backoff struct{ wait time.Duration }

func newBackoff() *backoff { return &backoff{wait: firstWait} }

// next waits, or returns the error of ctx when that ends first.
func (b *backoff) next(ctx context.Context) error {
	timer := time.NewTimer(b.wait)
	defer timer.Stop()
	b.wait = min(2*b.wait, longestWait)
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// gone tells that a cgroup went away while it was looked at.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// Procs lists the processes in the cgroup and in those below it. A cgroup
// that is gone has none.
func (c *Cgroup) Procs() ([]int, error) {
	pids, err := cgroups.GetAllPids(c.home().dir)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup: %w", err)
	}
	return pids, nil
}

// Populated tells whether a process is in the cgroup or in one below it.
func (c *Cgroup) Populated() (bool, error) {
	if !c.g.v2 {
		pids, err := c.Procs()
		return len(pids) > 0, err
	}
	events, err := cgroups.ReadFile(c.places[0].dir, "cgroup.events")
	if gone(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask whether a cgroup is populated: %w", err)
	}
	return slices.Contains(strings.Split(events, "\n"), "populated 1"), nil
}

// Kill sends SIGKILL to every process in the cgroup and below it. It does not
// wait until they are dead.
func (c *Cgroup) Kill() error {
	home := c.home().dir
	if c.g.v2 {
		err := cgroups.WriteFile(home, "cgroup.kill", "1")
		if err == nil || (gone(err) && !exists(home)) {
			return nil
		}
		if !gone(err) {
			return fmt.Errorf("kill cgroup: %w", err)
		}
		// A kernel before 5.14 has no cgroup.kill.
	}
	signalled := map[int]bool{}
	for pass := range maxKillPasses {
		more, err := c.killPass(signalled)
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", home, err)
		}
		if !more {
			return nil
		}
		if pass == 0 { // not before: a shell that cannot fork would exit with a code of its own
			c.stopForks()
		}
	}
	return fmt.Errorf("kill cgroup %s: processes go on forking after %d passes: %w", home, maxKillPasses, unix.EBUSY)
}

// stopForks lets no process of the cgroup fork any more and thaws those that
// are frozen, which would not die. Both are best effort: the passes go on anyway.
func (c *Cgroup) stopForks() {
	for i := range c.places {
		p := &c.places[i]
		if p.has("pids") {
			_ = cgroups.WriteFile(p.dir, "pids.max", "0")
		}
		if p.has("freezer") && !c.g.v2 {
			_ = cgroups.WriteFile(p.dir, "freezer.state", string(cgroups.Thawed))
		}
	}
	if c.g.v2 {
		_ = cgroups.WriteFile(c.places[0].dir, "cgroup.freeze", "0")
	}
}

// killPass signals the processes that were not signalled before and tells
// whether there were any. A pid is only signalled through a descriptor that
// was opened while the cgroup listed it before and after: it is not
// another process that got the number meanwhile.
func (c *Cgroup) killPass(signalled map[int]bool) (bool, error) {
	before, err := c.Procs()
	if err != nil {
		return false, err
	}
	files := map[int]int{}
	defer func() {
		for _, fd := range files {
			_ = unix.Close(fd)
		}
	}()
	for _, pid := range before {
		if pid <= 0 || signalled[pid] { // 0: a process of another PID namespace
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("pidfd_open %d: %w", pid, err)
		}
		files[pid] = fd
	}
	if len(files) == 0 {
		return false, nil
	}
	after, err := c.Procs()
	if err != nil {
		return false, err
	}
	for _, pid := range after {
		fd, ok := files[pid]
		if !ok {
			continue
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return false, fmt.Errorf("kill process %d: %w", pid, err)
		}
		signalled[pid] = true
	}
	return true, nil
}

// removeDirs removes the directories in all hierarchies once, those below
// first where there are any. It tries all and returns the first error.
func (c *Cgroup) removeDirs() error {
	var first error
	for i := range c.places {
		if err := removeTree(c.places[i].dir); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) {
		entries, readErr := os.ReadDir(dir)
		if readErr != nil && !gone(readErr) {
			return readErr
		}
		children := 0
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			children++
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
		if children > 0 {
			err = unix.Rmdir(dir)
		}
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &os.PathError{Op: "rmdir", Path: dir, Err: err}
}

// Survivors names processes that do not die, with what they wait for.
func (c *Cgroup) Survivors() string {
	pids, err := c.Procs()
	if err != nil || len(pids) == 0 {
		return "no process is left in it"
	}
	var out []string
	for _, pid := range pids[:min(len(pids), maxSurvivors)] {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		wchan, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
		out = append(out, fmt.Sprintf("%d (%s) waits in %q", pid, strings.TrimSpace(string(name)), wchan))
	}
	return fmt.Sprintf("%d processes do not die: %s", len(pids), strings.Join(out, ", "))
}
