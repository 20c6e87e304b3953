package sandbox

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cri-runtime/cri-runtime/conmon"
	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// What mends most findings.
const (
	remedyRestart = "restart the daemon, which takes away what no record names"
	remedyReport  = "restart the daemon; if it stays, report it with the daemon's log"
	remedyDamaged = "restart the daemon, which moves it aside to damaged/"
)

// Audit is what a check from outside found.
type Audit struct {
	Findings ledger.Findings
	Damaged  []Damaged           // what was moved aside
	Pods     []network.Expected  // the attachments that there should be
	Images   map[string][]string // what containers need: by image id, the containers' ids
}

// audit compares records, memory and host. Nothing is changed.
type audit struct {
	Audit
	config     Config
	cgroups    *oci.Cgroups
	memory     *Memory // nil: there is no daemon, what is half made will be undone
	boxes      map[string]*Sandbox
	containers map[string]*audited
	boot       string
	newer      []string // ids of what a later version has made, and this one leaves alone
}

// audited is a container as its records tell.
type audited struct {
	*Container
	created, ended bool
}

// Check looks at everything that the daemon of config keeps on disk and has
// made on the host. memory is what that daemon knows, nil if none runs.
// Findings may be of verbs under way: what stays in several checks is real.
func Check(config Config, memory *Memory) (*Audit, error) {
	config.complete()
	cgroups, err := oci.NewCgroups(config.CgroupDriver)
	if err != nil {
		return nil, err
	}
	a := &audit{
		config: config, cgroups: cgroups, memory: memory, boxes: map[string]*Sandbox{}, containers: map[string]*audited{}, boot: bootID(),
	}
	a.Images = map[string][]string{}
	s := &Store{config: config, cgroups: cgroups}
	for _, step := range []func(s *Store) error{
		a.readSandboxes, a.readContainers, a.readState, a.readQuarantine, a.compareMemory, a.mounts, a.cgroupTree, a.processes,
	} {
		if err := step(s); err != nil {
			return nil, fmt.Errorf("check: %w", err)
		}
	}
	return &a.Audit, nil
}

// busy tells whether the daemon works on the sandbox or container now, or leaves
// it alone.
func (a *audit) busy(ids ...string) bool {
	if slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(a.newer, id) }) {
		return true
	}
	return a.memory != nil && (a.memory.Tidying || slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(a.memory.UnderWay, id) }))
}

// entries lists a directory of objects; what is none is a finding.
func (a *audit) entries(dir string) ([]string, error) {
	all, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) { // no daemon has run here yet, or a reboot took it
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range all {
		if !e.IsDir() || !isID(e.Name()) {
			a.Findings.Add(filepath.Join(dir, e.Name()), "it is nothing of ours", "remove it")
			continue
		}
		ids = append(ids, e.Name())
	}
	return ids, nil
}

// isID tells whether name can be the id of a sandbox or container.
func isID(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}

func (a *audit) readSandboxes(s *Store) error {
	ids, err := a.entries(s.root("sandboxes"))
	if err != nil {
		return err
	}
	for _, id := range ids {
		dir := s.root("sandboxes", id)
		if !exists(filepath.Join(dir, sandboxFile)) {
			if a.memory != nil && !a.busy(id) {
				a.Findings.Add(dir, "it has no record", remedyRestart)
			}
			continue
		}
		b, err := s.loadSandbox(id)
		if errors.Is(err, errNewer) {
			a.newer = append(a.newer, id)
			continue
		}
		if err != nil {
			a.Findings.Add(filepath.Join(dir, sandboxFile), err.Error(), remedyDamaged)
			continue
		}
		a.boxes[id] = b
		r := &b.record
		if r.Pause != nil && r.Pause.PID <= 0 || r.Ready && b.ownNetwork(b.Status().Config) != (r.Attachment != nil) {
			a.Findings.Add(filepath.Join(dir, sandboxFile), "its parts do not fit together", remedyReport)
		}
		a.Pods = append(a.Pods, network.Expected{
			ID: id, Attachment: r.Attachment, Own: b.ownNetwork(b.Status().Config), Finished: r.Stopped, Begun: !r.Ready || r.Stopping && !r.Stopped || a.busy(id),
			NetNS: b.state("ns", "net"),
		})
	}
	return nil
}

func (a *audit) readContainers(s *Store) error {
	ids, err := a.entries(s.root("containers"))
	if err != nil {
		return err
	}
	s.sandboxes = a.boxes
	for _, id := range ids {
		dir := s.root("containers", id)
		if !exists(filepath.Join(dir, containerFile)) {
			if a.memory != nil && !a.busy(id) {
				a.Findings.Add(dir, "it has no record", remedyRestart)
			}
			continue
		}
		c, err := s.loadContainer(id)
		if errors.Is(err, errNewer) {
			a.newer = append(a.newer, id)
			continue
		}
		if err != nil {
			a.Findings.Add(filepath.Join(dir, containerFile), err.Error(), remedyDamaged)
			continue
		}
		a.readContainer(c)
	}
	return nil
}

