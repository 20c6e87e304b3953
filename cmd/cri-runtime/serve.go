package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/sandbox"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
	"github.com/cri-runtime/cri-runtime/server"
	"github.com/cri-runtime/cri-runtime/server/control"
)

// umask makes modes mean what the code says, whoever starts this process.
// What is private is made 0700 or 0600; a tighter umask would close the
// containers' own root directories and mount points to their users.
const umask = 0o022

func serveCommand() *cobra.Command {
	var file string
	var given config
	serve := &cobra.Command{
		Use:   "serve",
		Short: "Serve the CRI on a socket until SIGTERM; containers go on",
		Args:  cobra.NoArgs,
	}
	flags := serve.Flags()
	placeFlags(flags, &file, &given)
	flags.StringVar(&given.Listen, "listen", "", "CRI socket, unix:///`SOCKET`")
	flags.StringVar(&given.Network.ConfDir, "cni-conf-dir", "", "`DIR` of CNI network configuration lists")
	flags.StringArrayVar(&given.Network.BinDirs, "cni-bin-dir", nil, "`DIR` of CNI plugins; may be repeated")
	flags.IntVar(&given.LogLevel, "log-level", 0, "log verbosity `N`, 0 to 10")
	serve.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := loadConfig(file, flags.Changed("config"))
		if err != nil {
			return err
		}
		if err = c.apply(&given, flags.Changed); err != nil {
			return err
		}
		// The second signal meets the default action: an immediate end.
		ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
		defer stop()
		context.AfterFunc(ctx, stop)
		return runDaemon(ctx, &c)
	}
	return serve
}

// placeFlags are those that say where a daemon keeps what it has.
func placeFlags(flags *pflag.FlagSet, file *string, given *config) {
	flags.StringVar(file, "config", defaultConfigFile, "configuration `FILE`, with drop-ins in FILE.d")
	flags.StringVar(&given.Root, "root", "", "durable state `DIR`")
	flags.StringVar(&given.State, "state", "", "`DIR` of sockets and namespaces")
	flags.StringVar(&given.CgroupDriver, "cgroup-driver", "", "auto, cgroupfs or systemd")
	flags.StringVar(&given.CgroupParent, "cgroup-parent", "", "parent cgroup of pods that name none")
}

// apply takes over the flags that were given.
func (c *config) apply(given *config, changed func(name string) bool) error {
	for _, f := range []struct {
		name string
		take func()
	}{
		{"root", func() { c.Root = given.Root }},
		{"state", func() { c.State = given.State }},
		{"listen", func() { c.Listen = given.Listen }},
		{"cni-conf-dir", func() { c.Network.ConfDir = given.Network.ConfDir }},
		{"cni-bin-dir", func() { c.Network.BinDirs = given.Network.BinDirs }},
		{"log-level", func() { c.LogLevel = given.LogLevel }},
		{"cgroup-driver", func() { c.CgroupDriver = given.CgroupDriver }},
		{"cgroup-parent", func() { c.CgroupParent = given.CgroupParent }},
	} {
		if changed(f.name) {
			f.take()
		}
	}
	if err := c.check(); err != nil {
		return fmt.Errorf("%w: flags: %w", errConfig, err)
	}
	return nil
}

// cgroupDriver resolves "auto".
func (c *config) cgroupDriver(systemdRuns string) string {
	if c.CgroupDriver != "auto" {
		return c.CgroupDriver
	}
	if _, err := os.Lstat(systemdRuns); err == nil {
		return "systemd"
	}
	return "cgroupfs"
}

// logTo sets klog up: structured lines on stderr, which the service
// supervisor keeps.
func logTo(level int) error {
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	logToJournal()
	return errors.Join(flags.Set("logtostderr", "true"), flags.Set("v", strconv.Itoa(level)))
}

