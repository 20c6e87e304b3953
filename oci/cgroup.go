package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"

	_ "github.com/opencontainers/cgroups/devices" // lets the library set device rules
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	cgroupMode = 0o755
)

// Cgroups makes and finds cgroups. It is safe for concurrent use.
//
// Processes are never attached from outside, which costs an RCU grace period
// of 8 to 15 ms: they join through JoinPaths or are cloned into Dir.
type Cgroups struct {
	systemd     bool
	v2          bool
	hierarchies []place // v1: the mount points; v2: the root alone
	swap        bool    // the memory controller limits swap

	kept atomic.Int32 // files that are open for statistics
	huge hugePages
}

// place is one directory: of a hierarchy or of a cgroup in it.
type place struct {
	dir         string
	controllers []string // "name=systemd" for the named hierarchy
}

func (p *place) has(controller string) bool { return slices.Contains(p.controllers, controller) }

// Cgroup is one cgroup: a directory (v2) or one directory in each hierarchy
// (v1). It is safe for concurrent use.
type Cgroup struct {
	// LeftOut says in one line each which limits Limit did not set because
	// the kernel has no controller for them. Only Limit writes it.
	LeftOut []string

	g      *Cgroups
	places []place
	join   []string // v1: the tasks files
	made   []string // directories that Make found missing, the uppermost first
	oom    string   // path of the file that counts OOM kills, "" when there is none
}

// NewCgroups looks at the host's cgroup mounts, once. driver is "cgroupfs" or
// "systemd".
func NewCgroups(driver string) (*Cgroups, error) {
	g := &Cgroups{systemd: driver == "systemd", v2: unifiedOnly()}
	if driver != "cgroupfs" && driver != "systemd" {
		return nil, fmt.Errorf("cgroup driver %q: want cgroupfs or systemd: %w", driver, ErrInvalid)
	}
	if g.systemd && !exists("/run/systemd/system") {
		return nil, fmt.Errorf("cgroup driver systemd: systemd does not run here, use cgroupfs: %w", ErrUnsupported)
	}
	g.swap = swapLimited(g.v2)
	if g.v2 {
		controllers, err := os.ReadFile(cgroupRoot + "/cgroup.controllers")
		if err != nil {
			return nil, fmt.Errorf("find cgroup controllers: %w", err)
		}
		g.hierarchies = []place{{dir: cgroupRoot, controllers: strings.Fields(string(controllers))}}
		return g, nil
	}
	list, err := ReadHierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range list {
		dir := path.Join(cgroupRoot, h.Name)
		if isCgroupFS(dir, unix.CGROUP_SUPER_MAGIC) {
			g.hierarchies = append(g.hierarchies, place{dir: dir, controllers: h.Options})
		}
	}
	if len(g.hierarchies) == 0 {
		return nil, fmt.Errorf("find cgroups: no hierarchy is mounted below %s: %w", cgroupRoot, ErrUnsupported)
	}
	return g, nil
}

func isCgroupFS(dir string, magic int64) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == magic
}

func unifiedOnly() bool { return isCgroupFS(cgroupRoot, unix.CGROUP2_SUPER_MAGIC) }

// V2 tells whether the host has the unified hierarchy only.
func (g *Cgroups) V2() bool { return g.v2 }

// at returns the cgroup p, which may or may not exist.
func (g *Cgroups) at(p string) (*Cgroup, error) {
	rel, err := cgroupPath(p, g.systemd)
	if err != nil {
		return nil, err
	}
	c := &Cgroup{g: g, places: make([]place, len(g.hierarchies))}
	for i, h := range g.hierarchies {
		c.places[i] = place{dir: h.dir + rel, controllers: h.controllers}
		if !g.v2 {
			c.join = append(c.join, h.dir+rel+"/tasks")
		}
		switch {
		case g.v2:
			c.oom = h.dir + rel + "/memory.events"
		case h.has("memory"):
			c.oom = h.dir + rel + "/memory.oom_control"
		}
	}
	return c, nil
}

// Load finds the cgroup that Create made for p. ErrNotFound says that it is
// nowhere.
func (g *Cgroups) Load(p string) (*Cgroup, error) {
	c, err := g.at(p)
	if err != nil {
		return nil, err
	}
	for i := range c.places {
		if exists(c.places[i].dir) {
			return c, nil
		}
	}
	return nil, fmt.Errorf("cgroup %s: %w", p, ErrNotFound)
}