func (a *audit) readContainer(c *Container) {
	v := &audited{Container: c, created: exists(c.root(bundle))}
	a.containers[c.id] = v
	for _, image := range c.Status().images() {
		a.Images[image] = append(a.Images[image], c.id)
	}
	if a.boxes[c.box.id] == nil && !a.busy(c.id, c.box.id) {
		a.Findings.Add(c.root(containerFile), "its sandbox "+c.box.id+" has no record", remedyRestart)
	}
	if exists(c.root(exitFile)) {
		v.ended = true
		if _, err := conmon.ReadExit(c.root()); err != nil && !exists(c.root(lostFile)) {
			a.Findings.Add(c.root(exitFile), err.Error(), "restart the daemon, which reports the container as ended for reasons unknown")
		}
	}
	if exists(c.root(lostFile)) {
		v.ended = true
		if err := ledger.Read(c.root(lostFile), &lostRecord{}); err != nil {
			a.Findings.Add(c.root(lostFile), err.Error(), "restart the daemon, which writes it again")
		}
	}
	if _, err := c.readBundle(); v.created && err != nil {
		a.Findings.Add(c.root(bundle), err.Error(), "create the container anew: this one takes no commands any more")
	}
	if _, err := c.readLimits(); err != nil && !errors.Is(err, os.ErrNotExist) {
		a.Findings.Add(c.root(resourcesFile), err.Error(), "update the container's resources again")
	}
}

// readState looks for directories in the state directory that no record names.
func (a *audit) readState(s *Store) error {
	ids, err := a.entries(s.state("sandboxes"))
	if err != nil {
		return err
	}
	for _, id := range ids {
		b := a.boxes[id]
		switch dir := s.state("sandboxes", id); {
		case a.busy(id), a.memory == nil && b == nil && isEmpty(dir):
		case b == nil:
			a.Findings.Add(dir, "no sandbox has this id", remedyRestart)
		case b.record.Stopped:
			a.Findings.Add(dir, "its sandbox is stopped", remedyReport)
		}
	}
	if ids, err = a.entries(s.state("containers")); err != nil {
		return err
	}
	for _, id := range ids {
		dir := s.state("containers", id)
		if a.containers[id] == nil && !a.busy(id) && !(a.memory == nil && (isEmpty(dir) || exists(filepath.Join(dir, "monitor.sock")))) {
			a.Findings.Add(dir, "no container has this id", remedyRestart)
		}
	}
	return nil
}

// isEmpty: a crash came before the record, and nothing has an effect before it.
func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) == 0
}

func (a *audit) readQuarantine(s *Store) (err error) {
	a.Damaged, err = readDamaged(s.root("damaged"))
	return err
}

// compareMemory compares what the daemon knows with the records.
func (a *audit) compareMemory(s *Store) error {
	if a.memory == nil {
		return nil
	}
	known := map[string]SandboxMemory{}
	for _, m := range a.memory.Sandboxes {
		known[m.ID] = m
		if a.busy(m.ID) {
			continue
		}
		switch b := a.boxes[m.ID]; {
		case b == nil:
			a.Findings.Add(s.root("sandboxes", m.ID), "the daemon knows this sandbox, but there is no record of it", remedyReport)
		case m.Ready != (b.record.Ready && !b.record.Stopping && !b.record.Stopped) && (m.Ready || a.lost(b)):
			a.Findings.Add(b.root(sandboxFile), fmt.Sprintf("it says ready %t and stopped %t, the daemon says ready %t", b.record.Ready, b.record.Stopped, m.Ready), remedyReport)
		case m.Ready && a.lost(b):
			a.Findings.Add(b.state(), "the sandbox is ready, but of its namespaces one at least is gone", "stop and remove the sandbox")
		}
	}
	for _, id := range slices.Sorted(maps.Keys(a.boxes)) {
		if _, ok := known[id]; !ok && !a.busy(id) {
			a.Findings.Add(a.boxes[id].root(sandboxFile), "the daemon does not know this sandbox", remedyRestart)
		}
	}
	a.compareContainers(s, known)
	return nil
}

func (a *audit) lost(b *Sandbox) bool { return b.lost(a.boot) }

func (a *audit) compareContainers(s *Store, boxes map[string]SandboxMemory) {
	known := map[string]bool{}
	for _, m := range a.memory.Containers {
		known[m.ID] = true
		c := a.containers[m.ID]
		if a.busy(m.ID, m.SandboxID) {
			continue
		}
		box, ok := boxes[m.SandboxID]
		switch {
		case c == nil:
			a.Findings.Add(s.root("containers", m.ID), "the daemon knows this container, but there is no record of it", remedyReport)
		case !c.created:
			a.Findings.Add(c.root(bundle), "the daemon knows this container, but its bundle is gone", "remove the container")
		case !ok:
			a.Findings.Add(c.root(containerFile), "the daemon knows this container, but not its sandbox "+m.SandboxID, remedyReport)
		case c.ended != (m.State == stateText(stateExited)):
			a.Findings.Add(c.root(), fmt.Sprintf("the daemon says that the container is %s; that there is a record of its end: %t", m.State, c.ended), remedyReport)
		case !c.ended && !box.Ready:
			a.Findings.Add(c.root(containerFile), "the container has not ended, but its sandbox is not ready", "stop the sandbox")
		}
	}
	for _, id := range slices.Sorted(maps.Keys(a.containers)) {
		c := a.containers[id]
		if !known[id] && !a.busy(id, c.box.id) {
			a.Findings.Add(c.root(containerFile), "the daemon does not know this container", remedyRestart)
		}
	}
}

// shares tells whether the sandbox has a PID namespace that its containers share.
func shares(b *Sandbox) bool { return b.record.Pause != nil }

// pins are the mounts that a sandbox has, below its directory in the state directory.
func pins(b *Sandbox) map[string]bool {
	config := b.Status().Config
	out := map[string]bool{b.state(): true}
	for kind, own := range map[string]bool{
		"net": b.ownNetwork(config), "uts": b.ownNetwork(config), "ipc": b.ownIPC(config), "user": b.ownUser(), "pid": shares(b),
	} {
		if own {
			out[b.state("ns", kind)] = true
		}
	}
	if b.ownIPC(config) {
		out[b.state("shm")] = true
	}
	return out
}
