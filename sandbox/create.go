package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/conmon"
	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// CreateContainer creates a container in a ready sandbox. A repeated call
// for the same name and attempt joins the first.
func (b *Sandbox) CreateContainer(ctx context.Context, config *runtimeapi.ContainerConfig, image *Image) (*Container, error) {
	if err := oci.ValidateContainer(config, b.Status().Config); err != nil {
		return nil, err
	}
	key := containerKey(config)
	b.mu.Lock()
	create, again := b.names[key]
	if !again {
		create = newFlight[*Container](newID())
		b.names[key] = create
	}
	b.mu.Unlock()
	if !again {
		c := &Container{id: create.id, box: b, store: b.store, exited: make(chan struct{})}
		b.store.background.Go(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), verbTimeout)
			defer cancel()
			err := c.create(ctx, create, config, image)
			if err != nil {
				b.dropName(key)
				err = fmt.Errorf("create container in sandbox %s: %w", b.id, err)
			}
			create.finish(c, err)
		})
	}
	return create.wait(ctx)
}

func containerKey(config *runtimeapi.ContainerConfig) string {
	m := config.GetMetadata()
	return fmt.Sprintf("%q %d", m.GetName(), m.GetAttempt())
}

func (b *Sandbox) dropName(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.names, key)
}

func (b *Sandbox) forgetName(c *Container) { b.dropName(containerKey(c.Status().Config)) }

// launch is a container on its way into being.
type launch struct {
	*Container
	config  *runtimeapi.ContainerConfig
	image   *Image
	rootfs  *os.File
	userNS  *os.File // the pod's, nil: the host's
	ids     idMap
	sources []*os.File // of the mounts whose source is prepared here
	spec    *specs.Spec
	user    oci.User
	labels  oci.Labels
	options oci.CompileOptions
	cgroup  *oci.Cgroup
	limits  chan *specs.LinuxResources // of the spec, once it is made
	tasks   []*os.File                 // v1: to join the cgroup by
	oom     *os.File                   // counts the kills of the cgroup, nil: nothing does
	pending *conmon.Pending
	sealed  *os.File       // the launch program
	log     *os.File       // nil: there is none
	beside  sync.WaitGroup // what goes on beside the main line of create
	err     [3]error       // of beside: of the cgroup, the monitor, the bundle
}

// create makes the container, or leaves nothing.
func (c *Container) create(ctx context.Context, f *flight[*Container], config *runtimeapi.ContainerConfig, image *Image) (err error) {
	f.enter("wait for the pod")
	if err := c.box.verb.lock(ctx, "create container"); err != nil {
		return err
	}
	defer c.box.verb.unlock()
	if err := c.box.requireReady("create container"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.enter("clean up")
			err = errors.Join(err, c.erase(ctx))
		}
	}()
	fault.Point("create.begun")
	l := &launch{Container: c, config: config, image: image, labels: oci.ContainerLabels(c.box.record.Labels, config), limits: make(chan *specs.LinuxResources, 1)}
	if err := l.checkOptions(); err != nil {
		return err
	}
	// The errors of what goes on beside are create's, and the monitor is not needed when there is one.
	defer func() {
		close(l.limits)
		l.beside.Wait()
		l.close()
		if err != nil && l.pending != nil {
			err = errors.Join(err, l.pending.Abandon())
		}
	}()
	f.enter("make directories")
	if err := l.makeDirectories(); err != nil {
		return err
	}
	release, err := c.box.holdScope(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := l.makeRecord(); err != nil {
		return err
	}
	l.beside.Go(func() { l.err[0] = l.recordAndMakeCgroup() })
	if l.pending == nil {
		l.beside.Go(func() { l.pending, l.err[1] = l.store.spawnMonitor(l.state()) })
	}
	f.enter("mount the root file system")
	if err := l.mountRootfs(); err != nil {
		return err
	}
	fault.Point("create.rootfs.mounted")
	m, err := l.makeProcess(ctx, f)
	if err != nil {
		return err
	}
	fault.Point("create.launched")
	l.beside.Wait()
	if err := l.err[2]; err != nil {
		return errors.Join(err, l.cgroup.Kill(), m.Close())
	}
	fault.Point("create.bundle.written")
	// With its final name the bundle says that the container was created.
	if err := os.Rename(l.root(unfinishedBundle), l.root(bundle)); err != nil {
		return errors.Join(err, l.cgroup.Kill(), m.Close())
	}
	fault.Point("create.bundle.renamed")
	l.publish(m)
	return nil
}

