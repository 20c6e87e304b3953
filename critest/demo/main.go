package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
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
	dir, err := os.MkdirTemp("", "cri-demo")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	n, err := newNode(dir, binary, plugins)
	if err != nil {
		return err
	}
	d := &demo{node: n}
	defer func() {
		if err != nil {
			showLog(n.path("daemon.log"))
		}
		err = errors.Join(err, d.undo(context.WithoutCancel(ctx)), n.clean())
	}()
	return d.show(ctx)
}

// showLog prints the end of the daemon's log.
func showLog(name string) {
	text, err := os.ReadFile(name)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo: no log:", err)
		return
	}
	const last = 4096
	if len(text) > last {
		text = text[len(text)-last:]
	}
	fmt.Fprintf(os.Stderr, "demo: the daemon's log ends:\n%s\n", text)
}
