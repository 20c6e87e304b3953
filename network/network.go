package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/network/builtin"
)

// defaultTimeout is how long one plugin may take if the Config says nothing.
const defaultTimeout = 60 * time.Second

// Pod is what the network knows of a sandbox.
type Pod struct {
	ID, Name, Namespace, UID string
	NetNS                    string // path of the pinned network namespace; it may be gone on Detach
	PortMappings             []*runtimeapi.PortMapping
	DNS                      *runtimeapi.DNSConfig
	Annotations              map[string]string
	CgroupParent             string
}

// Attachment is the outcome of an ADD, kept in the sandbox's record as JSON
// so that CHECK, DEL and GC work after a restart, with another
// configuration in place, or after a reboot.
type Attachment struct {
	Network string   // name of the network configuration list
	IPs     []string // the addresses of the pod, primary first
	Config  []byte   // the configuration list that ADD ran with
	Result  []byte   // the plugin's result
}

// Config is what a Network is opened with.
type Config struct {
	ConfDir  string        // conflists; need not exist yet
	BinDirs  []string      // plugins, searched in this order
	CacheDir string        // libcni's cache and our records; of this daemon alone
	Timeout  time.Duration // for one run of one plugin; 0: 60 s

	Builtin      builtin.Config // without a Bridge's name there is no built-in network
	Fallback     bool           // the built-in network serves while nothing is in ConfDir
	FixedSubnets bool           // the cluster does not choose Builtin.Subnets
}

// Network runs CNI plugins. All methods may be called at once; no lock is
// held while a plugin runs for a pod, so that a plugin that hangs holds up
// its own pod only.
type Network struct {
	config  Config
	cni     *libcni.CNIConfig
	runner  *runner
	builtin *builtin.Bridge // nil when there is none

	reading sync.Mutex              // one reader of the configuration directory
	conf    atomic.Pointer[confDir] // never nil
	health  atomic.Pointer[health]  // latest answer to STATUS
	failure atomic.Pointer[failure] // latest failed operation

	verbs turns // ADD and DEL, or GC

	leftMu sync.Mutex
	left   map[string][]leftover // by sandbox; of before this daemon's start

	stop    context.CancelFunc
	stopped chan struct{}
}

// health is what the plugins of a list answered to STATUS.
type health struct {
	list *libcni.NetworkConfigList
	err  error
}

type failure struct {
	err error
	at  time.Time
}

// Status is the state of the network for people and tools.
type Status struct {
	Ready       bool           `json:"ready"`
	Reason      string         `json:"reason,omitempty"`     // why it is not ready
	Name        string         `json:"name,omitempty"`       // of the configuration list
	File        string         `json:"file,omitempty"`       // where the list was read from
	CNIVersion  string         `json:"cniVersion,omitempty"` // of the list
	Plugins     []string       `json:"plugins,omitempty"`    // types, in the order of ADD
	Refused     []string       `json:"refused,omitempty"`    // files that are not used, and why
	Bridge      string         `json:"bridge,omitempty"`     // of the built-in network, when it serves
	Subnets     []netip.Prefix `json:"subnets,omitempty"`    // of the built-in network
	ConfDir     string         `json:"confDir"`
	BinDirs     []string       `json:"binDirs"`
	LastError   string         `json:"lastError,omitempty"`  // of the latest failed operation on a pod
	LastErrorAt time.Time      `json:"lastErrorAt,omitzero"` // when that was
}

// Open reads the configuration directory and watches it. The directory need
// not exist. The caller closes the Network.
func Open(config Config) (*Network, error) {
	if !filepath.IsAbs(config.ConfDir) || !filepath.IsAbs(config.CacheDir) {
		return nil, fmt.Errorf("open network: %w: directories %q and %q must be absolute paths", ErrInvalid, config.ConfDir, config.CacheDir)
	}
	for _, dir := range config.BinDirs {
		if !filepath.IsAbs(dir) || strings.ContainsRune(dir, os.PathListSeparator) {
			return nil, fmt.Errorf("open network: %w: plugin directory %q must be an absolute path without %q", ErrInvalid, dir, os.PathListSeparator)
		}
	}
	if config.Timeout <= 0 {
		config.Timeout = defaultTimeout
	}
	n := &Network{config: config, runner: &runner{timeout: config.Timeout, mark: pluginMark + config.CacheDir}, stopped: make(chan struct{})}
	n.cni = libcni.NewCNIConfigWithCacheDir(config.BinDirs, config.CacheDir, n.runner)
	if err := os.MkdirAll(n.recordDir(), 0o700); err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	if err := n.dropUnfinished(); err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	if err := n.openBuiltin(); err != nil {
		return nil, err
	}
	if err := n.findLeftovers(); err != nil {
		return nil, fmt.Errorf("open network: find plugins that still run: %w", err)
	}
	n.refresh()
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	go n.watch(ctx)
	return n, nil
}

// Close ends the watch, and removes the built-in network's bridge if no pod is
// left. Operations under way go on to their end.
func (n *Network) Close() error {
	n.stop()
	<-n.stopped
	n.dropLeftovers()
	if n.builtin == nil {
		return nil
	}
	return n.builtin.Close()
}

// Ready tells why pods cannot be attached now, or nil. It looks at the
// directory anew, which costs microseconds when nothing has changed.
func (n *Network) Ready() error {
	_, err := n.usable()
	return err
}

