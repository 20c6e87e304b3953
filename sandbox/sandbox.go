package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// Sandbox is one pod sandbox: namespaces, a network and a place for containers.
type Sandbox struct {
	id     string
	store  *Store
	verb   *verbLock
	status atomic.Pointer[SandboxStatus]
	meter  meter
	net    netFile
	shared atomic.Bool           // other pods are in its cgroup, too
	own    map[string]*Container // by id; guarded by the Store's mu

	// mu guards what follows, and the publishing of status.
	mu     sync.Mutex
	record sandboxRecord
	names  map[string]*flight[*Container] // by name and attempt
}

func newSandbox(s *Store, id string, config *runtimeapi.PodSandboxConfig, handler string) *Sandbox {
	b := &Sandbox{id: id, store: s, verb: newVerbLock(), names: map[string]*flight[*Container]{}, own: map[string]*Container{}}
	b.record = sandboxRecord{ID: id, Handler: handler, CreatedAt: now(s.lastOf(config.GetMetadata())), Boot: s.boot}
	b.record.Cgroup = config.GetLinux().GetCgroupParent()
	if b.record.Cgroup == "" {
		b.record.Cgroup = filepath.Join("/", s.config.CgroupParent, id)
		b.record.OwnCgroup = true
	}
	status := &SandboxStatus{
		ID: id, Config: config, Handler: handler, State: sandboxNotReady,
		CreatedAt: b.record.CreatedAt, Cgroup: b.record.Cgroup,
	}
	if b.ownNetwork(config) {
		status.NetNS = b.state("ns", "net")
	}
	b.status.Store(status)
	return b
}

// Status returns the current state; it never waits.
func (b *Sandbox) Status() *SandboxStatus { return b.status.Load() }

func (b *Sandbox) root(parts ...string) string {
	return b.store.root(append([]string{"sandboxes", b.id}, parts...)...)
}

func (b *Sandbox) state(parts ...string) string {
	return b.store.state(append([]string{"sandboxes", b.id}, parts...)...)
}

