package sandbox

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/conmon"
	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/oci/seccomp"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// verbTimeout bounds a verb that goes on after its client has gone.
const verbTimeout = 5 * time.Minute

// closeTimeout bounds the wait for verbs under way when the daemon ends; what
// they leave half done is undone by the next start, as after a crash.
const closeTimeout = 5 * time.Second

// Network attaches sandboxes to the pod network.
type Network interface {
	Attach(ctx context.Context, pod network.Pod) (*network.Attachment, error)
	Detach(ctx context.Context, pod network.Pod, att *network.Attachment) error
	// Restore mends what the network keeps of an attachment that is there.
	Restore(pod network.Pod, att *network.Attachment) error
	Check(ctx context.Context, pod network.Pod, att *network.Attachment) error
	GC(ctx context.Context, keep func() (ids []string, err error)) error
}

// Config is what a Store is opened with.
type Config struct {
	Root         string   // durable state
	State        string   // state that a reboot may take away
	CgroupDriver string   // "cgroupfs" or "systemd"
	CgroupParent string   // for pods that name none
	LogLineBytes int      // longest log line in one piece
	CDISpecDirs  []string // of CDI specifications, the later ones win

	without []string // features of the kernel that tests do without
}

// complete fills in what a configuration leaves out.
func (c *Config) complete() {
	c.CgroupParent = cmp.Or(c.CgroupParent, map[string]string{"systemd": "cri-runtime.slice"}[c.CgroupDriver], "/cri-runtime")
}

// Store holds all sandboxes and containers. Its exported methods are safe for
// concurrent use, and the reading ones never wait for a verb.
type Store struct {
	config   Config
	boot     string // the kernel's boot id
	net      Network
	host     *oci.Host
	cgroups  *oci.Cgroups
	v1       []oci.Hierarchy
	binary   *conmon.Binary
	emptyNS  *os.File // the mount namespace that containers start from
	userNS   *os.File // the same for those with a user namespace, nil where there can be none
	monitors monitorPlace
	filters  seccomp.Cache
	measurer *measurer
	features Features
	events   events
	readers  sync.Pool    // of *oci.StatsReader
	netFiles atomic.Int32 // open for statistics
	joins    atomic.Int32 // tasks files that are kept open
	execs    atomic.Int32 // commands that run beside the containers' own
	output   *pool        // for their output
	lag      *pool        // for output that attached clients have not taken

	userNSProblem error // why there is no userNS
	// newer are the pods that a later version has written: they and what is in
	// them are left as they are. Only recover changes it.
	newer map[string]bool

	// mu guards the three maps and no object in them.
	mu         sync.RWMutex
	sandboxes  map[string]*Sandbox
	containers map[string]*Container
	names      map[string]*flight[*Sandbox] // by namespace, name, uid and attempt
	halves     map[string][]chan struct{}   // closed once what an earlier daemon left half made under that name is undone

	tidying    atomic.Bool // what was left half made is being undone
	chores     chores
	background sync.WaitGroup // verbs under way and tidying
	collector  sync.WaitGroup // ends with the Store only
	quit       func()         // ends what goes on until Close
	watchers   sync.WaitGroup // they end with the connections to the monitors
}

