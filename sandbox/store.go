package sandbox

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/network"
)

// Network attaches sandboxes to the pod network.
type Network interface {
	Attach(ctx context.Context, pod network.Pod) (*network.Attachment, error)
	Detach(ctx context.Context, pod network.Pod, att *network.Attachment) error
}

// Config is what a Store is opened with.
type Config struct {
	Root         string // durable state
	State        string // state that a reboot may take away
	CgroupDriver string // "cgroupfs" or "systemd"
	CgroupParent string // for pods that name none
	LogLineBytes int    // longest log line in one piece
}

// Store holds all sandboxes and containers.
type Store struct{ config Config }

// Sandbox is one pod sandbox.
type Sandbox struct{}

// Container is one container.
type Container struct{}

// Open reads the records below config.Root and connects to the monitors that
// run. Cleaning up what was left half done goes on in the background.
func Open(ctx context.Context, config Config, net Network) (*Store, error) {
	return &Store{config: config}, nil
}

// Close lets go of the monitors; no container is stopped.
func (s *Store) Close() error { return nil }

// Run creates and starts a sandbox. A repeated call for the same pod uid,
// name and attempt joins the first.
func (s *Store) Run(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (*Sandbox, error) {
	return nil, ErrUnsupported
}

// Sandbox returns the sandbox with that id or unambiguous prefix of an id.
func (s *Store) Sandbox(id string) (*Sandbox, error) { return nil, ErrNotFound }

// Sandboxes returns all sandboxes, the oldest first.
func (s *Store) Sandboxes() []*Sandbox { return nil }

// Container returns the container with that id or unambiguous prefix.
func (s *Store) Container(id string) (*Container, error) { return nil, ErrNotFound }

// Containers returns all containers, the oldest first.
func (s *Store) Containers() []*Container { return nil }

// Status returns the current state; it never waits.
func (b *Sandbox) Status() *SandboxStatus { return nil }

// Stop ends the containers and takes the network away; idempotent.
func (b *Sandbox) Stop(ctx context.Context) error { return ErrUnsupported }

// Remove stops the sandbox and removes it and its containers; idempotent.
func (b *Sandbox) Remove(ctx context.Context) error { return ErrUnsupported }

// CreateContainer creates a container in a ready sandbox. A repeated call
// for the same name and attempt joins the first.
func (b *Sandbox) CreateContainer(ctx context.Context, config *runtimeapi.ContainerConfig, image *Image) (*Container, error) {
	return nil, ErrUnsupported
}

// Status returns the current state; it never waits.
func (c *Container) Status() *ContainerStatus { return nil }

// Start runs the container's command.
func (c *Container) Start(ctx context.Context) error { return ErrUnsupported }

// Stop sends the stop signal and, after timeout seconds, SIGKILL to the whole
// cgroup; idempotent.
func (c *Container) Stop(ctx context.Context, timeout int64) error { return ErrUnsupported }

// Remove kills the container if it runs and removes it; idempotent.
func (c *Container) Remove(ctx context.Context) error { return ErrUnsupported }

// ReopenLog opens the container's log file anew.
func (c *Container) ReopenLog(ctx context.Context) error { return ErrUnsupported }

// ExecResult is what an ExecSync command left.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int32
}

// ExecSync runs a command in the container. After timeout seconds (0: none
// but ctx's) its whole cgroup is killed and context.DeadlineExceeded returned.
func (c *Container) ExecSync(ctx context.Context, command []string, timeout int64) (ExecResult, error) {
	return ExecResult{}, ErrUnsupported
}
