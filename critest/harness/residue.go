package harness

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const cgroupRoot = "/sys/fs/cgroup"

// Residue is what a runtime has on the host at one moment. Only things that
// can be told apart from those of other programs are listed.
type Residue struct {
	Processes  []string // descendants of this process but the daemon's own
	Mounts     []string // mount points below Dir and mounts of files below it
	Links      []string // ports of the bridge
	Cgroups    []string // below Parent, with their hierarchy
	Rules      []string // lines of the nftables rule set that name our subnet or network
	Leases     []string // addresses that are taken
	Files      []string // below root and state, but images
	Namespaces []string // network namespaces mounted below Dir
}

// Residue looks around.
func (r *Runtime) Residue() (Residue, error) {
	var out Residue
	var errs []error
	take := func(to *[]string, f func() ([]string, error)) {
		got, err := f()
		slices.Sort(got)
		*to, errs = got, append(errs, err)
	}
	take(&out.Processes, r.processes)
	take(&out.Mounts, r.mounts)
	take(&out.Links, r.links)
	take(&out.Cgroups, r.cgroups)
	take(&out.Rules, r.rules)
	take(&out.Leases, r.leases)
	take(&out.Files, r.files)
	return out, errors.Join(errs...)
}

// Since lists what is there now and was not in before.
func (now Residue) Since(before Residue) []string {
	var out []string
	for _, part := range []struct {
		what        string
		now, before []string
	}{
		{"process", now.Processes, before.Processes},
		{"mount", now.Mounts, before.Mounts},
		{"link", now.Links, before.Links},
		{"cgroup", now.Cgroups, before.Cgroups},
		{"rule", now.Rules, before.Rules},
		{"lease", now.Leases, before.Leases},
		{"file", now.Files, before.Files},
	} {
		for _, x := range part.now {
			if !slices.Contains(part.before, x) {
				out = append(out, part.what+" "+x)
			}
		}
	}
	return out
}

func (r *Runtime) mounts() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[4], r.Dir+"/") {
			out = append(out, fields[4])
		}
	}
	return out, nil
}

func (r *Runtime) links() ([]string, error) {
	if r.Bridge == "" {
		return nil, nil
	}
	return names(filepath.Join("/sys/class/net", r.Bridge, "brif"))
}

func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, nil
}

func (r *Runtime) rules() ([]string, error) {
	if r.Bridge == "" {
		return nil, nil
	}
	//nolint:noctx // the clean-up runs also when the test's context has ended
	list, err := exec.Command("nft", "list", "ruleset").Output()
	if err != nil {
		return nil, fmt.Errorf("list the nftables rules: %w", err)
	}
	var out []string
	for _, line := range strings.Split(string(list), "\n") {
		if strings.Contains(line, r.Subnet()+".") || strings.Contains(line, r.Tag) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out, nil
}

func (r *Runtime) leases() ([]string, error) {
	all, err := names(filepath.Join(r.Dir, "ipam", r.Tag+"net"))
	out := all[:0]
	for _, n := range all {
		if n != "lock" && !strings.HasPrefix(n, "last_reserved") {
			out = append(out, n)
		}
	}
	return out, err
}

// files lists what is below root and state; images may stay.
func (r *Runtime) files() ([]string, error) {
	if r.options.Peer {
		return nil, nil // its database keeps what it likes
	}
	var out []string
	for _, top := range []string{"root", "state"} {
		base := filepath.Join(r.Dir, top)
		err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone meanwhile
			}
			if err != nil {
				return err
			}
			if d.IsDir() && path == filepath.Join(base, "images") {
				return fs.SkipDir
			}
			rel, err := filepath.Rel(r.Dir, path)
			out = append(out, rel)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("walk %s: %w", base, err)
		}
	}
	return out, nil
}

// Descriptors is the number of open files of the daemon.
func (r *Runtime) Descriptors() (int, error) {
	all, err := names(fmt.Sprintf("/proc/%d/fd", r.PID()))
	return len(all), err
}
