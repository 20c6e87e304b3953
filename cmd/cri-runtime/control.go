package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/server"
	"github.com/cri-runtime/cri-runtime/server/control"
)

// controlSocket is where the daemon of a state directory is asked by the
// commands of this program.
func controlSocket(state string) string { return filepath.Join(state, "control.sock") }

// serveControl answers requests on the control socket, and those for metrics
// where the configuration says so, until stop is called. That these end early
// is logged and harms no pod.
func serveControl(ctx context.Context, c *config, images *imageservice.Store, metrics *control.Metrics, memory func() any) (stop func(), err error) {
	private, err := server.ListenPrivate(ctx, controlSocket(c.State))
	if err != nil {
		return nil, err
	}
	var public net.Listener
	if c.Metrics.Listen != "" {
		if public, err = (&net.ListenConfig{}).Listen(ctx, "tcp", c.Metrics.Listen); err != nil {
			return nil, errors.Join(fmt.Errorf("metrics.listen: %w", err), private.Close())
		}
		klog.InfoS("Serving metrics", "address", public.Addr())
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	run := func(serve func(context.Context, net.Listener) error, l net.Listener) {
		running.Go(func() {
			if err := serve(ctx, l); err != nil {
				klog.ErrorS(err, "Serve beside the CRI", "address", l.Addr())
			}
		})
	}
	run(control.New(images, metrics, memory).Serve, private)
	if public != nil {
		run(metrics.ServeMetrics, public)
	}
	return func() {
		cancel()
		running.Wait()
	}, nil
}
