package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

const (
	// A monitor survives its container in a shortage of memory: it is tiny, and
	// with it the container would be lost.
	monitorOOMScoreAdj = -999
	pauseOOMScoreAdj   = -998
)

// monitorPlace is the leaf cgroup of the monitors: neither the daemon's, so
// that stopping the service does not kill them, nor any pod's.
type monitorPlace struct {
	cgroup *oci.Cgroup
	dir    *os.File   // v2
	tasks  []*os.File // v1
}

// monitorsFile says where the monitors' cgroup is, in the state directory.
const monitorsFile = "monitors"

// monitorsCgroup names it: one for each daemon, as with the same parent they
// must not remove one another's. It stays where an earlier daemon made it.
func (c *Config) monitorsCgroup() string {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(c.State))
	name := fmt.Sprintf("monitors-%08x", hash.Sum32())
	if known := readMonitorsFile(filepath.Join(c.State, monitorsFile)); filepath.Base(known) == name {
		return known
	}
	return filepath.Join(c.monitorParent(), name)
}

// monitorsRecord is the file; older versions wrote the path alone.
type monitorsRecord struct{ Cgroup string }

// readMonitorsFile returns "" if it is damaged: a cgroup of another name would be
// made, and the monitors that run not be found.
func readMonitorsFile(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	if filepath.IsAbs(string(text)) {
		return string(text)
	}
	var r monitorsRecord
	if err := ledger.Unmarshal(text, &r); err != nil || !filepath.IsAbs(r.Cgroup) {
		klog.ErrorS(err, "Where the monitors' cgroup is cannot be read, it is taken to be where the configuration says", "file", path)
		return ""
	}
	return r.Cgroup
}

// keepMonitorsFile writes the file if it does not say so already.
func keepMonitorsFile(path, place string) error {
	sealed, err := ledger.Marshal(&monitorsRecord{place})
	if err != nil {
		return err
	}
	if is, err := os.ReadFile(path); err == nil && bytes.Equal(is, sealed) {
		return nil
	}
	return os.WriteFile(path, sealed, 0o600)
}

func openMonitorPlace(s *Store) (p monitorPlace, err error) {
	place := s.config.monitorsCgroup()
	if err := keepMonitorsFile(s.state(monitorsFile), place); err != nil {
		return p, fmt.Errorf("make the monitors' cgroup: %w", err)
	}
	if p.cgroup, err = s.cgroups.MakePlain(place); err != nil {
		return p, fmt.Errorf("make the monitors' cgroup: %w", err)
	}
	var undo cleanup
	defer undo.undo(&err)
	undo.add(func() error { return p.close(0) })
	if s.cgroups.V2() {
		p.dir, err = p.cgroup.Dir()
		return p, err
	}
	for _, t := range p.cgroup.JoinPaths() {
		if !placed(t) {
			continue
		}
		f, err := os.OpenFile(t, os.O_WRONLY, 0)
		if err != nil {
			return p, fmt.Errorf("open the monitors' cgroup: %w", err)
		}
		p.tasks = append(p.tasks, f)
	}
	return p, nil
}

// monitorParent is where the monitors' cgroup is made. Under systemd that is the cgroup
// delegated to the daemon's service: nothing else in the tree is ours to change.
func (c *Config) monitorParent() string {
	parent := filepath.Join("/", c.CgroupParent)
	if c.CgroupDriver != "systemd" {
		return parent
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return parent
	}
	for line := range strings.Lines(string(own)) {
		_, path, found := strings.Cut(strings.TrimSpace(line), "::") // the unified hierarchy
		if !found {
			_, path, found = strings.Cut(strings.TrimSpace(line), ":name=systemd:")
		}
		if at := strings.Index(path, ".service"); found && at > 0 {
			return path[:at] + ".service"
		}
	}
	return parent
}

// placed tells whether monitors join the hierarchy of a tasks file: those that
// kill, account for or limit what is in the daemon's own cgroup. Each costs 25 us.
func placed(tasks string) bool {
	return slices.ContainsFunc([]string{"/memory/", "/pids/", "/cpu/", "/cpu,cpuacct/", "/systemd/"}, func(dir string) bool { return strings.Contains(tasks, dir) })
}

// monitorEndTimeout bounds the wait for the monitors of containers that are gone.
const monitorEndTimeout = time.Second

// close lets go of the cgroup, and removes it if no monitor is left, or in wait no more.
func (p *monitorPlace) close(wait time.Duration) error {
	var all error
	for _, f := range append(p.tasks, p.dir) {
		if f != nil {
			all = errors.Join(all, f.Close())
		}
	}
	p.tasks, p.dir = nil, nil
	if p.cgroup == nil {
		return all
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	return errors.Join(all, p.cgroup.RemoveIdleUntil(ctx))
}

// signalMonitor sends sig to the container's monitor without its help. It is
// known by the directory that it holds open for the exit record.
func (c *Container) signalMonitor(sig unix.Signal) error {
	var own unix.Stat_t
	if err := unix.Stat(c.root(), &own); err != nil {
		return fmt.Errorf("find the monitor: %w", &os.PathError{Op: "stat", Path: c.root(), Err: err})
	}
	pids, err := c.store.monitors.cgroup.Procs()
	if err != nil {
		return fmt.Errorf("find the monitor: %w", err)
	}
	for _, pid := range pids {
		process, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended meanwhile
		}
		found := holdsOpen(pid, c.id, &own)
		if found {
			err = unix.PidfdSendSignal(process, sig, nil, 0)
		}
		_ = unix.Close(process)
		if found && err != nil {
			return fmt.Errorf("signal monitor %d: %w", pid, err)
		}
		if found {
			return nil
		}
	}
	return fmt.Errorf("find the monitor of container %s: %w", c.id, ErrNotFound)
}

// holdsOpen tells whether the process has a descriptor of the directory. Only
// what has its name is looked at: other files may be on file systems that hang.
func holdsOpen(pid int, name string, dir *unix.Stat_t) bool {
	fds := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(fds)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		fd := filepath.Join(fds, e.Name())
		target, err := os.Readlink(fd)
		var st unix.Stat_t
		return err == nil && filepath.Base(target) == name && unix.Stat(fd, &st) == nil && st.Dev == dir.Dev && st.Ino == dir.Ino
	})
}
