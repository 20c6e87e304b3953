package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
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
	tasks   []*os.File // v1: to join the cgroup by
	pending *conmon.Pending
	beside  sync.WaitGroup // what goes on beside the main line of create
	err     [3]error       // of beside, one each
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
	l := &launch{Container: c, config: config, image: image, labels: oci.ContainerLabels(c.box.record.Labels, config)}
	if err := l.checkOptions(); err != nil {
		return err
	}
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
	l.prepareBeside()
	// Its errors are create's, and the monitor is not needed when there is one.
	defer func() {
		l.beside.Wait()
		closeAll(l.tasks) // of a container that was not made
		if err != nil && l.pending != nil {
			err = errors.Join(err, l.pending.Abandon())
		}
	}()
	f.enter("mount the root file system")
	if err := l.mountRootfs(); err != nil {
		return err
	}
	defer l.close()
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
	f.enter("prepare mount points and limits")
	if err := l.prepare(); err != nil {
		return nil, err
	}
	fault.Point("create.prepared")
	f.enter("launch")
	return l.launch(ctx)
}

// close closes what only the making of the container needs.
func (l *launch) close() {
	for _, f := range append(l.sources, l.rootfs, l.userNS) {
		if f != nil {
			_ = f.Close() // nothing was written
		}
	}
}

func (l *launch) makeDirectories() error {
	for _, dir := range []string{l.root(), l.state()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("make container: %w", err)
		}
	}
	fault.Point("create.directories.made")
	return nil
}

func (l *launch) makeRecord() error {
	log, err := logPath(l.box.Status().Config, l.config)
	if err != nil {
		return err
	}
	config, err := encodeMessage(l.config)
	if err != nil {
		return err
	}
	signal, err := stopSignal(l.config, &l.image.Config)
	if err != nil {
		return err
	}
	l.record = containerRecord{
		ID: l.id, SandboxID: l.box.id, CreatedAt: now(l.box.lastNamed(l.config.GetMetadata().GetName())),
		Config: config, ImageID: l.image.ID, VolumeImages: l.image.volumeIDs(), StopSignal: signal, LogPath: log,
		Cgroup: l.box.containerCgroup(l.id), Boot: l.store.boot,
	}
	return nil
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

// prepareBeside does what needs nothing of the image: it starts a monitor without its work, and makes the
// cgroup after the record. What the root file system has outside of the container's directory ends with the daemon.
func (l *launch) prepareBeside() {
	l.beside.Go(func() {
		l.pending, l.err[1] = l.store.binary.Spawn(l.state(), l.store.monitors.dir, l.store.host.ClampOOMScoreAdj(monitorOOMScoreAdj))
	})
	l.beside.Go(func() { l.err[0] = l.recordAndMakeCgroup() })
}

func (l *launch) recordAndMakeCgroup() (err error) {
	if err := writeRecord(l.root(containerFile), &l.record, false); err != nil {
		return err
	}
	fault.Point("create.recorded")
	if l.cgroup, err = l.store.cgroups.Make(l.record.Cgroup); err != nil {
		return err
	}
	l.tasks, err = openJoins(l.cgroup.JoinPaths())
	return err
}

// prepare sets the limits beside what the launch needs in the image.
func (l *launch) prepare() error {
	l.beside.Wait()
	if err := errors.Join(l.err[:]...); err != nil {
		return err
	}
	l.beside.Go(func() { l.err[0] = l.cgroup.Limit(l.spec.Linux.Resources) })
	err := l.prepareImage()
	l.beside.Wait()
	if err = errors.Join(l.err[0], err); err != nil {
		return err
	}
	l.beside.Go(func() { l.err[2] = l.writeBundle() })
	return nil
}

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

// launch starts the monitor; it returns once the child waits for Start.
func (l *launch) launch(ctx context.Context) (*conmon.Monitor, error) {
	o := &l.options
	o.Own = [3]bool{l.config.GetStdin(), true, true}
	if err := l.store.compileOptions(o, l.cgroup, l.spec.Linux.Seccomp); err != nil {
		return nil, err
	}
	program, err := oci.Compile(l.spec, o)
	if err != nil {
		return nil, err
	}
	var open fileList
	defer open.close()
	files, err := l.programFiles(&open, program)
	if err != nil {
		return nil, err
	}
	fault.Point("create.files.opened")
	exitDir := open.dir(l.root())
	log := open.keep(l.openLog())
	oom := open.keep(l.cgroup.OOMFile())
	if open.err != nil {
		return nil, open.err
	}
	fault.Point("create.log.opened")
	l.program = program
	pending := l.pending
	l.pending = nil // from here on it ends by itself when the launch fails
	return pending.Launch(ctx, &conmon.Launch{
		Dir: l.state(), ExitDir: exitDir, Log: log, LogLineBytes: l.store.config.LogLineBytes, OOM: oom,
		Program: program, Files: files,
		Terminal: l.spec.Process.Terminal, Stdin: l.config.GetStdin(), Place: l.store.monitors.tasks,
	})
}

// programFiles opens what the program wants, in its order.
func (l *launch) programFiles(open *fileList, program *oci.Program) ([]*os.File, error) {
	files, tasks := []*os.File(nil), l.tasks
	for _, kind := range program.Files {
		switch kind {
		case oci.FileRoot:
			files = append(files, l.rootfs)
		case oci.FileMountNS:
			ns := l.store.emptyNS
			if l.userNS != nil {
				ns = l.store.userNS
			}
			files = append(files, ns)
		case oci.FilePIDNS:
			files = append(files, open.file(pidNamespace(l.spec)))
		case oci.FileCgroup:
			files = append(files, open.keep(l.cgroup.Dir()))
		case oci.FileTasks:
			files, tasks = append(files, tasks[0]), tasks[1:]
		case oci.FileTerminal, oci.FileResume: // of other programs
		case oci.FileSource:
			files = append(files, l.sources[0])
		default: // the ones after it
			files = append(files, l.sources[kind-oci.FileSource])
		}
	}
	return files, open.err
}

func pidNamespace(spec *specs.Spec) string {
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.PIDNamespace {
			return ns.Path
		}
	}
	return ""
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

// fileList collects files to be closed together; the first error sticks.
type fileList struct {
	files []*os.File
	err   error
}

func (l *fileList) keep(f *os.File, err error) *os.File {
	if err != nil {
		l.err = errors.Join(l.err, err)
		return nil
	}
	if f != nil {
		l.files = append(l.files, f)
	}
	return f
}

func (l *fileList) file(path string) *os.File {
	return l.keep(os.OpenFile(path, os.O_RDONLY, 0))
}

func (l *fileList) dir(path string) *os.File {
	return l.keep(os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0))
}

func (l *fileList) close() {
	for _, f := range l.files {
		_ = f.Close() // read-only, or handed over already
	}
}