func namespaceOptions(config *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	return config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (b *Sandbox) ownNetwork(config *runtimeapi.PodSandboxConfig) bool {
	return namespaceOptions(config).GetNetwork() != runtimeapi.NamespaceMode_NODE
}

func (b *Sandbox) ownIPC(config *runtimeapi.PodSandboxConfig) bool {
	return namespaceOptions(config).GetIpc() != runtimeapi.NamespaceMode_NODE
}

// namespaces returns what the pod has of its own. With the host's network
// goes the host's name (UTS namespace).
func (b *Sandbox) namespaces() (*namespaces, error) {
	config := b.Status().Config
	n := &namespaces{dir: b.state("ns"), net: b.ownNetwork(config), ipc: b.ownIPC(config)}
	if n.net {
		n.hostname = b.hostname()
	}
	var err error
	if n.sysctls, err = oci.SandboxSysctls(config); err != nil {
		return nil, err
	}
	n.user, n.binary = b.ownUser(), b.store.binary
	n.ids, err = b.ids()
	return n, err
}

func (b *Sandbox) hostname() string {
	config := b.Status().Config
	if h := config.GetHostname(); h != "" && b.ownNetwork(config) {
		return h
	}
	return b.store.host.Hostname
}

func (b *Sandbox) pod() network.Pod {
	config := b.Status().Config
	m := config.GetMetadata()
	return network.Pod{
		ID: b.id, Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(),
		NetNS:        b.Status().NetNS,
		PortMappings: config.GetPortMappings(),
		DNS:          config.GetDnsConfig(),
		Annotations:  config.GetAnnotations(),
		CgroupParent: b.record.Cgroup,
	}
}

// run makes the sandbox, or leaves nothing.
func (b *Sandbox) run(ctx context.Context, f *flight[*Sandbox]) (err error) {
	start := time.Now()
	defer func() {
		if err == nil {
			return
		}
		f.enter("clean up")
		undo := b.release(ctx)
		if undo == nil {
			undo = b.remove(ctx)
		}
		if undo != nil {
			// It stays listed, not ready, until a Stop and a Remove succeed.
			b.store.addSandbox(b)
			err = errors.Join(err, fmt.Errorf("clean up: %w", undo))
		}
	}()
	config := b.Status().Config
	fault.Point("run.begun")
	f.enter("write the record")
	if b.record.Config, err = encodeMessage(config); err != nil {
		return err
	}
	if b.record.Labels, err = b.store.newLabels(config); err != nil {
		return err
	}
	b.update(func(st *SandboxStatus) { st.Labels = b.record.Labels })
	if err := os.Mkdir(b.root(), 0o700); err != nil {
		return fmt.Errorf("make sandbox: %w", err)
	}
	fault.Point("run.directory.made")
	// After a power cut only a network's plugins have something to be told.
	if err := b.writeRecord(b.ownNetwork(config)); err != nil {
		return err
	}
	fault.Point("run.recorded")
	cgroup := make(chan error, 1)
	go func() { cgroup <- b.makeCgroup() }()
	f.enter("make namespaces")
	att, err := b.makeNamespaces(ctx, f)
	if err = errors.Join(err, <-cgroup); err != nil {
		return err
	}
	fault.Point("run.attached")
	f.enter("write pod files")
	if err := b.writeFiles(att); err != nil {
		return err
	}
	fault.Point("run.files.written")
	b.record.Attachment, b.record.Ready = att, true
	if err := b.writeRecord(false); err != nil {
		return err
	}
	fault.Point("run.ready.recorded")
	b.update(func(st *SandboxStatus) {
		st.State = sandboxReady
		if att != nil {
			st.IPs = att.IPs
		}
	})
	b.store.emit(b.id, b, func() { b.store.addSandbox(b) }, eventCreated, eventStarted)
	fault.Point("run.published")
	klog.V(2).InfoS("Sandbox is ready", "pod", b.id, "name", config.GetMetadata().GetName(), "took", time.Since(start))
	return nil
}

func (b *Sandbox) makeNamespaces(ctx context.Context, f *flight[*Sandbox]) (*network.Attachment, error) {
	ns, err := b.namespaces()
	if err != nil {
		return nil, err
	}
	if err := b.mountState(); err != nil {
		return nil, err
	}
	fault.Point("run.state.mounted")
	if err := ns.create(); err != nil {
		return nil, err
	}
	fault.Point("run.namespaces.pinned")
	if ns.ipc {
		if err := b.makeShm(); err != nil {
			return nil, err
		}
	}
	fault.Point("run.shm.mounted")
	if !ns.net {
		return nil, nil
	}
	f.enter("attach the network")
	return b.store.net.Attach(ctx, b.pod())
}

// mountState mounts a small tmpfs for the pod's files and pins. All that is mounted
// on it goes with it: taking the pod's mounts away costs one wait for the kernel's
// readers of the mount table, not one for each.
func (b *Sandbox) mountState() error {
	if err := os.Mkdir(b.state(), 0o700); err != nil {
		return fmt.Errorf("make sandbox: %w", err)
	}
	fault.Point("run.state.directory.made")
	if err := unix.Mount("cri-runtime", b.state(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, labelled("mode=700,size=4m,nr_inodes=64", b.record.Labels.Mount)); err != nil {
		return fmt.Errorf("make sandbox: mount tmpfs on %s: %w", b.state(), err)
	}
	if err := os.Mkdir(b.state("ns"), 0o700); err != nil {
		return fmt.Errorf("make sandbox: %w", err)
	}
	return nil
}

// unmountState undoes mountState; idempotent. A namespace lives on while a process is in it.
func (b *Sandbox) unmountState() error {
	for {
		err := unix.Unmount(b.state(), unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", b.state(), err)
		}
	}
	fault.Point("release.unmounted")
	if err := os.RemoveAll(b.state()); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}

// makeShm mounts the /dev/shm that the pod's containers share.
func (b *Sandbox) makeShm() error {
	dir := b.state("shm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make /dev/shm: %w", err)
	}
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, labelled("mode=1777,size=65536k", b.record.Labels.Mount)); err != nil {
		return fmt.Errorf("make /dev/shm: mount tmpfs on %s: %w", dir, err)
	}
	return b.give(dir)
}

// writeRecord writes the record; the caller has the verb lock or is the only
// one who knows the sandbox.
func (b *Sandbox) writeRecord(durable bool) error {
	return writeRecord(b.root(sandboxFile), &b.record, durable)
}

// Stop ends the containers and takes the network away; idempotent.
func (b *Sandbox) Stop(ctx context.Context) error {
	if err := b.verb.lock(ctx, "stop sandbox"); err != nil {
		return err
	}
	defer b.verb.unlock()
	return b.stop(ctx)
}

