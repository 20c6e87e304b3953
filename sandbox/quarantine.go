package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// reasonFile, in a directory that was moved aside, says why.
const reasonFile = "damaged.json"

const remedyPodAnew = "stop and remove the pod: it may share its address or its host ports with a later one"

const remedyAside = "what it was is gone from the list and from the host, and a kubelet makes it anew; look at the directory if you like, and remove it"

// Damaged is a sandbox or container whose record could not be read, and which
// was moved aside.
type Damaged struct {
	Dir    string    `json:"dir"`    // where it is now
	From   string    `json:"from"`   // where it was
	Reason string    `json:"reason"` // names the file
	Remedy string    `json:"remedy"`
	At     time.Time `json:"at,omitzero"`
}

// quarantine takes an object whose record cannot be read out of the way, so that
// nothing is lost and nothing else suffers. What it has on the host is known by
// its id: clear, if there is one, takes that away in the background. The directory
// is moved aside after it: a crash before begins anew. One without a record is removed.
func (s *Store) quarantine(dir string, why error, clear func(ctx context.Context, id string) error) []func(context.Context) error {
	id := filepath.Base(dir)
	if errors.Is(why, os.ErrNotExist) {
		// A crash came before the record, and nothing has an effect before it.
		if err := s.discard(dir); err != nil {
			klog.ErrorS(err, "Remove a directory without a record", "dir", dir)
		}
		return nil
	}
	if errors.Is(why, errNewer) {
		klog.ErrorS(why, "Left as it is: start the version that wrote it again, or remove the pod with that", "dir", dir)
		return nil
	}
	d := Damaged{Dir: s.root("damaged", id+"-"+newID()[:8]), From: dir, Reason: why.Error(), Remedy: remedyAside, At: time.Now()}
	if !isID(id) { // nothing of ours, and nothing is called so
		s.moveAside(&d)
		return nil
	}
	return []func(context.Context) error{func(ctx context.Context) error {
		if err := clear(ctx, id); err != nil {
			return fmt.Errorf("take away what %s has on the host, its record is unusable (%w); the next start tries again: %w", id, why, err)
		}
		s.moveAside(&d)
		return nil
	}}
}

func (s *Store) moveAside(d *Damaged) {
	if err := writeRecord(filepath.Join(d.From, reasonFile), d, false); err != nil {
		klog.ErrorS(err, "Note why a record is unusable", "dir", d.From)
	}
	if err := os.Rename(d.From, d.Dir); err != nil {
		klog.ErrorS(err, "Move a damaged record aside", "dir", d.From, "to", d.Dir)
		return
	}
	klog.ErrorS(ledger.ErrDamaged, "Record is unusable, its directory was moved aside", "dir", d.From, "to", d.Dir, "reason", d.Reason, "remedy", d.Remedy)
}

// clearSandbox takes away what a sandbox without a readable record has on the
// host. Its containers, without a sandbox now, were undone before.
func (s *Store) clearSandbox(ctx context.Context, id string) error {
	pod := network.Pod{ID: id}
	if pin := s.state("sandboxes", id, "ns", "net"); exists(pin) {
		pod.NetNS = pin
	}
	err := s.net.Detach(ctx, pod, nil)
	err = errors.Join(err, s.clearReaper(ctx, id))
	if err != nil {
		return err // the next attempt needs the namespaces
	}
	cg, err := s.cgroups.Load(filepath.Join("/", s.config.CgroupParent, id))
	if err == nil {
		err = cg.Remove(ctx)
	}
	if err != nil && !errors.Is(err, oci.ErrNotFound) {
		return err
	}
	b := &Sandbox{id: id, store: s}
	return b.unmountState()
}

// clearReaper ends the processes of a PID namespace that is pinned, and removes
// the cgroup of its reaper.
func (s *Store) clearReaper(ctx context.Context, id string) error {
	var ns unix.Stat_t
	if err := unix.Stat(s.state("sandboxes", id, "ns", "pid"), &ns); err != nil {
		return nil //nolint:nilerr // there is none
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		var st unix.Stat_t
		pid, err := strconv.Atoi(e.Name())
		if err != nil || unix.Stat(filepath.Join("/proc", e.Name(), "ns", "pid"), &st) != nil || st.Ino != ns.Ino || st.Dev != ns.Dev {
			continue
		}
		if err := s.clearCgroupOf(ctx, pid, "pause-"+id); err != nil {
			return err
		}
	}
	return nil
}

// clearCgroupOf removes, with all that runs in it, the cgroup of a process if
// its name has that text in it.
func (s *Store) clearCgroupOf(ctx context.Context, pid int, text string) error {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil // it has ended meanwhile
	}
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) < 3 || !strings.Contains(filepath.Base(parts[2]), text) {
			continue
		}
		cg, err := s.cgroups.Load(parts[2])
		if err == nil {
			err = cg.Remove(ctx)
		}
		if err != nil && !errors.Is(err, oci.ErrNotFound) {
			return err
		}
	}
	return nil
}

// clearContainer takes away what a container without a readable record has on
// the host. Its cgroup has its id for a name, in that of a pod.
func (s *Store) clearContainer(ctx context.Context, id string) error {
	var paths []string
	for _, b := range s.Sandboxes() {
		paths = append(paths, b.containerCgroup(id))
	}
	for _, path := range paths {
		cg, err := s.cgroups.Load(path)
		if err == nil {
			err = cg.Remove(ctx)
		}
		if err != nil && !errors.Is(err, oci.ErrNotFound) {
			return err
		}
	}
	// Its pod's record may be damaged, too.
	monitors, err := s.monitors.cgroup.Procs()
	if err != nil {
		return err
	}
	for _, pid := range monitors {
		if dir, ok := monitoredDir(pid, s.root("containers")); !ok || filepath.Base(dir) != id {
			continue
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			continue // it has ended with its container
		}
		for _, text := range strings.Fields(string(children)) {
			if child, err := strconv.Atoi(text); err == nil {
				if err := s.clearCgroupOf(ctx, child, id); err != nil {
					return err
				}
			}
		}
	}
	return os.RemoveAll(s.state("containers", id))
}

// Damaged lists what was moved aside and is still there.
func (s *Store) Damaged() ([]Damaged, error) { return readDamaged(s.root("damaged")) }

func readDamaged(dir string) ([]Damaged, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Damaged
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var d Damaged
		if err := ledger.Read(filepath.Join(path, reasonFile), &d); err != nil {
			d = Damaged{Reason: "its record could not be read", Remedy: remedyAside}
		}
		d.Dir = path
		out = append(out, d)
	}
	return out, nil
}
