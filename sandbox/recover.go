package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/conmon"
	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

const (
	// connectTimeout bounds the wait for one monitor at start-up; one that
	// does not answer goes on being asked in the background.
	connectTimeout  = 2 * time.Second
	connectParallel = 16
	undoParallel    = 64
)

// recover reads all records and finds out what became of each object
// while no daemon ran. What is half made is undone in the background until tidied.
func (s *Store) recover(ctx context.Context) (tidied <-chan struct{}, err error) {
	var boxWork, work undoing
	boxes, err := os.ReadDir(s.root("sandboxes"))
	if err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	for _, e := range boxes {
		b, err := s.loadSandbox(e.Name())
		if errors.Is(err, errNewer) {
			s.newer[e.Name()] = true
		}
		if err != nil {
			boxWork = append(boxWork, s.quarantine(s.root("sandboxes", e.Name()), err, s.clearSandbox)...)
			continue
		}
		if err := s.keepLabels(b.record.Labels); err != nil {
			klog.ErrorS(err, "Another pod may be given the same categories", "pod", b.id)
		}
		boxWork = append(boxWork, b.recover()...)
	}
	fault.Point("recover.sandboxes.read")
	containers, err := os.ReadDir(s.root("containers"))
	if err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(connectParallel)
	for _, e := range containers {
		group.Go(func() error {
			c, err := s.loadContainer(e.Name())
			var own undoing
			if err != nil {
				own = s.quarantine(s.root("containers", e.Name()), err, s.clearContainer)
			} else {
				own = c.recover(ctx)
			}
			mu.Lock()
			defer mu.Unlock()
			work = append(work, own...)
			return nil
		})
	}
	_ = group.Wait() // nothing in it fails
	fault.Point("recover.containers.read")
	lost, err := s.sweep("containers", s.clearContainer)
	if err != nil {
		return nil, err
	}
	work = append(work, lost...)
	if lost, err = s.sweep("sandboxes", s.clearSandbox); err != nil {
		return nil, err
	}
	boxWork = append(boxWork, lost...)
	fault.Point("recover.swept")
	s.tidying.Store(true)
	done := make(chan struct{})
	s.background.Go(func() {
		defer close(done)
		defer s.tidying.Store(false)
		s.tidy(context.WithoutCancel(ctx), work, boxWork)
	})
	klog.InfoS("State is read", "sandboxes", len(s.sandboxes), "containers", len(s.containers), "undo", len(work)+len(boxWork))
	return done, nil
}

// sweep removes what a crash before the record left in the state directory: empty
// directories, as nothing has an effect before its record. Of a record that was lost
// later, with its directory, the object is cleared away as that of a damaged one.
func (s *Store) sweep(kind string, clear func(ctx context.Context, id string) error) (work undoing, err error) {
	entries, err := os.ReadDir(s.state(kind))
	if err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	for _, e := range entries {
		if exists(s.root(kind, e.Name())) {
			continue
		}
		err := os.Remove(s.state(kind, e.Name()))
		switch {
		case err == nil:
		case isID(e.Name()):
			klog.ErrorS(err, "A record is lost: what is left of its object is taken away", "path", s.state(kind, e.Name()))
			work = append(work, func(ctx context.Context) error { return clear(ctx, e.Name()) })
		default:
			klog.ErrorS(err, "Remove what no record names", "path", s.state(kind, e.Name()))
		}
	}
	return work, nil
}

// undoing is work that start-up need not wait for.
type undoing []func(context.Context) error

// run does all of it, many at once: one of them may have to wait for a plugin that hangs.
// It returns what has failed.
func (u undoing) run(ctx context.Context) (failed undoing) {
	ctx, cancel := context.WithTimeout(ctx, verbTimeout)
	defer cancel()
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(undoParallel)
	for _, f := range u {
		group.Go(func() error {
			if err := f(ctx); err != nil {
				klog.ErrorS(err, "Undo what was left half made")
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, f)
			}
			return nil
		})
	}
	_ = group.Wait() // nothing in it fails
	return failed
}

// tidy does what start-up need not wait for, a pod's containers before the pod.
func (s *Store) tidy(ctx context.Context, containers, sandboxes undoing) {
	s.chores.add(containers.run(ctx)...)
	_ = sandboxes.run(ctx) // they are listed and go by the client's Stop and Remove
	fault.Point("recover.undone")
	trash, err := os.ReadDir(s.root("trash"))
	if err != nil {
		klog.ErrorS(err, "Read the trash")
	}
	for _, e := range trash {
		s.removeAll(s.root("trash", e.Name()))
	}
}

// removeAll removes what is in the trash, later if it cannot be done now.
func (s *Store) removeAll(path string) {
	if err := os.RemoveAll(path); err != nil {
		klog.ErrorS(err, "Empty the trash", "path", path)
		s.chores.add(func(context.Context) error { return os.RemoveAll(path) })
	}
	fault.Point("trash.emptied")
}