// Status returns what Ready looks at and what went wrong last.
func (n *Network) Status() Status {
	c, err := n.usable()
	s := Status{Ready: err == nil, ConfDir: n.config.ConfDir, BinDirs: n.config.BinDirs}
	if err != nil {
		s.Reason = err.Error()
	}
	for _, r := range c.refused {
		s.Refused = append(s.Refused, r.file+": "+r.err.Error())
	}
	if c.list != nil {
		s.Name, s.File, s.CNIVersion = c.list.Name, c.file, c.list.CNIVersion
		for _, plugin := range c.list.Plugins {
			s.Plugins = append(s.Plugins, plugin.Network.Type)
		}
	}
	if n.fallsBack(c) {
		s.Name, s.Bridge, s.Subnets = builtinName, n.builtin.Name(), n.builtin.Subnets()
	}
	if f := n.failure.Load(); f != nil {
		s.LastError, s.LastErrorAt = f.err.Error(), f.at
	}
	return s
}

// usable returns the configuration and why pods cannot be attached with it.
func (n *Network) usable() (*confDir, error) {
	c := n.refresh()
	if n.fallsBack(c) {
		return c, nil
	}
	if c.list == nil {
		return c, n.noList(c)
	}
	for _, plugin := range c.list.Plugins {
		for _, binary := range []string{plugin.Network.Type, plugin.Network.IPAM.Type} {
			if binary == "" {
				continue
			}
			if _, err := n.runner.FindInPath(binary, n.config.BinDirs); err != nil {
				return c, fmt.Errorf("network %s of %s: %w", c.list.Name, c.file, err)
			}
		}
	}
	if h := n.health.Load(); h != nil && h.list == c.list && h.err != nil {
		return c, fmt.Errorf("network %s of %s: %w: %w", c.list.Name, c.file, ErrNotReady, h.err)
	}
	return c, nil
}

// noList says what was looked for and what would mend it.
func (n *Network) noList(c *confDir) error {
	const remedy = "install a network's configuration there"
	switch {
	case errors.Is(c.err, fs.ErrNotExist):
		return fmt.Errorf("%w: directory %s does not exist; %s", ErrNotReady, n.config.ConfDir, remedy)
	case c.err != nil:
		return fmt.Errorf("%w: read configuration directory: %w", ErrNotReady, c.err)
	case len(c.refused) == 0:
		return fmt.Errorf("%w: no *.conflist, *.conf or *.json in %s; %s", ErrNotReady, n.config.ConfDir, remedy)
	}
	var tried []string
	for _, r := range c.refused {
		tried = append(tried, filepath.Base(r.file)+": "+r.err.Error())
	}
	return fmt.Errorf("%w: no valid file in %s; mend or remove: %s", ErrNotReady, n.config.ConfDir, strings.Join(tried, "; "))
}

// refresh returns what is in the configuration directory now.
func (n *Network) refresh() *confDir {
	marks := fingerprint(n.config.ConfDir)
	if c := n.conf.Load(); c != nil && c.marks == marks && !c.fresh {
		return c
	}
	n.reading.Lock()
	defer n.reading.Unlock()
	// Another caller may have waited for the same reading; the fingerprint is
	// taken before the files are read, so that a later change shows.
	marks = fingerprint(n.config.ConfDir)
	old := n.conf.Load()
	if old != nil && old.marks == marks && !old.fresh {
		return old
	}
	c := readConfDir(n.config.ConfDir, marks, time.Now())
	if old != nil && old.list != nil && c.list != nil && old.file == c.file && string(old.list.Bytes) == string(c.list.Bytes) {
		c.list = old.list // it is the same network, and its health is known
	}
	n.conf.Store(c)
	if old == nil || old.list != c.list || len(old.refused) != len(c.refused) {
		n.logConf(c)
	}
	return c
}

func (n *Network) logConf(c *confDir) {
	for _, r := range c.refused {
		klog.InfoS("CNI configuration is not used", "file", r.file, "reason", r.err.Error())
	}
	if n.fallsBack(c) {
		klog.InfoS("No network is configured, the built-in one serves", "bridge", n.builtin.Name(), "subnets", n.builtin.Subnets(), "confDir", n.config.ConfDir)
		return
	}
	if c.list == nil {
		klog.InfoS("No network", "reason", n.noList(c).Error())
		return
	}
	klog.InfoS("Network configured", "network", c.list.Name, "file", c.file)
}

// checkHealth asks the plugins whether they can serve. Only the two answers
// that CNI defines for "no" count.
func (n *Network) checkHealth(ctx context.Context) {
	list := n.refresh().list
	if list == nil {
		return
	}
	err := n.cni.GetStatusNetworkList(ctx, list)
	if ctx.Err() != nil {
		return
	}
	var plugin *PluginError
	if !errors.As(err, &plugin) || (plugin.Code != types.ErrPluginNotAvailable && plugin.Code != types.ErrLimitedConnectivity) {
		err = nil
	}
	old := n.health.Swap(&health{list: list, err: err})
	if was := old != nil && old.list == list && old.err != nil; was != (err != nil) {
		klog.InfoS("Network's plugins changed their status", "network", list.Name, "err", err)
	}
}

// noteFailure keeps the latest error of an operation for Status.
func (n *Network) noteFailure(err error) {
	if err != nil {
		n.failure.Store(&failure{err: err, at: time.Now()})
	}
}
