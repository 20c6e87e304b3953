package harness

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	cri "k8s.io/cri-client/pkg"
)

// Options say which runtime to run and how.
type Options struct {
	Binary   string   // of the project's daemon
	Peer     bool     // run Debian's containerd and runc instead
	Registry string   // host:port that serves the pause image for the peer
	CNI      bool     // give pods a bridge network
	CNIBin   string   // directory of the plugins
	Builtin  bool     // give pods the runtime's own network
	Systemd  bool     // let systemd make the pods' cgroups
	Args     []string // more arguments for the daemon
	Env      []string // more environment for the daemon
}

// Runtime is a daemon and the clients that speak to it.
type Runtime struct {
	Name   string // "cri-runtime" or "containerd"
	Tag    string // unique on this machine, at most 8 bytes
	Dir    string // everything of this runtime
	Socket string
	// Parent is the cgroup below which the tests' pods live.
	Parent string
	Bridge string // "" without CNI
	CRI    internalapi.RuntimeService
	Images internalapi.ImageManagerService
	Conn   *grpc.ClientConn

	options Options
	command *exec.Cmd
	ended   chan struct{}
}

// New makes the directories and starts the daemon.
func New(ctx context.Context, o Options) (*Runtime, error) {
	if err := becomeReaper(); err != nil {
		return nil, err
	}
	raw := make([]byte, 3)
	if _, err := rand.Read(raw); err != nil {
		return nil, fmt.Errorf("make a tag: %w", err)
	}
	r := &Runtime{Name: "cri-runtime", Tag: "ct" + hex.EncodeToString(raw), options: o}
	if o.Peer {
		r.Name = "containerd"
	}
	dir, err := os.MkdirTemp("", "critest-")
	if err != nil {
		return nil, fmt.Errorf("make the directory: %w", err)
	}
	r.Dir = dir
	r.Socket = filepath.Join(dir, "cri.sock")
	r.Parent = r.parent()
	for _, sub := range []string{"root", "state", "cni", "certs", "logs", "config.toml.d"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	if o.Builtin {
		r.Bridge = r.Tag + "br"
	}
	if o.CNI {
		if err := r.makeNetwork(ctx); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	if err := r.writeConfig(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := r.Start(ctx); err != nil {
		return nil, errors.Join(err, r.removeNetwork(), os.RemoveAll(dir))
	}
	return r, nil
}

// Start runs the daemon and waits until it answers.
func (r *Runtime) Start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(r.Dir, "daemon.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the daemon's log: %w", err)
	}
	defer log.Close()
	args := r.arguments()
	r.command = exec.Command(args[0], args[1:]...) //nolint:noctx // the daemon outlives the call
	r.command.Stdout, r.command.Stderr = log, log
	r.command.Env = append(os.Environ(), r.options.Env...)
	// A signal to the terminal's process group must not reach the daemon.
	r.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := r.command.Start(); err != nil {
		return fmt.Errorf("start %s: %w", args[0], err)
	}
	r.ended = make(chan struct{})
	go func(c *exec.Cmd, ended chan struct{}) {
		_ = c.Wait() // the exit status is in ProcessState
		close(ended)
	}(r.command, r.ended)
	if err := r.connect(ctx); err != nil {
		_ = r.command.Process.Kill()
		<-r.ended
		return fmt.Errorf("%w\n%s", err, r.LogTail())
	}
	return nil
}

func (r *Runtime) arguments() []string {
	if r.options.Peer {
		return []string{"containerd", "--config", filepath.Join(r.Dir, "config.toml")}
	}
	args := []string{
		r.options.Binary, "serve", "--config", filepath.Join(r.Dir, "config.toml"),
		"--root", filepath.Join(r.Dir, "root"), "--state", filepath.Join(r.Dir, "state"),
		"--listen", "unix://" + r.Socket,
		"--cni-conf-dir", filepath.Join(r.Dir, "cni"), "--log-level", "2",
	}
	args = append(args, r.cgroupArguments()...)
	if r.options.CNIBin != "" {
		args = append(args, "--cni-bin-dir", r.options.CNIBin)
	}
	return append(args, r.options.Args...)
}

func (r *Runtime) connect(ctx context.Context) error {
	endpoint := "unix://" + r.Socket
	err := r.awaitAnswer(ctx)
	if err != nil {
		return err
	}
	if r.CRI == nil {
		if r.CRI, err = runtimeClient(ctx, endpoint, 2*time.Minute); err != nil {
			return fmt.Errorf("runtime client: %w", err)
		}
		if r.Images, err = cri.NewRemoteImageServiceBuilder().WithEndpoint(endpoint).
			WithConnectionTimeout(2 * time.Minute).WithTracerProvider(nil).Build(ctx); err != nil {
			return fmt.Errorf("image client: %w", err)
		}
		if r.Conn, err = grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
			grpc.WithAuthority("localhost")); err != nil {
			return fmt.Errorf("raw client: %w", err)
		}
	}
	r.Conn.ResetConnectBackoff()
	// The long-lived clients may wait out a back-off after a restart.
	if err := Until(ctx, 60*time.Second, "the clients to connect again", func() bool {
		if r.Ended() {
			return true
		}
		if _, err := r.CRI.Version(ctx, "v1"); err != nil {
			return false
		}
		_, err = r.Images.ListImages(ctx, nil)
		return err == nil
	}); err != nil {
		return err
	}
	return r.requireRunning()
}