func (b *Sandbox) stop(ctx context.Context) error {
	if err := b.stopContainers(ctx); err != nil {
		return err
	}
	fault.Point("stoppod.containers.ended")
	// From here on no container can be created any more, by the next daemon neither.
	if b.Status().State == sandboxReady {
		b.markStopping()
		fault.Point("stoppod.recorded")
		b.update(func(st *SandboxStatus) { st.State = sandboxNotReady })
		b.store.emit(b.id, b, nil, eventStopped)
	}
	fault.Point("stoppod.unready")
	if b.record.Stopped {
		return nil
	}
	if err := b.release(ctx); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", b.id, err)
	}
	fault.Point("stoppod.released")
	b.record.Stopped = true
	// On a full disk, which removing pods may mend, the next daemon finishes the stop once more.
	if err := b.writeRecord(false); err != nil {
		klog.ErrorS(err, "Record the stop of a sandbox", "pod", b.id)
	}
	return nil
}

// markStopping is best effort: without it a daemon that comes now lists the pod as ready until it is stopped again.
func (b *Sandbox) markStopping() {
	b.record.Stopping = true
	f, err := os.OpenFile(b.root(stoppingFile), os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		klog.ErrorS(err, "Mark a sandbox as stopping", "pod", b.id)
	}
}

// release undoes run but for the record, the cgroup and the directories;
// idempotent. Each part is tried although another one failed.
func (b *Sandbox) release(ctx context.Context) error {
	var all error
	b.net.close() // it would keep the namespace
	b.meter.close()
	config := b.Status().Config
	if b.ownNetwork(config) {
		pod := b.pod()
		if !exists(pod.NetNS) {
			pod.NetNS = ""
		}
		all = b.store.net.Detach(ctx, pod, b.record.Attachment)
		fault.Point("release.detached")
	}
	all = errors.Join(all, b.killPause())
	fault.Point("release.pause.killed")
	if all != nil {
		// Without the namespace a plugin that has failed could not try again.
		return all
	}
	fault.Point("release.unmounting")
	return b.unmountState()
}

// Remove stops the sandbox and removes it and its containers; idempotent.
func (b *Sandbox) Remove(ctx context.Context) error {
	if err := b.verb.lock(ctx, "remove sandbox"); err != nil {
		return err
	}
	defer b.verb.unlock()
	if _, err := b.store.Sandbox(b.id); errors.Is(err, ErrNotFound) {
		return nil
	}
	if err := b.stop(ctx); err != nil {
		return err
	}
	for _, c := range b.Containers() {
		if err := c.remove(ctx); err != nil {
			return err
		}
	}
	fault.Point("removepod.containers.removed")
	if err := b.remove(ctx); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", b.id, err)
	}
	fault.Point("removepod.removed")
	b.store.emit(b.id, b, func() { b.store.dropSandbox(b) }, eventDeleted)
	return nil
}

// remove takes away what release leaves.
func (b *Sandbox) remove(ctx context.Context) error {
	if b.record.OwnCgroup {
		cg, err := b.store.cgroups.Load(b.record.Cgroup)
		if err == nil {
			err = cg.Remove(ctx)
		}
		if err != nil && !errors.Is(err, oci.ErrNotFound) {
			return err
		}
	}
	fault.Point("removepod.cgroup.removed")
	if err := b.store.discard(b.root()); err != nil {
		return err
	}
	own := b.record.Labels
	b.update(func(st *SandboxStatus) { st.Labels = oci.Labels{} })
	b.store.releaseLabels(own)
	return nil
}

// Containers returns those of this sandbox, the newest first: of several with
// one name a kubelet with the evented PLEG takes the first for the present one.
func (b *Sandbox) Containers() []*Container {
	b.store.mu.RLock()
	own := slices.Collect(maps.Values(b.own))
	b.store.mu.RUnlock()
	slices.SortFunc(own, func(x, y *Container) int { return cmp.Compare(y.Status().CreatedAt, x.Status().CreatedAt) })
	return own
}

// stopContainers kills all containers at once.
func (b *Sandbox) stopContainers(ctx context.Context) error {
	own := b.Containers()
	errs := make([]error, len(own))
	var wait sync.WaitGroup
	for i, c := range own {
		wait.Go(func() { errs[i] = c.kill(ctx) })
	}
	wait.Wait()
	return errors.Join(errs...)
}
