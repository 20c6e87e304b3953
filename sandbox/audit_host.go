package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cri-runtime/cri-runtime/oci"
)

const remedyUnmount = "restart the daemon, or unmount it by umount -l"

// mounts compares the host's mounts with the sandboxes.
func (a *audit) mounts(s *Store) error {
	points, err := mountsBelow(s.config.State, s.config.Root)
	if err != nil {
		return err
	}
	places := map[string]*Sandbox{}
	for _, b := range a.boxes {
		for pin := range pins(b) {
			places[pin] = b
		}
	}
	for _, point := range slices.Sorted(maps.Keys(points)) {
		b := places[point]
		rel, _ := filepath.Rel(s.state("sandboxes"), point)
		id, _, _ := strings.Cut(rel, "/")
		switch {
		case point == s.config.State || point == s.config.Root || a.busy(id):
		case b == nil:
			a.Findings.Add(point, "this mount belongs to no sandbox", remedyUnmount)
		case b.record.Stopped:
			a.Findings.Add(point, "this mount belongs to a sandbox that is stopped", remedyUnmount)
		case points[point] > 1:
			a.Findings.Add(point, fmt.Sprintf("%d mounts are on one another", points[point]), remedyUnmount)
		}
	}
	for _, pin := range slices.Sorted(maps.Keys(places)) {
		b := places[pin]
		if !a.ready(b) || points[pin] > 0 || a.busy(b.id) {
			continue
		}
		a.Findings.Add(pin, "the sandbox is ready, but this mount of it is gone", "stop and remove the sandbox")
	}
	return nil
}

// ready tells whether the daemon says so of the sandbox.
func (a *audit) ready(b *Sandbox) bool {
	return a.memory != nil && slices.ContainsFunc(a.memory.Sandboxes, func(m SandboxMemory) bool { return m.ID == b.id && m.Ready })
}

// mountsBelow counts the mounts on each path at or below the directories.
func mountsBelow(dirs ...string) (map[string]int, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	out := map[string]int{}
	const mountPoint = 4
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) <= mountPoint {
			continue
		}
		point := unescape.Replace(fields[mountPoint])
		if slices.ContainsFunc(dirs, func(d string) bool { return point == d || strings.HasPrefix(point, d+"/") }) {
			out[point]++
		}
	}
	return out, lines.Err()
}

// cgroupTree looks for cgroups of ours that no record names.
func (a *audit) cgroupTree(s *Store) error {
	parent := filepath.Join("/", s.config.CgroupParent)
	children, err := a.cgroups.Children(parent)
	if err != nil {
		return err
	}
	// Daemons may share the parent of pods that named none: then it cannot be
	// known whose a cgroup is.
	own := filepath.Base(s.config.monitorsCgroup())
	alone := !slices.ContainsFunc(children, func(name string) bool { return strings.HasPrefix(name, "monitors-") && name != own })
	for _, id := range children {
		if b := a.boxes[id]; isID(id) && alone && !a.busy(id) && (b == nil || !b.record.OwnCgroup) {
			a.Findings.Add(a.cgroupPath(filepath.Join(parent, id)), "this cgroup belongs to no sandbox", remedyCgroup)
		}
	}
	parents := map[string]*Sandbox{}
	for _, b := range a.boxes {
		parents[b.record.Cgroup] = b
		parents[b.containerCgroup("")] = b
	}
	for _, path := range slices.Sorted(maps.Keys(parents)) {
		if err := a.podCgroup(path); err != nil {
			return err
		}
	}
	return nil
}

const remedyCgroup = "kill what is in it and remove the directory in each hierarchy, or restart the machine"

// podCgroup looks into a pod's cgroup. Two sandboxes of a pod may share it.
func (a *audit) podCgroup(path string) error {
	children, err := a.cgroups.Children(path)
	if err != nil {
		return err
	}
	for _, name := range children {
		id := strings.TrimSuffix(strings.TrimPrefix(name, scopePrefix), ".scope")
		pause, isPause := strings.CutPrefix(id, "pause-")
		b, c := a.boxes[pause], a.containers[id]
		switch {
		case a.busy(id, pause):
		case isPause && (b == nil || b.record.Pause == nil || b.record.Stopped):
			a.Findings.Add(a.cgroupPath(filepath.Join(path, name)), "this cgroup belongs to no shared PID namespace", remedyCgroup)
		case isID(id) && !isPause && c == nil && a.boxes[id] == nil:
			a.Findings.Add(a.cgroupPath(filepath.Join(path, name)), "this cgroup belongs to no container", remedyCgroup)
		case c != nil && c.record.Cgroup != filepath.Join(path, name):
			a.Findings.Add(a.cgroupPath(filepath.Join(path, name)), "the container's record names another cgroup: "+c.record.Cgroup, remedyCgroup)
		}
	}
	return nil
}

