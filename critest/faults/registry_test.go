package faults

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

// silent accepts connections and says nothing.
func silent(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
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
			defer conn.Close() // all of them in the end
		}
	}()
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	return l.Addr().String()
}

// deaf is an address at which connecting takes for ever: its queue is full.
func deaf(t *testing.T) string {
	t.Helper()
	server, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(server) })
	if err := errors.Join(unix.Bind(server, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(server, 0)); err != nil {
		t.Fatal(err)
	}
	address, err := unix.Getsockname(server)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(client) })
		if err := unix.Connect(client, address); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			t.Fatal(err)
		}
	}
	in, ok := address.(*unix.SockaddrInet4)
	if !ok {
		t.Fatalf("address %v", address)
	}
	return fmt.Sprintf("127.0.0.1:%d", in.Port)
}

// A registry hangs at each stage of a pull: the pull fails when nothing has
// moved for the configured time, ends when its client goes, and holds up nothing else.
func TestRegistryHangs(t *testing.T) {
	n := begin(t)
	writers, err := n.writers(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	other, err := localregistry.Start(t.Context(), localregistry.Options{})
	if err == nil {
		_, err = other.Fill(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		depot.Mend()
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	})
	good := &runtimeapi.ImageSpec{Image: other.Address + "/cri-runtime/web:latest"}
	broken := noise(t, "hangs", 1<<20)
	for _, stage := range []struct {
		name, ref, path string
		fault           localregistry.Fault
	}{
		{"connect", deaf(t) + "/cri-runtime/web:latest", "", 0},
		{"TLS", silent(t) + "/cri-runtime/web:latest", "", 0},
		{"headers of the manifest", broken, "/manifests/", localregistry.Hang},
		{"body of the manifest", broken, "/manifests/", localregistry.HangInBody},
		{"headers of a layer", broken, "/blobs/", localregistry.Hang},
		{"body of a layer", broken, "/blobs/", localregistry.HangInBody},
	} {
		t.Run(stage.name, func(t *testing.T) {
			image := &runtimeapi.ImageSpec{Image: stage.ref}
			if stage.path != "" {
				depot.Break(stage.path, stage.fault)
				defer depot.Mend()
			}
			count("stages at which a registry hangs", 1)
			hung := make(chan error, 1)
			go func() {
				_, err := n.Images.PullImage(t.Context(), image, nil, nil)
				hung <- err
			}()
			patiently(t, "pull from another registry", func(ctx context.Context) error {
				_, err := n.Images.PullImage(ctx, good, nil, nil)
				return errors.Join(err, n.Images.RemoveImage(ctx, good))
			})
			select {
			case err := <-hung:
				if err == nil {
					t.Error("pulled")
				}
			case <-time.After(deadline):
				t.Errorf("no answer for %s", deadline)
			}
			n.cancels(t, image)
		})
	}
	t.Run("trickle", func(t *testing.T) {
		depot.Break("/blobs/", localregistry.Slow)
		defer depot.Mend()
		n.cancels(t, &runtimeapi.ImageSpec{Image: broken})
	})
	patiently(t, "pull in the end", func(ctx context.Context) error {
		image := &runtimeapi.ImageSpec{Image: broken}
		_, err := n.Images.PullImage(ctx, image, nil, nil)
		return errors.Join(err, n.checkImages(ctx), n.Images.RemoveImage(ctx, image))
	})
	if err := n.check(t.Context(), writers...); err != nil {
		t.Error(err)
	}
}

// cancels gives a pull up: its client is free at once, and so are the files.
func (n *node) cancels(t *testing.T, image *runtimeapi.ImageSpec) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := n.Images.PullImage(ctx, image, nil, nil); err == nil {
		t.Error("pulled")
	}
	if err := harness.Until(t.Context(), deadline, "the image not to be there", func() bool {
		st, err := n.Images.ImageStatus(t.Context(), image, false)
		return err == nil && st.Image == nil
	}); err != nil {
		t.Error(err)
	}
}
