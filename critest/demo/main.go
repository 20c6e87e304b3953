package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

func main() {
	binary := flag.String("runtime", "bin/cri-runtime", "the daemon's `file`")
	plugins := flag.String("cni", "bin/cni", "`directory` of the CNI plugins")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *binary, *plugins); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary, plugins string) (err error) {
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	if plugins, err = filepath.Abs(plugins); err != nil {
		return err
	}
	d := &demo{options: harness.Options{Binary: binary, CNI: true, CNIBin: plugins}}
	defer func() {
		if err != nil && d.node != nil {
			err = fmt.Errorf("%w; the daemon's log ends:\n%s", err, d.node.LogTail())
		}
		err = errors.Join(err, d.end(context.WithoutCancel(ctx)))
	}()
	return d.show(ctx)
}
