package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/images"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

// options are the command's flags.
type options struct {
	n      int    // rounds of each image
	peers  bool   // measure the others, too
	binary string // the runtime's file
	cache  string // directory of packages and layers
	only   string // images, comma separated
}

func (o *options) register(flags *flag.FlagSet) {
	flags.IntVar(&o.n, "n", 3, "`rounds` of each image")
	flags.BoolVar(&o.peers, "peers", true, "measure Debian's containerd, and skopeo with umoci, too")
	flags.StringVar(&o.binary, "binary", "bin/cri-runtime", "the runtime's `file`")
	flags.StringVar(&o.cache, "cache", "out/benchimages", "`directory` where packages and layers are kept for the next run")
	flags.StringVar(&o.only, "only", imageNames, "comma separated `images`")
}

func main() {
	var o options
	o.register(flag.CommandLine)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, &o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "benchimages:", err)
		os.Exit(1)
	}
}

// bench is the contestants side by side.
type bench struct {
	options     *options
	registry    *localregistry.Server
	contestants []contestant
	scratch     string
}

func run(ctx context.Context, o *options, out io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	if err := harness.Quiet(); err != nil {
		return err
	}
	b := &bench{options: o}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.open(ctx); err != nil {
		return err
	}
	d := &depot{dir: o.cache}
	t := &table{}
	for _, name := range strings.Split(o.only, ",") {
		i, err := d.image(ctx, name)
		if err != nil {
			return fmt.Errorf("make image %s: %w", name, err)
		}
		if err := b.round(ctx, i, t); err != nil {
			return errors.Join(fmt.Errorf("image %s: %w", name, err), t.print(out))
		}
		fmt.Fprintf(os.Stderr, "benchimages: %s done\n", name)
	}
	return t.print(out)
}

func (b *bench) open(ctx context.Context) (err error) {
	if b.registry, err = localregistry.Start(ctx, localregistry.Options{}); err != nil {
		return err
	}
	if _, err = b.registry.Fill(ctx); err != nil {
		return err
	}
	o := harness.Options{Binary: b.options.binary, Registry: b.registry.Address}
	if o.Binary, err = filepath.Abs(o.Binary); err != nil {
		return fmt.Errorf("binary: %w", err)
	}
	for _, o.Peer = range []bool{false, true} {
		if o.Peer && !b.options.peers {
			return nil
		}
		r, err := harness.New(ctx, o)
		if err != nil {
			return err
		}
		b.contestants = append(b.contestants, &daemon{Runtime: r})
	}
	if !installed("skopeo") || !installed("umoci") {
		return nil // the other two will do
	}
	if b.scratch, err = os.MkdirTemp("", "benchimages-"); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	b.contestants = append(b.contestants, &tools{dir: b.scratch})
	return nil
}

func installed(tool string) bool {
	_, err := exec.LookPath(tool)
	return err == nil
}

// round measures the pulls of one image, by turns.
func (b *bench) round(ctx context.Context, i *image, t *table) error {
	ref := b.registry.Address + "/bench/" + i.name + ":latest"
	base := ""
	if err := b.registry.Push(ctx, images.Named{Repository: "bench/" + i.name, Tag: "latest", Artifact: i.artifact}); err != nil {
		return err
	}
	if i.base != nil {
		base = b.registry.Address + "/bench/" + i.base.name + ":latest"
		if err := b.registry.Push(ctx, images.Named{Repository: "bench/" + i.base.name, Tag: "latest", Artifact: i.base.artifact}); err != nil {
			return err
		}
	}
	taken := make([][]sample, len(b.contestants))
	for n := range b.options.n {
		for k := range b.contestants {
			k = (k + n) % len(b.contestants) // nobody is always first
			c := b.contestants[k]
			if !c.can(i) {
				continue
			}
			s, err := measure(ctx, c, ref, base)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name(), err)
			}
			taken[k] = append(taken[k], s)
		}
	}
	t.image(i, b.contestants, taken)
	return nil
}

func (b *bench) close() error {
	// The clean-up runs also after an interrupt.
	ctx := context.Background()
	var errs []error
	for _, c := range b.contestants {
		if d, ok := c.(*daemon); ok {
			errs = append(errs, d.Close(ctx))
		}
	}
	if b.scratch != "" {
		errs = append(errs, os.RemoveAll(b.scratch))
	}
	if b.registry != nil {
		errs = append(errs, b.registry.Close())
	}
	return errors.Join(errs...)
}
