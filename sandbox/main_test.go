package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/network"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noNetwork is a network that gives every pod the same address and counts.
type noNetwork struct {
	attached, detached atomic.Int32
	fail               error
	entered, hold      chan struct{} // Attach says that it is called and waits, if there are any
	check              error
	collected          chan []string // the ids that GC was to keep, if there is any
}

func (n *noNetwork) Attach(context.Context, network.Pod) (*network.Attachment, error) {
	if n.hold != nil {
		n.entered <- struct{}{}
		<-n.hold
	}
	if n.fail != nil {
		return nil, n.fail
	}
	n.attached.Add(1)
	return &network.Attachment{Network: "test", IPs: []string{"192.0.2.7"}}, nil
}

func (n *noNetwork) Restore(network.Pod, *network.Attachment) error { return nil }

func (n *noNetwork) Detach(context.Context, network.Pod, *network.Attachment) error {
	n.detached.Add(1)
	return nil
}

func (n *noNetwork) Check(context.Context, network.Pod, *network.Attachment) error { return n.check }

func (n *noNetwork) GC(_ context.Context, keep func() ([]string, error)) error {
	ids, err := keep()
	if n.collected != nil {
		n.collected <- ids
	}
	return err
}

// fixture is a store in throw-away directories, and an image with busybox.
type fixture struct {
	t      testing.TB
	config Config
	net    *noNetwork
	store  *Store
	image  *Image
}

func setUp(t testing.TB) *fixture {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes namespaces, mounts and cgroups")
	}
	dir := t.TempDir()
	f := &fixture{t: t, net: &noNetwork{}, config: Config{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), CgroupDriver: "cgroupfs",
		CgroupParent: fmt.Sprintf("/cri-sandbox-test-%d", os.Getpid()), LogLineBytes: 16 << 10,
	}}
	f.image = &Image{ID: "sha256:test", Name: "busybox", Layers: []string{busyboxLayer(t, dir)}, Config: imagespec.Image{}}
	f.open()
	t.Cleanup(f.tearDown)
	return f
}

func (f *fixture) open() {
	f.t.Helper()
	var err error
	if f.store, err = Open(context.Background(), f.config, f.net); err != nil {
		f.t.Fatal(err)
	}
}

// restart does to the daemon's state what a restart of the process does.
func (f *fixture) restart() {
	f.t.Helper()
	if err := f.store.Close(); err != nil {
		f.t.Fatal(err)
	}
	f.open()
}

// tearDown removes everything by the verbs and looks at what they leave.
func (f *fixture) tearDown() {
	ctx := context.Background()
	for _, b := range f.store.Sandboxes() {
		if err := b.Remove(ctx); err != nil {
			f.t.Error(err)
		}
	}
	if err := f.store.Close(); err != nil {
		f.t.Error(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), f.config.State) {
		f.t.Error("mounts are left below", f.config.State, err)
	}
	left, err := filepath.Glob("/sys/fs/cgroup/*" + f.config.CgroupParent)
	if err != nil || len(left) > 0 {
		f.t.Error("cgroups are left:", left, err)
	}
	for _, d := range []string{"sandboxes", "containers", "trash"} {
		for _, base := range []string{f.config.Root, f.config.State} {
			entries, err := os.ReadDir(filepath.Join(base, d))
			if err != nil && !errors.Is(err, os.ErrNotExist) || len(entries) > 0 {
				f.t.Error("files are left in", base, d, entries, err)
			}
		}
	}
}

func busyboxLayer(t testing.TB, dir string) string {
	t.Helper()
	layer := filepath.Join(dir, "layer")
	for _, d := range []string{"bin", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(layer, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	in, err := os.Open("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static: ", err)
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(layer, "bin/busybox"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err == nil {
		_, err = io.Copy(out, in)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "sleep", "true", "false", "cat", "ls", "echo", "kill", "ps"} {
		if err := os.Symlink("busybox", filepath.Join(layer, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return layer
}

func (f *fixture) podConfig(name string, net, pid runtimeapi.NamespaceMode) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name + "-uid"},
		Hostname:     "a-pod",
		LogDirectory: filepath.Join(f.config.Root, "logs"),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: net, Pid: pid},
		}},
	}
}

// pod runs a sandbox with the host's network.
func (f *fixture) pod() *Sandbox { return f.podNamed("pod") }

func (f *fixture) podNamed(name string) *Sandbox {
	f.t.Helper()
	b, err := f.store.Run(context.Background(), f.podConfig(name, runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER), "")
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

func containerConfig(name string, pid runtimeapi.NamespaceMode, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: "busybox"},
		Command:  command,
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: pid},
			Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		}},
	}
}

// create creates a container with a PID namespace of its own.
func (f *fixture) create(b *Sandbox, name string, command ...string) *Container {
	f.t.Helper()
	c, err := b.CreateContainer(context.Background(), containerConfig(name, runtimeapi.NamespaceMode_CONTAINER, command...), f.image)
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

// run creates a container and starts it.
func (f *fixture) run(b *Sandbox, name string, command ...string) *Container {
	f.t.Helper()
	c := f.create(b, name, command...)
	if err := c.Start(context.Background()); err != nil {
		f.t.Fatal(err)
	}
	return c
}

// await waits for a container's end.
func (f *fixture) await(c *Container) *ContainerStatus {
	f.t.Helper()
	select {
	case <-c.exited:
	case <-time.After(20 * time.Second):
		f.t.Fatal("container has not exited:", c.whyAlive(nil))
	}
	return c.Status()
}

func (f *fixture) exec(c *Container, command ...string) string {
	f.t.Helper()
	r, err := c.ExecSync(context.Background(), command, 20)
	if err != nil || r.ExitCode != 0 {
		f.t.Fatalf("exec %q: %v, code %d, %s", command, err, r.ExitCode, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout))
}

const forever = "trap 'exit 7' TERM; while :; do sleep 1000 & wait; done"
