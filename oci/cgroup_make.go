package oci

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// Create makes the cgroup p with its parents and sets the limits r (nil:
// none). p is absolute below the cgroup root (cgroupfs) or has the form
// slice:prefix:name (systemd). When it fails nothing is left that was not
// there before; a cgroup that exists is taken as it is.
func (g *Cgroups) Create(p string, r *specs.LinuxResources) (*Cgroup, error) {
	c, err := g.Make(p)
	if err != nil || r == nil {
		return c, err
	}
	if err := c.Limit(r); err != nil {
		return nil, err
	}
	return c, nil
}

// Make is the first half of Create, for who does not know the limits yet.
func (g *Cgroups) Make(p string) (*Cgroup, error) {
	c, err := g.at(p)
	if err != nil {
		return nil, err
	}
	err = c.makeAll()
	fault.Point("cgroup.made")
	if err != nil {
		undo(c.made)
		return nil, fmt.Errorf("create cgroup %s: %w", p, err)
	}
	return c, nil
}

// MakePlain makes a cgroup for processes that need no limits. With v2 no controllers are given to what is
// below its parents: one that has processes, as a service's has, would become threaded, and what is below it invalid.
func (g *Cgroups) MakePlain(p string) (*Cgroup, error) {
	if !g.v2 {
		return g.Make(p)
	}
	c, err := g.at(p)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.places[0].dir, 0o755); err != nil {
		return nil, fmt.Errorf("create cgroup %s: %w", p, err)
	}
	return c, nil
}

// Limit is the second half: it sets the first limits of a cgroup that Make made. When
// it fails, what Make made is gone.
func (c *Cgroup) Limit(r *specs.LinuxResources) error {
	res, leftOut, err := c.g.limits(r)
	c.LeftOut = leftOut
	if err == nil && !c.g.v2 && !res.SkipDevices {
		err = c.denyDevices(res)
	}
	if err == nil {
		err = c.apply(res)
	}
	if err != nil {
		undo(c.made)
		return fmt.Errorf("create cgroup %s: %w", c.Path(), err)
	}
	return nil
}

// undo removes what was made, the deepest first. What somebody else has
// begun to use meanwhile stays.
func undo(made []string) {
	for _, dir := range slices.Backward(made) {
		_ = unix.Rmdir(dir)
	}
}

// makeAll makes the directories and remembers those that were not there.
func (c *Cgroup) makeAll() (err error) {
	if c.g.v2 {
		dir := c.places[0].dir
		for d := dir; d != cgroupRoot && !exists(d); d = path.Dir(d) {
			c.made = append([]string{d}, c.made...)
		}
		// With a limit of memory, as containers have some: not a threaded cgroup.
		m, err := fs2.NewManager(&cgroups.Cgroup{Resources: &cgroups.Resources{Memory: -1}}, dir)
		if err != nil {
			return err
		}
		return m.Apply(-1)
	}
	for i := range c.places {
		h, p := &c.g.hierarchies[i], &c.places[i]
		if c.made, err = makeDirs(h.dir, p.dir, c.made); err != nil {
			return err
		}
		if p.has("cpuset") {
			if err := inheritCpuset(h.dir, p.dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeDirs makes dir and what is missing between it and top.
func makeDirs(top, dir string, made []string) ([]string, error) {
	err := unix.Mkdir(dir, cgroupMode)
	if errors.Is(err, unix.ENOENT) && dir != top {
		if made, err = makeDirs(top, path.Dir(dir), made); err != nil {
			return made, err
		}
		err = unix.Mkdir(dir, cgroupMode)
	}
	switch {
	case err == nil:
		return append(made, dir), nil
	case errors.Is(err, unix.EEXIST):
		return made, nil
	}
	return made, &os.PathError{Op: "mkdir", Path: dir, Err: err}
}

// inheritCpuset fills the CPUs and memory nodes of dir, and of its parents up
// to top, from the level above: a v1 cpuset starts empty, and nothing can join
// an empty one. Two that do it at once write the same. What is made below
// inherits by itself from then on.
func inheritCpuset(top, dir string) error {
	copied := false
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := readCgroupFile(dir, file)
		if err != nil {
			return err
		}
		if own != "" || dir == top {
			continue
		}
		if !copied {
			if err := inheritCpuset(top, path.Dir(dir)); err != nil {
				return err
			}
		}
		copied = true
		value, err := readCgroupFile(path.Dir(dir), file)
		if err != nil {
			return err
		}
		if err := cgroups.WriteFile(dir, file, value); err != nil {
			return err
		}
	}
	if !copied {
		return nil
	}
	return cgroups.WriteFile(dir, "cgroup.clone_children", "1")
}

// readCgroupFile reads a short file of a cgroup with as few calls as can be.
func readCgroupFile(dir, file string) (string, error) {
	p := dir + "/" + file
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: p, Err: err}
	}
	defer unix.Close(fd)
	var buf [4096]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return "", &os.PathError{Op: "read", Path: p, Err: err}
	}
	return strings.TrimSpace(string(buf[:n])), nil
}

// apply writes limits.
func (c *Cgroup) apply(res *cgroups.Resources) error {
	if c.g.v2 {
		m, err := fs2.NewManager(&cgroups.Cgroup{Resources: res}, c.places[0].dir)
		if err != nil {
			return err
		}
		return m.Set(res)
	}
	paths := make(map[string]string, len(c.places))
	for i := range c.places {
		for _, controller := range c.places[i].controllers {
			paths[controller] = c.places[i].dir
		}
	}
	m, err := fs.NewManager(&cgroups.Cgroup{Resources: res}, paths)
	if err != nil {
		return err
	}
	return m.Set(res)
}