// Open reads the records below config.Root and connects to the monitors that
// run. Cleaning up what was left half done goes on in the background.
func Open(ctx context.Context, config Config, net Network) (_ *Store, err error) {
	config.complete()
	s := &Store{
		config: config, boot: bootID(), net: net,
		sandboxes:  map[string]*Sandbox{},
		containers: map[string]*Container{},
		newer:      map[string]bool{},
		names:      map[string]*flight[*Sandbox]{},
		halves:     map[string][]chan struct{}{},
		chores:     newChores(),
		measurer:   newMeasurer(),
		output:     newPool(sharedOutput),
		lag:        newPool(sharedLag),
	}
	s.events.open()
	collecting, quit := context.WithCancel(context.WithoutCancel(ctx))
	s.quit = quit
	var undo cleanup
	defer undo.undo(&err)
	undo.add(s.Close)
	for _, dir := range []string{s.root("sandboxes"), s.root("containers"), s.root("trash"), s.root("damaged"), s.state("sandboxes"), s.state("containers")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open state: %w", err)
		}
	}
	fault.Point("start.directories.made")
	if err := skeleton(s.root("skeleton")); err != nil {
		return nil, err
	}
	fault.Point("start.skeleton.made")
	s.features.Overlay, err = probe(s.root("probe"), config.without)
	if takesNothing(err) {
		// What runs must be served all the same, and so must what gives space back.
		klog.ErrorS(err, "The disk takes nothing: no pod or container can be made", "root", config.Root)
		s.features.Overlay, err = probe(s.state("probe"), config.without)
	}
	if err != nil {
		return nil, err
	}
	fault.Point("start.overlay.probed")
	if s.host, err = oci.ReadHost(); err != nil {
		return nil, err
	}
	loadDefaultProfile(ctx, s.host)
	if s.cgroups, err = oci.NewCgroups(config.CgroupDriver); err != nil {
		return nil, err
	}
	if !s.cgroups.V2() {
		if s.v1, err = oci.ReadHierarchies(); err != nil {
			return nil, err
		}
	}
	if s.binary, err = conmon.NewBinary(); err != nil {
		return nil, err
	}
	if s.emptyNS, err = emptyMountNS(s.state("containers"), nil); err != nil {
		return nil, err
	}
	fault.Point("start.mountns.made")
	s.userNS, s.userNSProblem = emptyMountNS(s.state("containers"), mountWholeViews)
	if err := s.probeUserNamespaces(); err != nil {
		s.features.UserNamespaces.Problem = err.Error()
	}
	fault.Point("start.userns.probed")
	if s.monitors, err = openMonitorPlace(s); err != nil {
		return nil, err
	}
	fault.Point("start.monitors.cgroup.made")
	tidied, err := s.recover(ctx)
	if err != nil {
		return nil, err
	}
	s.collector.Go(func() { s.collectNetwork(collecting, tidied) })
	s.collector.Go(func() { s.chores.work(collecting) })
	return s, nil
}

// Close lets go of the monitors; no container is stopped.
func (s *Store) Close() error {
	s.quit()
	quiet := make(chan struct{})
	go func() {
		s.background.Wait()
		s.collector.Wait()
		close(quiet)
	}()
	select {
	case <-quiet:
	case <-time.After(closeTimeout):
		klog.InfoS("Work is left to the next start", "waited", closeTimeout)
	}
	var all error
	s.measurer.close()
	s.events.close()
	for _, b := range s.Sandboxes() {
		b.net.close()
		b.meter.close()
	}
	for _, c := range s.Containers() {
		c.meter.close()
		c.joins.close()
		all = errors.Join(all, c.detach())
	}
	fault.Point("close.detached")
	s.watchers.Wait()
	wait := time.Duration(0)
	if len(s.Containers()) == 0 {
		wait = monitorEndTimeout
	}
	all = errors.Join(all, s.monitors.close(wait))
	// The parent of pods that named none, which other daemons may use too.
	if s.cgroups != nil {
		if parent, err := s.cgroups.Load(filepath.Join("/", s.config.CgroupParent)); err == nil {
			all = errors.Join(all, parent.RemoveEmpty())
		}
	}
	fault.Point("close.cgroups.removed")
	for _, ns := range []*os.File{s.emptyNS, s.userNS} {
		if ns != nil {
			all = errors.Join(all, ns.Close())
		}
	}
	if s.binary != nil {
		all = errors.Join(all, s.binary.Close())
	}
	return all
}

// HasHugepages tells whether the kernel accounts huge pages to containers.
func (s *Store) HasHugepages() bool { return len(s.host.HugepageSizes) > 0 }

// Notes says in one line each what this daemon cannot do on this host.
func (s *Store) Notes() []string {
	var notes []string
	if p := s.features.Overlay.Problem; p != "" {
		notes = append(notes, "no container can have a root file system: "+p)
	}
	if n := len(s.newer); n > 0 {
		notes = append(notes, fmt.Sprintf("%d pods were written by a later version of the daemon: they run on, unlisted; start that version again, or remove them with it", n))
	}
	if s.host.SysResource {
		return notes
	}
	return append(notes, "the daemon lacks CAP_SYS_RESOURCE: OOM scores are not lowered and hard limits not raised, the nearest allowed value is set")
}

func (s *Store) root(parts ...string) string {
	return filepath.Join(append([]string{s.config.Root}, parts...)...)
}

func (s *Store) state(parts ...string) string {
	return filepath.Join(append([]string{s.config.State}, parts...)...)
}

