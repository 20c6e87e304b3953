package harness

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// PodCgroup is what a kubelet would name as the parent of the pod's containers: a
// path, and with systemd one of nested slices. uid begins with the tag.
func (r *Runtime) PodCgroup(uid string) string {
	if r.options.Systemd {
		return r.Parent + "/" + uid + ".slice"
	}
	return r.Parent + "/" + uid
}

func (r *Runtime) parent() string {
	if r.options.Systemd {
		return "/" + r.Tag + ".slice"
	}
	return "/critest-" + r.Tag
}

func (r *Runtime) cgroupArguments() []string {
	driver := "cgroupfs"
	if r.options.Systemd {
		driver = "systemd"
	}
	return []string{"--cgroup-driver", driver, "--cgroup-parent", r.Parent + "/default"}
}

// RemoveCgroup removes a pod's cgroup as a kubelet does after the pod's life.
func (r *Runtime) RemoveCgroup(ctx context.Context, cgroup string) error {
	if r.options.Systemd {
		out, err := exec.CommandContext(ctx, "systemctl", "stop", filepath.Base(cgroup)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("stop the slice %s: %w: %s", filepath.Base(cgroup), err, out)
		}
	}
	roots, err := hierarchies()
	errs := []error{err}
	for _, h := range roots {
		if err := os.Remove(h + cgroup); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func hierarchies() ([]string, error) {
	if _, err := os.Stat(cgroupRoot + "/cgroup.controllers"); err == nil {
		return []string{cgroupRoot}, nil
	}
	all, err := names(cgroupRoot)
	for i, n := range all {
		all[i] = filepath.Join(cgroupRoot, n)
	}
	return all, err
}

func (r *Runtime) cgroups() ([]string, error) {
	roots, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, h := range roots {
		top := h + r.Parent
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() && path != top {
				out = append(out, path)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("walk %s: %w", top, err)
		}
	}
	return out, nil
}

func (r *Runtime) removeCgroups() error {
	dirs, err := r.cgroups()
	errs := []error{err}
	slices.Sort(dirs)
	slices.Reverse(dirs)
	for _, d := range dirs {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, r.RemoveCgroup(context.Background(), r.Parent))...)
}
