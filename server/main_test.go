package server

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
		// The kubelet's client of WebSocket leaves it until its next ping.
		goleak.IgnoreTopFunction("k8s.io/client-go/tools/remotecommand.(*heartbeat).start"))
}

// noNetwork is a pod network that no test attaches anything to.
type noNetwork struct{}

func (noNetwork) Attach(context.Context, network.Pod) (*network.Attachment, error) {
	return nil, errors.New("no network in this test")
}

func (noNetwork) Restore(network.Pod, *network.Attachment) error { return nil }

func (noNetwork) Detach(context.Context, network.Pod, *network.Attachment) error { return nil }
func (noNetwork) Check(context.Context, network.Pod, *network.Attachment) error  { return nil }
func (noNetwork) GC(context.Context, func() ([]string, error)) error             { return nil }

// memoryImages is a small image store: images by id, names as their RepoTags
// and RepoDigests say, and holds as a set.
type memoryImages struct {
	mu     sync.Mutex
	images map[string]*imageservice.Image // guarded by mu
	holds  map[[2]string]bool             // guarded by mu
	events []string                       // guarded by mu; holds and releases in order

	pull    func(ctx context.Context, name string, auth *imageservice.Auth) (*imageservice.Image, error)
	holdErr func(imageID, user string) error
}

func newMemoryImages(images ...*imageservice.Image) *memoryImages {
	m := &memoryImages{images: map[string]*imageservice.Image{}, holds: map[[2]string]bool{}}
	for _, image := range images {
		m.images[image.ID] = image
	}
	return m
}

func (m *memoryImages) Pull(ctx context.Context, name string, auth *imageservice.Auth) (*imageservice.Image, error) {
	return m.pull(ctx, name, auth)
}

func (m *memoryImages) Image(ref string) (*imageservice.Image, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ref == "BAD" {
		return nil, imageservice.ErrInvalidReference
	}
	for _, image := range m.images {
		if image.ID == ref || slices.Contains(image.RepoTags, ref) || slices.Contains(image.RepoDigests, ref) {
			return image, nil
		}
	}
	return nil, imageservice.ErrNotFound
}

func (m *memoryImages) Images() []*imageservice.Image {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Values(m.images), func(a, b *imageservice.Image) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
}

func (m *memoryImages) Remove(_ context.Context, ref string) error {
	image, err := m.Image(ref)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.images, image.ID)
	return nil
}

func (m *memoryImages) Hold(imageID, user string) error {
	if m.holdErr != nil {
		if err := m.holdErr(imageID, user); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holds[[2]string{imageID, user}] = true
	m.events = append(m.events, "hold "+imageID+" "+user)
	return nil
}

func (m *memoryImages) Release(imageID, user string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.holds, [2]string{imageID, user})
	m.events = append(m.events, "release "+imageID+" "+user)
}

func (m *memoryImages) Usage() (imageservice.Usage, error) {
	return imageservice.Usage{Path: "/images", Bytes: 4096, Inodes: 7}, nil
}

func (m *memoryImages) Details(ref string) (*imageservice.Details, error) {
	image, err := m.Image(ref)
	if err != nil {
		return nil, err
	}
	return &imageservice.Details{
		ID: image.ID, Source: "mirror.example", Config: image.Config,
		Layers: []imageservice.LayerDetails{{DiffID: busyboxID, SharedBy: 2}},
	}, nil
}

// testConfig is a Config over an empty runtime and the images.
func testConfig(t testing.TB, images Images) Config {
	t.Helper()
	dir := t.TempDir()
	store, err := sandbox.Open(t.Context(), sandbox.Config{
		Root:         filepath.Join(dir, "root"),
		State:        filepath.Join(dir, "state"),
		CgroupDriver: "cgroupfs",
		CgroupParent: "/cri-server-test",
	}, noNetwork{})
	switch {
	case err != nil && os.Geteuid() != 0:
		t.Skipf("needs root: %v", err)
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Errorf("close the runtime: %v", err)
		}
	})
	return Config{Runtime: store, Images: images, Version: "v1.2.3", CgroupDriver: "cgroupfs"}
}

// started is a server that runs, and a client of it.
type started struct {
	conn *grpc.ClientConn
	stop context.CancelFunc
	done <-chan error // gets what Serve returned, once
}

func serve(t *testing.T, config Config) started {
	t.Helper()
	s, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(shortDir(t), "cri.sock")
	l, err := Listen(t.Context(), "unix://"+socket)
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, s, l)
}

func serveOn(t *testing.T, s *Server, l net.Listener) started {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	result := make(chan error, 1)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		result <- s.Serve(ctx, l)
	}()
	conn, err := grpc.NewClient("unix://"+l.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(2*maxMessageBytes)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		<-finished
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return started{conn: conn, stop: stop, done: result}
}

// within fails the test when nothing comes; it is no measure of speed.
func within[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	timer := time.NewTimer(time.Minute)
	defer timer.Stop()
	select {
	case v := <-c:
		return v
	case <-timer.C:
		t.Fatalf("%s: nothing happened within a minute", what)
		panic("unreachable")
	}
}
