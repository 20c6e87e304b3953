package oci

import (
	"context"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Cgroups makes and finds cgroups. It is safe for concurrent use.
type Cgroups struct{}

// Cgroup is one cgroup: a directory (v2) or one directory in each hierarchy
// (v1). It is safe for concurrent use.
type Cgroup struct {
	// LeftOut says in one line each which limits were not set because the
	// kernel has no controller for them.
	LeftOut []string
}

// NewCgroups looks at the host's cgroup mounts, once. driver is "cgroupfs" or
// "systemd".
func NewCgroups(driver string) (*Cgroups, error) { return nil, ErrUnsupported }

// V2 tells whether the host has the unified hierarchy only.
func (g *Cgroups) V2() bool { return false }

// Create makes the cgroup path with its parents and sets the limits r (nil:
// none). path is absolute below the cgroup root (cgroupfs) or has the form
// slice:prefix:name (systemd). When it fails nothing is left that was not
// there before; a cgroup that exists is taken as it is.
func (g *Cgroups) Create(path string, r *specs.LinuxResources) (*Cgroup, error) {
	return nil, ErrUnsupported
}

// Load finds the cgroup that Create made for path.
func (g *Cgroups) Load(path string) (*Cgroup, error) { return nil, ErrUnsupported }

// JoinPaths returns the files that a single-threaded process writes "0" to in
// order to join (v1: `tasks` in every hierarchy), nil on v2, where a process
// is cloned into Dir.
func (c *Cgroup) JoinPaths() []string { return nil }

// Dir opens the directory for CLONE_INTO_CGROUP (v2); nil on v1.
func (c *Cgroup) Dir() (*os.File, error) { return nil, ErrUnsupported }

// OOMFile opens the file whose oom_kill line counts the kills; nil when there
// is no memory controller.
func (c *Cgroup) OOMFile() (*os.File, error) { return nil, ErrUnsupported }

// Set changes limits of an existing cgroup.
func (c *Cgroup) Set(r *specs.LinuxResources) error { return ErrUnsupported }

// Procs lists the processes in the cgroup and in those below it.
func (c *Cgroup) Procs() ([]int, error) { return nil, ErrUnsupported }

// Populated tells whether a process is in the cgroup or in one below it.
func (c *Cgroup) Populated() (bool, error) { return false, ErrUnsupported }

// Kill sends SIGKILL to every process in the cgroup and below it.
func (c *Cgroup) Kill() error { return ErrUnsupported }

// Remove kills what is left and removes the cgroup with all below it. It
// goes on until ctx ends; a cgroup that is gone already is no error.
func (c *Cgroup) Remove(ctx context.Context) error { return ErrUnsupported }

// Sub makes a cgroup below c for one exec. On v1 it is a directory in one
// hierarchy only; its other places are c's own.
func (c *Cgroup) Sub(name string) (*Cgroup, error) { return nil, ErrUnsupported }