func (s *Store) loadSandbox(id string) (*Sandbox, error) {
	var r sandboxRecord
	if err := readFormat(s.root("sandboxes", id, sandboxFile), &r); err != nil {
		return nil, err
	}
	if r.ID != id {
		return nil, fmt.Errorf("record of sandbox %q: %w", r.ID, ErrInvalid)
	}
	r.Stopping = exists(s.root("sandboxes", id, stoppingFile))
	config := &runtimeapi.PodSandboxConfig{}
	if err := decodeMessage(r.Config, config); err != nil {
		return nil, err
	}
	b := newSandbox(s, id, config, r.Handler)
	b.record = r
	b.update(func(st *SandboxStatus) {
		st.Labels = r.Labels
		st.CreatedAt, st.Cgroup = r.CreatedAt, r.Cgroup
		if r.Attachment != nil {
			st.IPs = r.Attachment.IPs
		}
		if r.Pause != nil {
			st.PausePID = r.Pause.PID
		}
	})
	return b, nil
}

// recover makes the sandbox known again, or says how to undo it.
func (b *Sandbox) recover() []func(context.Context) error {
	key := sandboxKey(b.Status().Config)
	if !b.record.Ready {
		undone := b.store.awaited(key)
		return []func(context.Context) error{func(ctx context.Context) error {
			defer close(undone)
			if err := b.verb.lock(ctx, "undo"); err != nil {
				return err
			}
			defer b.verb.unlock()
			if err := b.release(ctx); err != nil {
				// Listed and not ready, it goes by the client's Stop and Remove.
				b.store.addSandbox(b)
				return err
			}
			return b.remove(ctx)
		}}
	}
	known := newFlight[*Sandbox](b.id)
	known.finish(b, nil)
	b.store.names[key] = known
	b.store.sandboxes[b.id] = b
	b.store.shareCgroup(b)
	if b.record.Stopped {
		return nil
	}
	if b.record.Stopping || b.lost(b.store.boot) {
		// A stop was cut off, or a reboot took the namespaces and the network's plugins must still be told.
		return []func(context.Context) error{b.Stop}
	}
	if b.ownNetwork(b.Status().Config) {
		if err := b.store.net.Restore(b.pod(), b.record.Attachment); err != nil {
			klog.ErrorS(err, "Mend the record of an attachment", "pod", b.id, "remedy", remedyPodAnew)
		}
	}
	b.update(func(st *SandboxStatus) { st.State = sandboxReady })
	return nil
}

// awaited makes a Run of that name wait until the channel that it returns is closed.
func (s *Store) awaited(key string) chan struct{} {
	undone := make(chan struct{})
	s.halves[key] = append(s.halves[key], undone) // nothing is served yet
	return undone
}

// awaitUndone waits for the undoing of half a sandbox of the same name, which may
// still hold its host ports, or what a plugin keeps by the pod's name.
func (s *Store) awaitUndone(ctx context.Context, key string, f *flight[*Sandbox]) error {
	s.mu.RLock()
	halves := s.halves[key]
	s.mu.RUnlock()
	for _, undone := range halves {
		f.enter("wait until what an earlier daemon left half made is undone")
		select {
		case <-undone:
		case <-ctx.Done():
			return fmt.Errorf("wait until what an earlier daemon left half made is undone: %w", ctx.Err())
		}
	}
	if halves != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.halves, key)
	}
	return nil
}

// lost tells whether the pod's namespaces are gone, as they are after a reboot.
// boot is the kernel's boot id now: with the host's namespaces, and a state
// directory that is no tmpfs, nothing else would tell.
func (b *Sandbox) lost(boot string) bool {
	config := b.Status().Config
	return rebooted(b.record.Boot, boot) || !exists(b.state()) ||
		(b.ownUser() && !isNamespace(b.state("ns", "user"))) ||
		(b.ownNetwork(config) && !isNamespace(b.state("ns", "net"))) ||
		(b.ownIPC(config) && !isNamespace(b.state("ns", "ipc")))
}

func (s *Store) loadContainer(id string) (*Container, error) {
	c := &Container{id: id, store: s, exited: make(chan struct{})}
	if err := readFormat(s.root("containers", id, containerFile), &c.record); err != nil {
		return nil, err
	}
	r := &c.record
	if s.newer[r.SandboxID] {
		return nil, fmt.Errorf("container of pod %s: %w", r.SandboxID, errNewer)
	}
	config := &runtimeapi.ContainerConfig{}
	if err := decodeMessage(r.Config, config); err != nil {
		return nil, err
	}
	if r.ID != id {
		return nil, fmt.Errorf("record of container %q: %w", r.ID, ErrInvalid)
	}
	if c.box = s.sandboxes[r.SandboxID]; c.box == nil {
		// Its sandbox was never finished or is damaged: it can only be taken away.
		c.box = &Sandbox{id: r.SandboxID, store: s, verb: newVerbLock()}
	}
	c.status.Store(&ContainerStatus{
		ID: id, SandboxID: r.SandboxID, Config: config, ImageID: r.ImageID, VolumeImages: r.VolumeImages, State: stateUnknown, CreatedAt: r.CreatedAt,
		LogPath: r.LogPath, StopSignal: r.StopSignal, User: c.readUser(),
		Resources: c.readResources(config), Bundle: c.root(),
	})
	return c, nil
}

