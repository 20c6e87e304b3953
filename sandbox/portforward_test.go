package sandbox

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listenIn makes a server in a network namespace that says its address to
// whoever connects, and brings the loopback interface there up.
func listenIn(t *testing.T, path, network, address string) (port uint16) {
	t.Helper()
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var l net.Listener
	done := make(chan error, 1)
	go onOwnThread(func() {
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = loopbackUp()
		}
		if err == nil {
			l, err = net.Listen(network, net.JoinHostPort(address, "0"))
		}
		done <- err
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, address)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-served
	})
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// Dial reaches the pod's own loopback addresses, and those of the host only for
// a pod on the host's network.
func TestDial(t *testing.T) {
	f := setUp(t)
	own, err := f.store.Run(t.Context(), f.podConfig("net", runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER), "")
	if err != nil {
		t.Fatal(err)
	}
	host := f.podNamed("host")
	netns := own.Status().NetNS
	hosts := listenIn(t, "/proc/self/ns/net", "tcp4", "127.0.0.1")
	for name, test := range map[string]struct {
		box  *Sandbox
		port uint16
		want string
	}{
		"IPv4":               {own, listenIn(t, netns, "tcp4", "127.0.0.1"), "127.0.0.1"},
		"IPv6":               {own, listenIn(t, netns, "tcp6", "::1"), "::1"},
		"host":               {host, hosts, "127.0.0.1"},
		"the host's, in pod": {own, hosts, ""},
	} {
		conn, err := test.box.Dial(t.Context(), test.port)
		if err != nil {
			if test.want != "" || !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		got, err := io.ReadAll(conn)
		conn.Close()
		if err != nil || string(got) != test.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, test.want)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := own.Dial(ended, hosts); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that is gone: %v", err)
	}
	if err := own.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := own.Dial(t.Context(), hosts); !errors.Is(err, ErrState) {
		t.Errorf("a stopped pod: %v", err)
	}
}