// Sandbox returns the sandbox with that id or unambiguous prefix of an id.
func (s *Store) Sandbox(id string) (*Sandbox, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return lookup(s.sandboxes, "sandbox", id)
}

// Container returns the container with that id or unambiguous prefix.
func (s *Store) Container(id string) (*Container, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return lookup(s.containers, "container", id)
}

func lookup[T any](all map[string]T, kind, id string) (T, error) {
	if v, ok := all[id]; ok {
		return v, nil
	}
	var found T
	n := 0
	for full, v := range all {
		if id != "" && strings.HasPrefix(full, id) {
			found = v
			n++
		}
	}
	var none T
	switch n {
	case 0:
		return none, fmt.Errorf("%s %q: %w", kind, id, ErrNotFound)
	case 1:
		return found, nil
	}
	return none, fmt.Errorf("%s %q: %d of them begin so: %w", kind, id, n, ErrInvalid)
}

// Sandboxes returns all sandboxes, the oldest first.
func (s *Store) Sandboxes() []*Sandbox {
	s.mu.RLock()
	all := slices.Collect(maps.Values(s.sandboxes))
	s.mu.RUnlock()
	slices.SortFunc(all, func(a, b *Sandbox) int { return cmp.Compare(a.Status().CreatedAt, b.Status().CreatedAt) })
	return all
}

// Containers returns all containers, the oldest first.
func (s *Store) Containers() []*Container {
	s.mu.RLock()
	all := slices.Collect(maps.Values(s.containers))
	s.mu.RUnlock()
	slices.SortFunc(all, func(a, b *Container) int { return cmp.Compare(a.Status().CreatedAt, b.Status().CreatedAt) })
	return all
}

// Run creates and starts a sandbox. A repeated call for the same pod uid,
// name and attempt joins the first.
func (s *Store) Run(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (*Sandbox, error) {
	if err := oci.ValidateSandbox(config); err != nil {
		return nil, err
	}
	if p := s.features.UserNamespaces.Problem; p != "" && oci.PodHasUserNamespace(namespaceOptions(config)) {
		return nil, fmt.Errorf("config.linux.security_context.namespace_options.userns_options: no user namespaces on this node: %s: %w", p, ErrUnsupported)
	}
	key := sandboxKey(config)
	s.mu.Lock()
	run, again := s.names[key]
	if !again {
		run = newFlight[*Sandbox](newID())
		s.names[key] = run
	}
	s.mu.Unlock()
	if !again {
		b := newSandbox(s, run.id, config, handler)
		s.background.Go(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), verbTimeout)
			defer cancel()
			err := s.awaitUndone(ctx, key, run)
			if err == nil {
				err = b.run(ctx, run)
			}
			if err != nil {
				s.forgetName(key)
			}
			run.finish(b, err)
		})
	}
	b, err := run.wait(ctx)
	if err == nil && b.Status().State != sandboxReady {
		return nil, fmt.Errorf("sandbox %s of the same namespace, name, uid and attempt is stopped, remove it first: %w", b.id, ErrState)
	}
	return b, err
}

func sandboxKey(config *runtimeapi.PodSandboxConfig) string {
	m := config.GetMetadata()
	return fmt.Sprintf("%q %q %q %d", m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt())
}

func (s *Store) forgetName(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.names, key)
}

func (s *Store) addSandbox(b *Sandbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sandboxes[b.id] = b
	s.shareCgroup(b)
}

func (s *Store) dropSandbox(b *Sandbox) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sandboxes, b.id)
	delete(s.names, sandboxKey(b.Status().Config))
}

func (s *Store) addContainer(c *Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[c.id], c.box.own[c.id] = c, c
}

func (s *Store) dropContainer(c *Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
	delete(c.box.own, c.id)
}

// newID returns 64 random hexadecimal digits.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails, by its contract
	return hex.EncodeToString(b[:])
}

// discard removes a directory of an object for good. It is renamed first, so
// that the object is gone at once and a restart can't take it for a live
// one; what it holds is removed in the background.
func (s *Store) discard(dir string) error {
	trash := s.root("trash", filepath.Base(dir)+"-"+newID()[:8])
	if err := os.Rename(dir, trash); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove: %w", err)
	}
	fault.Point("discard.renamed")
	s.background.Go(func() { s.removeAll(trash) })
	return nil
}