// readUser returns the user that the container's status reports, nil when
// the bundle cannot be read.
func (c *Container) readUser() *runtimeapi.ContainerUser {
	spec, err := c.readBundle()
	if err != nil {
		if exists(c.root(bundle)) {
			klog.ErrorS(err, "The container cannot take commands any more: create it anew", "container", c.id, "pod", c.record.SandboxID)
		}
		return nil
	}
	u := spec.Process.User
	return oci.User{UID: u.UID, GID: u.GID, AdditionalGids: u.AdditionalGids}.CRI()
}

// recover finds the container's monitor or its last words and makes it known
// again, or says how to undo it.
func (c *Container) recover(ctx context.Context) []func(context.Context) error {
	if _, ok := c.store.sandboxes[c.box.id]; !ok || !exists(c.root(bundle)) {
		return []func(context.Context) error{c.undo}
	}
	c.store.addContainer(c)
	known := newFlight[*Container](c.id)
	known.finish(c, nil)
	c.box.mu.Lock()
	c.box.names[containerKey(c.Status().Config)] = known
	c.box.mu.Unlock()
	fault.Point("recover.container.known")
	if c.recoverEnd() {
		return nil
	}
	if rebooted(c.record.Boot, c.store.boot) {
		c.publishLost(c.unseenEnd())
		return nil
	}
	c.restoreLimits()
	fault.Point("recover.limits.restored")
	adopting, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := c.adopt(adopting, c.unseenEnd()); err != nil {
		return []func(context.Context) error{func(context.Context) error {
			c.store.watchers.Go(c.awaitMonitor)
			return nil
		}}
	}
	return nil
}

// unseenEnd describes the end of a container that no daemon has seen and of which
// its monitor has left no readable record. Some times are bounds only.
func (c *Container) unseenEnd() lostRecord {
	l := lostRecord{Reason: reasonUnknown, StartedAt: c.record.CreatedAt, FinishedAt: time.Now().UnixNano()}
	l.Message = "the container ended while no daemon ran and its monitor left no record"
	if rebooted(c.record.Boot, c.store.boot) {
		l.Message = "the machine was started anew: the container ended with the last run of it at the latest"
		if at := bootedAt(); at > l.StartedAt && at < l.FinishedAt {
			l.FinishedAt = at
		}
	}
	if _, err := conmon.ReadExit(c.root()); err != nil && !errors.Is(err, os.ErrNotExist) {
		l.Message = "the container ended while no daemon ran, and the record of how cannot be read: " + err.Error()
	}
	return l
}

// undo takes away a container that was never finished.
func (c *Container) undo(ctx context.Context) error {
	cg, err := c.cgroup()
	if err == nil {
		err = cg.Kill()
	}
	if err != nil {
		klog.V(4).InfoS("Kill half made container", "container", c.id, "err", err)
	}
	return c.erase(ctx)
}

// recoverEnd publishes an exit that is on record.
func (c *Container) recoverEnd() bool {
	if exit, err := conmon.ReadExit(c.root()); err == nil {
		c.publishExit(exit)
		return true
	}
	var l lostRecord
	if err := ledger.Read(c.root(lostFile), &l); err == nil {
		c.publish(l.apply)
		return true
	}
	return false
}

// adopt connects to the container's monitor. The error means that it may answer
// later; lost says of one that is gone what is to be reported.
func (c *Container) adopt(ctx context.Context, lost lostRecord) error {
	m, err := c.store.binary.Connect(ctx, c.state())
	switch {
	case errors.Is(err, conmon.ErrGone):
		if !c.recoverEnd() {
			c.killLeftovers()
			fault.Point("recover.leftovers.killed")
			c.publishLost(lost)
		}
		return nil
	case err != nil:
		return err
	}
	c.mu.Lock()
	c.monitor = m
	c.mu.Unlock()
	left := c.leftExecs()
	c.update(func(s *ContainerStatus) {
		s.State, s.PID, s.StartedAt = stateCreated, m.PID(), m.StartedAt()
		if m.State() == conmon.StateRunning {
			s.State = stateRunning
		}
		s.Rootfs = fmt.Sprintf("/proc/%d/root", m.PID())
	})
	c.store.watchers.Go(func() { c.watch(m) })
	c.store.background.Go(func() { c.dropExecs(left) })
	fault.Point("recover.adopted")
	return nil
}

// awaitMonitor waits until a monitor that does not answer does, or is gone, or the daemon ends.
func (c *Container) awaitMonitor() {
	klog.InfoS("Monitor does not answer, the container's state is unknown", "container", c.id, "pod", c.box.id)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if !c.onLeave(cancel) {
		return
	}
	for ctx.Err() == nil {
		err := c.adopt(ctx, lostRecord{Reason: reasonMonitorLost, Message: monitorLost})
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(connectTimeout): // its queue of connections is full
		}
	}
}
