package oci

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Update changes limits of the cgroup all or not at all: when the kernel
// refuses one, those that were set before it get their old values back. Limits
// that are zero or nil stay as they are; a memory limit below what is in use
// is refused, as it would kill.
func (c *Cgroup) Update(r *specs.LinuxResources) error {
	if r.Memory != nil {
		check, memory := true, *r.Memory
		memory.CheckBeforeUpdate = &check
		copied := *r
		r, copied.Memory = &copied, &memory
	}
	old, err := c.save(r)
	if err != nil {
		return err
	}
	if err := c.Set(r); err != nil {
		return errors.Join(err, old.restore())
	}
	return nil
}

// savedLimits are the contents of limit files.
type savedLimits []savedLimit

type savedLimit struct{ dir, file, value string }

// save reads the files that Set may write for r.
func (c *Cgroup) save(r *specs.LinuxResources) (savedLimits, error) {
	var out savedLimits
	for i := range c.places {
		for _, file := range c.places[i].limitFiles(c.g.v2, r) {
			value, err := readCgroupFile(c.places[i].dir, file)
			if errors.Is(err, unix.ENOENT) {
				continue // the kernel lacks it; if it is needed, Set complains
			}
			if err != nil {
				return nil, fmt.Errorf("read limits: %w", err)
			}
			out = append(out, savedLimit{c.places[i].dir, file, value})
		}
	}
	return out, nil
}

func (p *place) limitFiles(v2 bool, r *specs.LinuxResources) []string {
	byController := map[string][]string{
		"memory":  {"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"},
		"cpu":     {"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"},
		"cpuset":  {"cpuset.cpus", "cpuset.mems"},
		"hugetlb": hugepageFiles(r, ".limit_in_bytes"),
	}
	if v2 {
		byController = map[string][]string{
			"memory":  {"memory.max", "memory.swap.max"},
			"cpu":     {"cpu.weight", "cpu.max"},
			"cpuset":  {"cpuset.cpus", "cpuset.mems"},
			"hugetlb": hugepageFiles(r, ".max"),
		}
	}
	var files []string
	for _, controller := range p.controllers {
		files = append(files, byController[controller]...)
	}
	if v2 {
		files = append(files, slices.Sorted(maps.Keys(r.Unified))...)
	}
	return files
}

func hugepageFiles(r *specs.LinuxResources, suffix string) []string {
	var files []string
	for _, h := range r.HugepageLimits {
		files = append(files, "hugetlb."+h.Pagesize+suffix)
	}
	return files
}

// restore writes back what has changed. Some files limit one another, such as
// memory and memory with swap: what the first pass cannot write, the second can.
func (s savedLimits) restore() error {
	var errs []error
	for range 2 {
		errs = nil
		for _, l := range s {
			now, err := readCgroupFile(l.dir, l.file)
			if err == nil && now != l.value {
				err = cgroups.WriteFile(l.dir, l.file, l.value)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("put %s of %s back to %s: %w", l.file, l.dir, l.value, err))
			}
		}
	}
	return errors.Join(errs...)
}

// SetOOMScore gives every process in the cgroup and below it the score that
// the OOM killer adds, and those that they fork meanwhile.
func (c *Cgroup) SetOOMScore(score int) error {
	done := map[int]bool{}
	for range maxKillPasses {
		pids, err := c.Procs()
		if err != nil {
			return err
		}
		more := false
		for _, pid := range pids {
			if done[pid] {
				continue
			}
			done[pid], more = true, true
			err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj"), []byte(strconv.Itoa(score)), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("set oom_score_adj to %d: %w", score, err)
			}
		}
		if !more {
			return nil
		}
	}
	return nil // it forks faster than we look; children inherit the score
}