// makeProcess makes what the container's process needs, and that, up to where it waits for Start.
func (l *launch) makeProcess(ctx context.Context, f *flight[*Container]) (*conmon.Monitor, error) {
	f.enter("make the spec")
	if err := l.makeSpec(ctx); err != nil {
		return nil, err
	}
	f.enter("label volumes")
	if err := l.relabelVolumes(ctx); err != nil {
		return nil, err
	}
	l.limits <- l.spec.Linux.Resources
	f.enter("prepare mount points")
	if err := l.prepareImage(); err != nil {
		return nil, err
	}
	if err := l.compile(); err != nil {
		return nil, err
	}
	f.enter("make the cgroup and its limits")
	if err := l.awaitBeside(); err != nil {
		return nil, err
	}
	fault.Point("create.prepared")
	f.enter("launch")
	return l.launch(ctx)
}

// close closes what only the making of the container needs.
func (l *launch) close() {
	closeAll(l.tasks) // of a container that was not made
	for _, f := range append(l.sources, l.rootfs, l.userNS, l.sealed, l.log, l.oom) {
		if f != nil {
			_ = f.Close() // nothing was written
		}
	}
}

// makeDirectories makes the container's directories; a monitor may be in one of them already.
func (l *launch) makeDirectories() error {
	err := os.Mkdir(l.root(), 0o700)
	if err == nil {
		l.pending, err = l.store.spare.take(l.state())
	}
	if err != nil {
		return fmt.Errorf("make container: %w", err)
	}
	fault.Point("create.directories.made")
	return nil
}

// makeRecord makes all of the record but its config.
func (l *launch) makeRecord() error {
	log, err := logPath(l.box.Status().Config, l.config)
	if err != nil {
		return err
	}
	signal, err := stopSignal(l.config, &l.image.Config)
	if err != nil {
		return err
	}
	l.record = containerRecord{
		ID: l.id, SandboxID: l.box.id, CreatedAt: now(l.box.lastNamed(l.config.GetMetadata().GetName())),
		ImageID: l.image.ID, VolumeImages: l.image.volumeIDs(), StopSignal: signal, LogPath: log,
		Cgroup: l.box.containerCgroup(l.id), Boot: l.store.boot,
	}
	l.cgroup, err = l.store.cgroups.At(l.record.Cgroup)
	return err
}

// logPath joins the pod's log directory and the container's path below it.
func logPath(pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) (string, error) {
	dir, file := pod.GetLogDirectory(), config.GetLogPath()
	if dir == "" || file == "" {
		return "", nil
	}
	if !filepath.IsAbs(dir) || !filepath.IsLocal(file) {
		return "", fmt.Errorf("config.log_path: %q is not below the pod's log directory %q: %w", file, dir, ErrInvalid)
	}
	return filepath.Join(dir, file), nil
}

// makeSpec resolves the user and writes config.json.
func (l *launch) makeSpec(ctx context.Context) (err error) {
	if l.user, err = oci.ResolveUser(l.rootfs, l.config, &l.image.Config); err != nil {
		return err
	}
	devices, err := oci.ReadDevices(l.config)
	if err != nil {
		return err
	}
	namespaces, err := l.podNamespaces(ctx)
	if err != nil {
		return err
	}
	kind, profile, err := oci.SeccompProfile(l.config)
	if err != nil {
		return err
	}
	in := &oci.Container{
		ID: l.id, Pod: l.box.Status().Config, Config: l.config,
		Image: &l.image.Config, ImageID: l.image.ID,
		User: l.user, Host: l.store.host, Rootfs: "/",
		Namespaces: namespaces, Cgroup: l.record.Cgroup, Files: l.box.podFiles(),
		Seccomp: &specs.LinuxSeccomp{}, Devices: devices, Labels: l.box.record.Labels,
	}
	if l.spec, err = oci.ContainerSpec(in); err != nil {
		return err
	}
	if err := checkAppArmor(l.spec.Process.ApparmorProfile); err != nil {
		return err
	}
	if err := l.store.injectDevices(l.spec, l.config); err != nil {
		return err
	}
	if l.userNS != nil {
		if err := oci.BindDevices(l.spec, oci.DevicePaths(in)); err != nil {
			return err
		}
	}
	oci.SortMounts(l.spec.Mounts)
	// Which profile that is depends on the capabilities just found.
	if err := l.store.confine(l.spec, kind, profile); err != nil {
		return err
	}
	for _, note := range oci.LeftOut(in) {
		klog.V(2).InfoS("Left out", "container", l.id, "pod", l.box.id, "what", note)
	}
	return nil
}

