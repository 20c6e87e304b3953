package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/server"
)

// notify tells the service supervisor, if there is one.
func notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		klog.ErrorS(err, "Notify systemd", "state", state)
	}
}

// listen takes the socket that the service supervisor holds (cri-runtime.socket): while the daemon is
// exchanged clients wait in its queue and none is refused. Without one it makes its own.
func listen(ctx context.Context, socket string) (net.Listener, error) {
	given, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take the supervisor's sockets: %w", err)
	}
	var own net.Listener
	for _, l := range given {
		if l == nil {
			continue
		}
		if l.Addr().Network() == "unix" && l.Addr().String() == strings.TrimPrefix(socket, "unix://") {
			own = l
			continue
		}
		klog.InfoS("The supervisor's socket is not the one to serve on", "given", l.Addr().String(), "listen", socket)
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("close the supervisor's socket %s: %w", l.Addr(), err)
		}
	}
	if own != nil {
		return own, nil
	}
	return server.Listen(ctx, socket)
}

// watch tells systemd's watchdog that the daemon is alive, for as long as alive returns: a
// daemon whose locks are stuck is killed and started again, containers go on.
func watch(ctx context.Context, alive func()) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		klog.ErrorS(err, "Read the watchdog's interval")
	}
	if interval == 0 {
		return
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	for {
		alive()
		notify(daemon.SdNotifyWatchdog)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
