package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// dialTimeout bounds a connection to a port of the pod itself.
const dialTimeout = 10 * time.Second

// Dial connects to a port of the pod's loopback interface, by IPv4 or else IPv6.
func (b *Sandbox) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	if err := b.requireReady("forward a port"); err != nil {
		return nil, err
	}
	path := b.Status().NetNS
	if path == "" {
		return dialLoopback(ctx, port)
	}
	ns, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("connect to port %d of sandbox %s: %w", port, b.id, err)
	}
	defer ns.Close()
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go onOwnThread(func() {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("enter network namespace %s: %w", path, err)}
			return
		}
		// A socket stays in the namespace of the thread that made it.
		conn, err := dialLoopback(ctx, port)
		done <- result{conn, err}
	})
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", b.id, r.err)
	}
	return r.conn, nil
}

// dialLoopback connects from the calling thread: for a literal address the
// dialer makes its socket there.
func dialLoopback(ctx context.Context, port uint16) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	var errs []error
	for _, address := range []string{"127.0.0.1", "::1"} {
		conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("connect to port %d: %w", port, errors.Join(errs...))
}