// podNamespaces names the pod's namespaces that the container joins.
func (l *launch) podNamespaces(ctx context.Context) (oci.Namespaces, error) {
	pod := l.box.Status().Config
	var n oci.Namespaces
	if l.box.ownNetwork(pod) {
		n.Net, n.UTS = l.box.state("ns", "net"), l.box.state("ns", "uts")
	}
	if l.box.ownUser() {
		n.User = l.box.state("ns", "user")
	}
	if l.box.ownIPC(pod) {
		n.IPC = l.box.state("ns", "ipc")
	}
	var err error
	switch oci.PIDMode(pod, l.config) {
	case runtimeapi.NamespaceMode_POD:
		n.PID, err = l.box.sharedPIDNS(ctx)
	case runtimeapi.NamespaceMode_TARGET:
		n.PID, err = l.box.targetPIDNS(l.config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetTargetId())
	case runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE:
	}
	return n, err
}

// awaitBeside waits for all that the launch needs; the bundle is written beside that.
func (l *launch) awaitBeside() error {
	l.beside.Wait()
	if err := errors.Join(l.err[:]...); err != nil {
		return err
	}
	l.beside.Go(func() { l.err[2] = l.writeBundle() })
	return nil
}

// recordAndMakeCgroup does what needs nothing of the image, beside what does: it makes the cgroup after the record. What
// the root file system has outside of the container's directory ends with the daemon.
func (l *launch) recordAndMakeCgroup() (err error) {
	if l.record.Config, err = encodeMessage(l.config); err != nil {
		return err
	}
	if err := writeRecord(l.root(containerFile), &l.record, false); err != nil {
		return err
	}
	fault.Point("create.recorded")
	if err := l.cgroup.Make(); err != nil {
		return err
	}
	if l.tasks, err = openJoins(l.cgroup.JoinPaths()); err != nil {
		return err
	}
	if l.oom, err = l.cgroup.OOMFile(); err != nil {
		return err
	}
	if limits, made := <-l.limits; made {
		return l.cgroup.Limit(limits)
	}
	return nil // create has failed
}

// prepareImage makes what the launch needs in the image.
func (l *launch) prepareImage() (err error) {
	o := &l.options
	if err := l.openSources(); err != nil {
		return err
	}
	if o.Targets, o.FileSources, err = mountPoints(l.rootfs, l.spec, l.sources, l.ids.root()); err != nil {
		return err
	}
	if cwd := l.spec.Process.Cwd; !covered(cwd, o.Targets) {
		if _, err := makeInRoot(int(l.rootfs.Fd()), cwd, false, l.ids.root()); err != nil {
			return fmt.Errorf("make working directory: %w", err)
		}
	}
	return nil
}

func (l *launch) writeBundle() error {
	encoded, err := oci.EncodeSpec(l.spec)
	if err == nil {
		encoded, err = ledger.Seal(encoded)
	}
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.root(unfinishedBundle), encoded, 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

// publish makes the container known.
func (l *launch) publish(m *conmon.Monitor) {
	c := l.Container
	c.monitor = m
	c.joins.keep(l.tasks, &c.store.joins)
	l.tasks = nil
	c.keepForExec(l.spec, l.options.Seccomp, l.options.SeccompFlags)
	c.status.Store(&ContainerStatus{
		ID: c.id, SandboxID: c.box.id, Config: l.config, ImageID: l.image.ID, VolumeImages: c.record.VolumeImages,
		State: stateCreated, CreatedAt: c.record.CreatedAt,
		LogPath: c.record.LogPath, PID: m.PID(), StopSignal: c.record.StopSignal,
		User: l.user.CRI(), Resources: &runtimeapi.ContainerResources{Linux: l.config.GetLinux().GetResources()},
		Rootfs: fmt.Sprintf("/proc/%d/root", m.PID()), Bundle: c.root(),
	})
	c.store.emit(c.id, c.box, func() { c.store.addContainer(c) }, eventCreated)
	fault.Point("create.published")
	c.store.watchers.Go(func() { c.watch(m) })
}