// Children lists the names of the cgroups directly below p, in all hierarchies.
func (g *Cgroups) Children(p string) ([]string, error) {
	c, err := g.at(p)
	if err != nil {
		return nil, err
	}
	var names []string
	for i := range c.places {
		entries, err := os.ReadDir(c.places[i].dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Path is the directory of the cgroup in the first hierarchy that has it.
func (c *Cgroup) Path() string {
	for i := range c.places {
		if exists(c.places[i].dir) {
			return c.places[i].dir
		}
	}
	return c.places[0].dir
}

// Set changes limits of an existing cgroup. Limits that are zero or nil stay as they are.
func (c *Cgroup) Set(r *specs.LinuxResources) error {
	res, _, err := c.g.limits(r)
	if err != nil {
		return fmt.Errorf("set limits of cgroup %s: %w", c.places[0].dir, err)
	}
	if err := c.apply(res); err != nil {
		return fmt.Errorf("set limits of cgroup %s: %w", c.places[0].dir, err)
	}
	return nil
}

// JoinPaths returns the files that a single-threaded process writes "0" to in
// order to join (v1: `tasks` in every hierarchy), nil on v2, where a process
// is cloned into Dir.
func (c *Cgroup) JoinPaths() []string { return slices.Clone(c.join) }

// Dir opens the directory for CLONE_INTO_CGROUP (v2); nil on v1. The caller closes it.
func (c *Cgroup) Dir() (*os.File, error) {
	if !c.g.v2 {
		return nil, nil //nolint:nilnil // there is no such directory
	}
	f, err := os.OpenFile(c.places[0].dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	return f, nil
}

// OOMFile opens the file whose oom_kill line counts the kills; nil when there
// is no memory controller. The caller closes it. An exec's cgroup counts with the container's.
func (c *Cgroup) OOMFile() (*os.File, error) {
	if c.oom == "" {
		return nil, nil //nolint:nilnil // there is no such file
	}
	fd, err := unix.Open(c.oom, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) && exists(path.Dir(c.oom)) {
		return nil, nil //nolint:nilnil // v2 without a memory controller
	}
	if err != nil {
		return nil, fmt.Errorf("open the count of OOM kills: %w", &os.PathError{Op: "open", Path: c.oom, Err: err})
	}
	return os.NewFile(uintptr(fd), c.oom), nil
}

// Sub makes a cgroup below c for one exec. On v1 it is a directory in one
// hierarchy only; its other places are c's own.
func (c *Cgroup) Sub(name string) (*Cgroup, error) {
	if err := checkName("cgroup of an exec", name); err != nil {
		return nil, err
	}
	home := c.home()
	dir := home.dir + "/" + name
	if err := unix.Mkdir(dir, cgroupMode); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("create cgroup of an exec: %w", &os.PathError{Op: "mkdir", Path: dir, Err: err})
	}
	sub := &Cgroup{g: c.g, places: []place{{dir: dir, controllers: home.controllers}}, oom: c.oom}
	for _, tasks := range c.join {
		if path.Dir(tasks) == home.dir {
			tasks = dir + "/tasks"
		}
		sub.join = append(sub.join, tasks)
	}
	return sub, nil
}

// Subs returns the cgroups that Sub made and nobody has removed, whose names
// begin with prefix.
func (c *Cgroup) Subs(prefix string) ([]*Cgroup, error) {
	home := c.home()
	entries, err := os.ReadDir(home.dir)
	if err != nil && !gone(err) {
		return nil, fmt.Errorf("list cgroups of execs: %w", err)
	}
	var subs []*Cgroup
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), prefix) {
			subs = append(subs, &Cgroup{g: c.g, places: []place{{dir: home.dir + "/" + e.Name(), controllers: home.controllers}}, oom: c.oom})
		}
	}
	return subs, nil
}

// home is the place that lists the cgroup's processes and holds the cgroups of
// execs. pids and freezer keep no state that an empty directory has to be given.
func (c *Cgroup) home() *place {
	for _, controller := range []string{"pids", "freezer"} {
		for i := range c.places {
			if c.places[i].has(controller) {
				return &c.places[i]
			}
		}
	}
	return &c.places[0]
}

// RemoveEmpty removes the cgroup if neither a process nor another cgroup is in
// it; otherwise it stays.
func (c *Cgroup) RemoveEmpty() error {
	for i := range c.places {
		err := unix.Rmdir(c.places[i].dir)
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove cgroup: %w", &os.PathError{Op: "rmdir", Path: c.places[i].dir, Err: err})
		}
	}
	return nil
}

// RemoveIdle removes the cgroup if no process is left in it or below it;
// otherwise it stays. A cgroup that is gone already is no error.
func (c *Cgroup) RemoveIdle() error {
	_, err := c.removeIdle()
	return err
}

// RemoveIdleUntil does it as soon as the last process has ended, or leaves the cgroup when ctx ends.
func (c *Cgroup) RemoveIdleUntil(ctx context.Context) error {
	wait := newBackoff()
	for {
		busy, err := c.removeIdle()
		if !busy || wait.next(ctx) != nil {
			return err
		}
	}
}

func (c *Cgroup) removeIdle() (busy bool, err error) {
	err = c.removeDirs()
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) {
		return true, nil
	}
	if err != nil {
		err = fmt.Errorf("remove cgroup: %w", err)
	}
	return false, err
}

// Remove kills what is left and removes the cgroup with all below it. It
// goes on until ctx ends; a cgroup that is gone already is no error.
func (c *Cgroup) Remove(ctx context.Context) error {
	wait := newBackoff()
	for {
		err := c.removeDirs()
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
		if killErr := c.Kill(); killErr != nil {
			return errors.Join(fmt.Errorf("remove cgroup: %w", err), killErr)
		}
		if ctxErr := wait.next(ctx); ctxErr != nil {
			return fmt.Errorf("remove cgroup: %w: %s", errors.Join(err, ctxErr), c.Survivors())
		}
	}
}
