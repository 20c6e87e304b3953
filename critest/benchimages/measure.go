package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ticks     = 100 // per second: USER_HZ
	blockSize = 512 // of st_blocks
)

// sample is one pull.
type sample struct {
	wall, cpu, unpack time.Duration
	memory            int64 // at its peak, above what was resident before
	disk              int64
	busy, waiting     float64 // of the machine's processors, 0 to 1
}

// measure pulls an image with cold caches; base is pulled before, if named.
func measure(ctx context.Context, c contestant, ref, base string) (s sample, err error) {
	if err := c.forget(ctx); err != nil {
		return s, err
	}
	if base != "" {
		if err := c.pull(ctx, base); err != nil {
			return s, err
		}
	}
	if err := chill(); err != nil {
		return s, err
	}
	before, err := c.meter()
	if err != nil {
		return s, err
	}
	machine, err := processors()
	if err != nil {
		return s, err
	}
	begin := time.Now()
	if err := c.pull(ctx, ref); err != nil {
		return s, err
	}
	s.wall = time.Since(begin)
	now, err := processors()
	if err != nil {
		return s, err
	}
	after, err := c.meter()
	if err != nil {
		return s, err
	}
	s.cpu, s.unpack = after.cpu-before.cpu, after.unpack
	s.memory, s.disk = after.peak-before.memory, after.disk-before.disk
	if total := now.total - machine.total; total > 0 {
		s.busy = 1 - float64(now.idle+now.waiting-machine.idle-machine.waiting)/float64(total)
		s.waiting = float64(now.waiting-machine.waiting) / float64(total)
	}
	return s, c.forget(ctx)
}

// chill writes all dirty pages and drops what the kernel caches, where it may.
func chill() error {
	unix.Sync()
	err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("drop caches: %w", err)
	}
	return nil
}

// times are the kernel's counts of processor time.
type times struct{ total, idle, waiting int64 }

func processors() (t times, err error) {
	const idle, waiting, guest = 3, 4, 8
	content, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, fmt.Errorf("read the processors' times: %w", err)
	}
	line, _, _ := strings.Cut(string(content), "\n")
	for i, field := range strings.Fields(line)[1:] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return t, fmt.Errorf("read the processors' times: %w", err)
		}
		if i < guest { // guests are counted in user already
			t.total += n
		}
		switch i {
		case idle:
			t.idle = n
		case waiting:
			t.waiting = n
		}
	}
	return t, nil
}

func processorTime(pid int) (time.Duration, error) {
	const user, system = 11, 12 // after the name
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("processor time: %w", err)
	}
	fields := strings.Fields(string(content[strings.LastIndexByte(string(content), ')')+1:]))
	if len(fields) <= system {
		return 0, fmt.Errorf("processor time: %w", errNoValue)
	}
	total := int64(0)
	for _, i := range []int{user, system} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("processor time: %w", err)
		}
		total += n
	}
	return time.Duration(total) * time.Second / ticks, nil
}

// resident returns the resident memory of a process and its peak since the
// last call.
func resident(pid int) (now, peak int64, err error) {
	if now, err = status(pid, "VmRSS:"); err != nil {
		return 0, 0, err
	}
	if peak, err = status(pid, "VmHWM:"); err != nil {
		return 0, 0, err
	}
	const resetPeak = "5"
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte(resetPeak), 0); err != nil {
		return 0, 0, fmt.Errorf("reset the memory's peak: %w", err)
	}
	return now, peak, nil
}

func status(pid int, key string) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("memory: %w", err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 1 && fields[0] == key {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%s of process %d: %w", key, pid, errNoValue)
}

// diskUse adds up the blocks of all files below a directory, each file once.
func diskUse(dir string) (int64, error) {
	type key struct{ dev, ino uint64 }
	seen := map[key]bool{}
	total := int64(0)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if k := (key{st.Dev, st.Ino}); !seen[k] {
			seen[k] = true
			total += st.Blocks * blockSize
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("disk use of %s: %w", dir, err)
	}
	return total, nil
}
