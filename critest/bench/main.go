package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

// options are the command's flags.
type options struct {
	n       int           // rounds of the latency part
	pods    int           // pods of the memory part
	burst   int           // pods of one throughput round
	logs    int           // MiB of a round of the logs part
	gap     time.Duration // idle time before each measured call
	peer    bool
	binary  string
	against string // another build, measured in the peer's place
	only    string // parts to run, comma separated
}

func (o *options) register(flags *flag.FlagSet) {
	flags.IntVar(&o.n, "n", 30, "`rounds` of each latency")
	flags.IntVar(&o.pods, "pods", 100, "`pods` of the memory part")
	flags.IntVar(&o.burst, "burst", 40, "`pods` of a throughput round")
	flags.IntVar(&o.logs, "logs", 256, "`MiB` of a round of the logs part")
	flags.DurationVar(&o.gap, "gap", 50*time.Millisecond, "idle `time` before each measured call; back-to-back calls hide the kernel's waits")
	flags.BoolVar(&o.peer, "peer", true, "measure Debian's containerd and runc, too")
	flags.StringVar(&o.binary, "binary", "bin/cri-runtime", "the runtime's `file`")
	flags.StringVar(&o.against, "against", "", "`file` of another build, measured in the peer's place")
	flags.StringVar(&o.only, "only", "latency,cni,builtin,throughput,cpu,memory,stats,pull,launcher,logs,streaming", "comma separated `parts`")
}

func main() {
	var o options
	o.register(flag.CommandLine)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, &o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is the runtimes side by side.
type bench struct {
	options  *options
	runtimes []*runtime
	registry *localregistry.Server
	table    *table
	serial   int
}

// runtime is one of them.
type runtime struct {
	*harness.Runtime
	image string
}

func run(ctx context.Context, o *options, out io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	if err := harness.Quiet(); err != nil {
		return err
	}
	b := &bench{options: o, table: &table{}}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.open(ctx); err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"latency", b.latency},
		{"cni", b.cni},
		{"builtin", b.builtin},
		{"throughput", b.throughput},
		{"cpu", b.cpu},
		{"memory", b.memory},
		{"stats", b.stats},
		{"pull", b.pull},
		{"launcher", b.launcher},
		{"logs", b.logs},
		{"streaming", b.streaming},
	} {
		if !strings.Contains(","+o.only+",", ","+part.name+",") {
			continue
		}
		if err := part.run(ctx); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", part.name, err), b.table.print(out, b.names()))
		}
		fmt.Fprintf(os.Stderr, "bench: %s done\n", part.name)
	}
	return b.table.print(out, b.names())
}

func (b *bench) open(ctx context.Context) (err error) {
	if b.registry, err = localregistry.Start(ctx, localregistry.Options{}); err != nil {
		return err
	}
	if _, err = b.registry.Fill(ctx); err != nil {
		return err
	}
	o := harness.Options{Binary: b.options.binary, Registry: b.registry.Address, CNI: true}
	if o.Binary, err = filepath.Abs(o.Binary); err != nil {
		return fmt.Errorf("binary: %w", err)
	}
	plugins := filepath.Join(filepath.Dir(o.Binary), "cni")
	if _, err := os.Stat(filepath.Join(plugins, "bridge")); err == nil {
		o.CNIBin = plugins
	}
	all := []harness.Options{o}
	if o.Binary = b.options.against; o.Binary != "" {
		all = append(all, o)
	} else if b.options.peer {
		o.Peer = true
		all = append(all, o)
	}
	for _, o := range all {
		r, err := harness.New(ctx, o)
		if err != nil {
			return err
		}
		if o.Binary == b.options.against {
			r.Name = "against"
		}
		b.runtimes = append(b.runtimes, &runtime{Runtime: r, image: b.registry.Address + "/cri-runtime/busybox:latest"})
		if err := isolate(r); err != nil {
			return err
		}
	}
	for _, r := range b.runtimes { // warm
		if err := r.pull(ctx, r.image); err != nil {
			return err
		}
		for range 3 {
			if _, err := b.cycle(ctx, r, false, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) close() error {
	// The clean-up runs also after an interrupt.
	ctx := context.Background()
	var errs []error
	for _, r := range b.runtimes {
		errs = append(errs, r.Close(ctx))
	}
	if b.registry != nil {
		errs = append(errs, b.registry.Close())
	}
	return errors.Join(errs...)
}

func (b *bench) names() []string {
	out := make([]string, 0, len(b.runtimes))
	for _, r := range b.runtimes {
		out = append(out, r.Name)
	}
	return out
}