func (r *Runtime) requireRunning() error {
	if !r.Ended() {
		return nil
	}
	return fmt.Errorf("%s ended: %s: %w", r.Name, r.command.ProcessState, ErrNotReady)
}

// runtimeClient is the kubelet's client; timeout bounds each call, too.
func runtimeClient(ctx context.Context, endpoint string, timeout time.Duration) (internalapi.RuntimeService, error) {
	return cri.NewRemoteRuntimeServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(timeout).
		WithTracerProvider(nil).Build(ctx)
}

// awaitAnswer asks over connections of its own, so that no client's back-off
// is met.
func (r *Runtime) awaitAnswer(ctx context.Context) error {
	err := Until(ctx, 60*time.Second, "the daemon's first answer", func() bool {
		select {
		case <-r.ended:
			return true
		default:
		}
		probe, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		// The kubelet's client would keep a connection of every vain attempt.
		conn, err := grpc.NewClient("unix://"+r.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithAuthority("localhost"))
		if err != nil {
			return false
		}
		defer conn.Close()
		c := runtimeapi.NewRuntimeServiceClient(conn)
		if _, err = c.Version(probe, &runtimeapi.VersionRequest{}); err != nil {
			return false
		}
		if r.options.Peer { // its CRI plugin answers before it is ready to work
			status, err := c.Status(probe, &runtimeapi.StatusRequest{})
			return err == nil && len(status.Status.Conditions) > 0
		}
		return true
	})
	if err != nil {
		return err
	}
	return r.requireRunning()
}

// PID is the daemon's process id.
func (r *Runtime) PID() int { return r.command.Process.Pid }

// Signal sends sig to the daemon and, when wait is set, waits for its end.
func (r *Runtime) Signal(sig syscall.Signal, wait bool) error {
	if err := r.command.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal the daemon: %w", err)
	}
	if wait {
		<-r.ended
	}
	return nil
}

// Use makes the next Start run another binary.
func (r *Runtime) Use(binary string) { r.options.Binary = binary }

// Restart kills the daemon with sig and starts it again.
func (r *Runtime) Restart(ctx context.Context, sig syscall.Signal) error {
	if err := r.Signal(sig, true); err != nil {
		return err
	}
	return r.Start(ctx)
}

// Ended tells whether the daemon has ended.
func (r *Runtime) Ended() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// ExitCode is the daemon's exit status, -1 while it runs or after a signal.
func (r *Runtime) ExitCode() int {
	select {
	case <-r.ended:
		return r.command.ProcessState.ExitCode()
	default:
		return -1
	}
}

// LogTail is the end of what the daemon logged.
func (r *Runtime) LogTail() string {
	data, err := os.ReadFile(filepath.Join(r.Dir, "daemon.log"))
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-4000):])
}

// Close removes all pods, ends the daemon and removes its directory. The
// error tells what it could not remove or found left behind.
func (r *Runtime) Close(ctx context.Context) error {
	var errs []error
	pods, err := r.CRI.ListPodSandbox(ctx, nil)
	errs = append(errs, err, r.Check(ctx))
	for _, p := range pods {
		errs = append(errs, r.CRI.StopPodSandbox(ctx, p.Id), r.CRI.RemovePodSandbox(ctx, p.Id))
	}
	errs = append(errs, r.CRI.Close(ctx), r.Images.Close(ctx), r.Conn.Close())
	errs = append(errs, r.Signal(syscall.SIGTERM, true))
	residue, err := r.Residue()
	errs = append(errs, err)
	for _, left := range residue.Processes {
		errs = append(errs, fmt.Errorf("process %s: %w", left, ErrResidue))
	}
	for _, left := range append(residue.Mounts, residue.Cgroups...) {
		if strings.HasSuffix(left, r.Parent+"/default") || strings.HasSuffix(left, r.Parent+"/default/daemon") {
			continue // the daemon's own
		}
		errs = append(errs, fmt.Errorf("%s: %w", left, ErrResidue))
	}
	errs = append(errs, r.reports()...)
	errs = append(errs, r.removeCgroups(), r.removeNetwork(), os.RemoveAll(r.Dir))
	return errors.Join(errs...)
}