// runDaemon serves until ctx ends.
func runDaemon(ctx context.Context, c *config) (err error) {
	if err = logTo(c.LogLevel); err != nil {
		return fmt.Errorf("set up the log: %w", err)
	}
	defer klog.Flush()
	unix.Umask(umask)
	if err := relaxTimers(); err != nil {
		return err
	}
	for _, dir := range []string{c.Root, c.State} {
		lock, lockErr := lockDir(dir)
		if lockErr != nil {
			return lockErr
		}
		defer func() { err = errors.Join(err, lock.Close()) }()
	}
	fault.Point("start.locked")
	netConfig, err := c.network()
	if err != nil {
		return err
	}
	pods, err := network.Open(netConfig)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pods.Close()) }()
	fault.Point("start.network.opened")
	store, err := sandbox.Open(ctx, c.sandbox(), pods)
	if err != nil {
		return fmt.Errorf("open state: %w", err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	fault.Point("start.store.opened")
	metrics := control.NewMetrics()
	heap := newHeap(debug.FreeOSMemory)
	defer heap.close()
	images, err := c.openImages(metrics)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, images.Close()) }()
	cri, err := c.newServer(store, pods, images, func(rpc, code string, took time.Duration) {
		metrics.RPC(rpc, code, took)
		heap.observe(rpc)
	})
	if err != nil {
		return err
	}
	fault.Point("start.images.opened")
	images.Collect()
	stop, err := serveControl(ctx, c, images, metrics, func() any {
		return &memory{Runtime: store.Memory(), Network: pods.Memory(), Images: images.Memory()}
	})
	if err != nil {
		return err
	}
	defer stop()
	fault.Point("start.control.served")
	go watch(ctx, func() { store.Sandboxes() })
	return serveOn(ctx, c, cri, store.Notes())
}

func (c *config) openImages(metrics *control.Metrics) (*imageservice.Store, error) {
	return imageservice.Open(imageservice.Config{
		PullEnded: metrics.Pull,
		Root:      filepath.Join(c.Root, "images"), RegistryConfigDir: c.Image.RegistryConfigDir, PinnedImages: c.Image.Pinned,
		MaxParallelLayers: c.Image.MaxParallelLayers, NoProgressTimeout: c.Image.NoProgressTimeout.Duration,
		Proxy: imageservice.Proxy{
			HTTP: c.Image.Proxy.HTTP.text, HTTPS: c.Image.Proxy.HTTPS.text, None: strings.Join(c.Image.Proxy.None, ","),
		},
		Policy: c.Image.Policy.policy(),
	})
}

func (c *config) newServer(store *sandbox.Store, pods *network.Network, images *imageservice.Store, observe func(rpc, code string, took time.Duration)) (*server.Server, error) {
	effective, err := c.effective()
	if err != nil {
		return nil, err
	}
	userNamespaces := store.Features().UserNamespaces.Problem == ""
	return server.New(server.Config{
		Runtime: store, Images: images, Observe: observe,
		NetworkReady: pods.Ready, NetworkStatus: func() any { return pods.Status() }, PodSubnets: pods.SetSubnets,
		Version: buildVersion(), CgroupDriver: c.cgroupDriver("/run/systemd/system"), EffectiveConfig: effective, Notes: store.Notes,
		Handlers: c.handlers(&runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true, UserNamespaces: userNamespaces}),
		Streaming: server.StreamingConfig{
			Address: c.Streaming.Address, Port: c.Streaming.Port, CertFile: c.Streaming.TLSCertFile, KeyFile: c.Streaming.TLSKeyFile,
			IdleTimeout: c.Streaming.IdleTimeout.Duration, CreationTimeout: c.Streaming.CreationTimeout.Duration,
		},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true, UserNamespacesHostNetwork: userNamespaces},
	})
}

// sandbox returns what the package sandbox is opened with.
func (c *config) sandbox() sandbox.Config {
	return sandbox.Config{
		Root: c.Root, State: c.State, CgroupDriver: c.cgroupDriver("/run/systemd/system"), CgroupParent: c.CgroupParent,
		LogLineBytes: c.Log.LineBytes, CDISpecDirs: c.CDISpecDirs,
	}
}

// handlers are what RuntimeClasses may name, the default one first.
func (c *config) handlers(features *runtimeapi.RuntimeHandlerFeatures) []*runtimeapi.RuntimeHandler {
	out := []*runtimeapi.RuntimeHandler{{Features: features}}
	for _, name := range c.Handlers {
		out = append(out, &runtimeapi.RuntimeHandler{Name: name, Features: features})
	}
	return out
}

// serveOn answers requests on the CRI socket until ctx ends.
func serveOn(ctx context.Context, c *config, cri *server.Server, notes []string) error {
	socket, err := c.socket()
	if err != nil {
		return err
	}
	listener, err := listen(ctx, socket)
	if err != nil {
		return err
	}
	for _, note := range notes {
		klog.InfoS("Limited on this host", "note", note)
	}
	klog.InfoS("Serving", "socket", socket, "root", c.Root, "state", c.State, "version", buildVersion())
	notify(daemon.SdNotifyReady)
	context.AfterFunc(ctx, func() { notify(daemon.SdNotifyStopping) })
	err = cri.Serve(ctx, listener)
	fault.Point("close.served")
	klog.InfoS("Stopped serving; containers go on", "socket", socket)
	return err
}