// cgroupPath is where a finding's cgroup is.
func (a *audit) cgroupPath(p string) string {
	if cg, err := a.cgroups.Load(p); err == nil {
		return cg.Path()
	}
	return p
}

// processes compares monitors, reapers and what runs in cgroups with the records.
func (a *audit) processes(s *Store) error {
	monitors, err := a.findMonitors(s)
	if err != nil {
		return err
	}
	states := map[string]ContainerMemory{}
	if a.memory != nil {
		for _, m := range a.memory.Containers {
			states[m.ID] = m
		}
	}
	for _, id := range slices.Sorted(maps.Keys(a.containers)) {
		c := a.containers[id]
		if a.busy(id, c.box.id) {
			continue
		}
		if err := a.containerProcesses(c, states[id], monitors[id]); err != nil {
			return err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(a.boxes)) {
		b := a.boxes[id]
		p := b.record.Pause
		if p == nil || b.record.Stopped || !a.ready(b) || a.busy(id) {
			continue
		}
		if start, err := startTime(p.PID); err != nil || start != p.StartTime {
			a.Findings.Add(b.root(sandboxFile), fmt.Sprintf("the reaper of its PID namespace, process %d, is gone", p.PID), "stop and remove the sandbox")
		}
	}
	return nil
}

func (a *audit) containerProcesses(c *audited, m ContainerMemory, monitors []int) error {
	var pids []int
	cg, err := a.cgroups.Load(c.record.Cgroup)
	if err == nil {
		pids, err = cg.Procs()
	}
	if err != nil && !errors.Is(err, oci.ErrNotFound) {
		return err
	}
	alive := m.State == stateText(stateCreated) || m.State == stateText(stateRunning)
	switch {
	case c.ended && len(pids) > 0:
		a.Findings.Add(cg.Path(), fmt.Sprintf("the container has ended, but processes %v are in its cgroup", pids), "stop the container")
	case len(monitors) > 1:
		a.Findings.Add(c.root(), fmt.Sprintf("it has more than one monitor: processes %v", monitors), remedyReport)
	case c.ended && a.memory != nil && len(monitors) > 0:
		a.Findings.Add(c.root(), fmt.Sprintf("the container has ended, but its monitor, process %d, has not", monitors[0]), "kill that process")
	case alive && len(monitors) == 0:
		a.Findings.Add(c.root(), "the container is "+m.State+", but it has no monitor", "stop the container")
	case alive && !slices.Contains(pids, m.PID):
		a.Findings.Add(c.root(), fmt.Sprintf("its process %d is not in its cgroup %s", m.PID, c.record.Cgroup), "stop the container")
	}
	return nil
}

// findMonitors returns the processes in the monitors' cgroup by container; one
// that serves none of ours is a finding.
func (a *audit) findMonitors(s *Store) (map[string][]int, error) {
	out := map[string][]int{}
	cg, err := a.cgroups.Load(s.config.monitorsCgroup())
	if errors.Is(err, oci.ErrNotFound) {
		return out, nil
	}
	var pids []int
	if err == nil {
		pids, err = cg.Procs()
	}
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		dir, ok := monitoredDir(pid, s.root("containers"))
		id := filepath.Base(dir)
		switch {
		case !ok:
			// It has ended, or has not got its work yet.
		case a.containers[id] == nil && !a.busy(id):
			a.Findings.Add("/proc/"+strconv.Itoa(pid), "this monitor serves a container that no record names: "+dir, "kill the process")
		default:
			out[id] = append(out[id], pid)
		}
	}
	return out, nil
}

// monitoredDir returns the directory in which the process keeps the exit
// record: a descriptor of it is open.
func monitoredDir(pid int, containers string) (string, bool) {
	fds := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(fds)
	if err != nil {
		return "", false
	}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(fds, e.Name()))
		target = strings.TrimSuffix(target, " (deleted)")
		if err == nil && strings.HasPrefix(target, filepath.Dir(containers)+"/") && isID(strings.SplitN(filepath.Base(target), "-", 2)[0]) {
			return target, true
		}
	}
	return "", false
}
