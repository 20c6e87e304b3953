package critest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// patience bounds every wait; nothing here is measured.
const patience = 60 * time.Second

var serial atomic.Int64

// pod is a sandbox as a test sees it.
type pod struct {
	t      *testing.T
	id     string
	config *runtimeapi.PodSandboxConfig
}

type (
	podOption       func(*runtimeapi.PodSandboxConfig)
	containerOption func(*runtimeapi.ContainerConfig)
)

// podConfig is a pod on the host's network, which is the quickest one.
func podConfig(options ...podOption) *runtimeapi.PodSandboxConfig {
	uid := fmt.Sprintf("%s-%d", node.Tag, serial.Add(1))
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "pod-" + uid, Uid: uid, Namespace: "critest", Attempt: 0},
		LogDirectory: filepath.Join(node.Dir, "logs", uid),
		Labels:       map[string]string{"uid": uid},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: node.PodCgroup(uid),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{
					Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER,
				},
			},
		},
	}
	for _, o := range options {
		o(config)
	}
	return config
}

// namespaces sets the pod's options.
func namespaces(network, pid, ipc runtimeapi.NamespaceMode) podOption {
	return func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: network, Pid: pid, Ipc: ipc}
	}
}

// podNetwork gives the pod a network and a host name of its own.
func podNetwork(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_POD
	c.Hostname = "host-of-" + c.Metadata.Uid
}

// run starts a pod that goes away with the test.
func run(t *testing.T, options ...podOption) *pod {
	t.Helper()
	config := podConfig(options...)
	prepare(t, config)
	id, err := node.CRI.RunPodSandbox(t.Context(), config, "")
	if err != nil {
		t.Fatalf("run a pod: %v", err)
	}
	p := &pod{t: t, id: id, config: config}
	t.Cleanup(p.remove)
	return p
}

// prepare does what the kubelet does before and after a pod's life.
func prepare(t *testing.T, config *runtimeapi.PodSandboxConfig) {
	t.Helper()
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var last error
		if err := harness.Until(context.Background(), patience, "the pod's cgroup to be empty", func() bool {
			last = node.RemoveCgroup(context.Background(), config.Linux.CgroupParent)
			return last == nil
		}); err != nil {
			t.Logf("%v: %v", err, last) // the leak check tells what is in it
		}
		if err := os.RemoveAll(config.LogDirectory); err != nil {
			t.Error(err)
		}
	})
}

func (p *pod) remove() {
	ctx := context.Background()
	if err := node.CRI.StopPodSandbox(ctx, p.id); err != nil && (!peer || status.Code(err) != codes.NotFound) {
		p.t.Errorf("stop the pod: %v", err)
	}
	if err := node.CRI.RemovePodSandbox(ctx, p.id); err != nil {
		p.t.Errorf("remove the pod: %v", err)
	}
}

func (p *pod) status() *runtimeapi.PodSandboxStatus {
	p.t.Helper()
	answer, err := node.CRI.PodSandboxStatus(p.t.Context(), p.id, false)
	if err != nil {
		p.t.Fatal(err)
	}
	return answer.Status
}

// container is a container as a test sees it.
type container struct {
	t      *testing.T
	id     string
	pod    *pod
	config *runtimeapi.ContainerConfig
}

// containerConfig is a busybox container that runs a shell script.
func containerConfig(t *testing.T, script string, options ...containerOption) *runtimeapi.ContainerConfig {
	t.Helper()
	name := fmt.Sprintf("c%d", serial.Add(1))
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image(t, "busybox")},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{},
		},
	}
	for _, o := range options {
		o(config)
	}
	return config
}

// withImage uses another image and its own command.
func withImage(t *testing.T, name string) containerOption {
	t.Helper()
	ref := image(t, name)
	return func(c *runtimeapi.ContainerConfig) {
		c.Image.Image = ref
		c.Command = nil
	}
}

// create makes a container in p.
func (p *pod) create(script string, options ...containerOption) *container {
	p.t.Helper()
	config := containerConfig(p.t, script, options...)
	config.Linux.SecurityContext.NamespaceOptions = p.config.Linux.SecurityContext.NamespaceOptions
	id, err := node.CRI.CreateContainer(p.t.Context(), p.id, config, p.config)
	if err != nil {
		p.t.Fatalf("create a container: %v", err)
	}
	return &container{t: p.t, id: id, pod: p, config: config}
}

// refused tries to create and start a container that must not come to life,
// and returns the error of the step that refused it.
func (p *pod) refused(script string, options ...containerOption) error {
	p.t.Helper()
	config := containerConfig(p.t, script, options...)
	config.Linux.SecurityContext.NamespaceOptions = p.config.Linux.SecurityContext.NamespaceOptions
	id, err := node.CRI.CreateContainer(p.t.Context(), p.id, config, p.config)
	if err != nil {
		return err
	}
	c := &container{t: p.t, id: id, pod: p, config: config}
	defer c.remove()
	if err = node.CRI.StartContainer(p.t.Context(), id); err == nil {
		p.t.Errorf("the container started; its output: %q", c.wait())
	}
	return err
}

// start creates and starts a container in p.
func (p *pod) start(script string, options ...containerOption) *container {
	p.t.Helper()
	c := p.create(script, options...)
	c.start()
	return c
}

// finish runs a script to its end.
func (p *pod) finish(script string, options ...containerOption) result {
	p.t.Helper()
	c := p.start(script, options...)
	r := c.wait()
	c.remove()
	return r
}

// output runs a script that must succeed and returns its trimmed output.
func (p *pod) output(script string, options ...containerOption) string {
	p.t.Helper()
	r := p.finish(script, options...)
	if r.code != 0 {
		p.t.Fatalf("%s: code %d (%s %s), stdout %q, stderr %q", script, r.code, r.reason, r.message, r.stdout, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

func (c *container) start() {
	c.t.Helper()
	if err := node.CRI.StartContainer(c.t.Context(), c.id); err != nil {
		c.t.Fatalf("start a container: %v", err)
	}
}

func (c *container) status() *runtimeapi.ContainerStatus {
	c.t.Helper()
	answer, err := node.CRI.ContainerStatus(c.t.Context(), c.id, false)
	if err != nil {
		c.t.Fatal(err)
	}
	return answer.Status
}

func (c *container) remove() {
	c.t.Helper()
	if err := node.CRI.RemoveContainer(context.Background(), c.id); err != nil {
		c.t.Errorf("remove a container: %v", err)
	}
}

func (c *container) stop(grace int64) {
	c.t.Helper()
	if err := node.CRI.StopContainer(c.t.Context(), c.id, grace); err != nil {
		c.t.Fatalf("stop a container: %v", err)
	}
}

// result is what a container left.
type result struct {
	code            int32
	reason, message string
	stdout, stderr  string
}

// wait waits for the container's end and the end of its log.
func (c *container) wait() result {
	c.t.Helper()
	var last *runtimeapi.ContainerStatus
	if err := harness.Until(c.t.Context(), patience, "the container's end", func() bool {
		last = c.status()
		return last.State == runtimeapi.ContainerState_CONTAINER_EXITED
	}); err != nil {
		c.t.Fatalf("%v: %v", err, last)
	}
	r := result{code: last.ExitCode, reason: last.Reason, message: last.Message}
	if c.config.LogPath == "" {
		return r
	}
	var err error
	if r.stdout, r.stderr, err = readLog(c.logPath()); err != nil {
		c.t.Fatal(err)
	}
	return r
}

// prints waits until the log contains text.
func (c *container) prints(text string) {
	c.t.Helper()
	var out, errOut string
	if err := harness.Until(c.t.Context(), patience, "output of the container", func() bool {
		var err error
		out, errOut, err = readLog(c.logPath())
		return err == nil && strings.Contains(out+errOut, text)
	}); err != nil {
		c.t.Fatalf("%q: %v; it printed %q and %q; %v", text, err, out, errOut, c.status())
	}
}

func (c *container) logPath() string {
	return filepath.Join(c.pod.config.LogDirectory, c.config.LogPath)
}

// exec runs a command that must answer with that code.
func (c *container) exec(code int32, command ...string) string {
	c.t.Helper()
	answer, err := raw.ExecSync(c.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: command, Timeout: 60})
	if err != nil {
		c.t.Fatalf("exec %q: %v", command, err)
	}
	if answer.ExitCode != code {
		c.t.Fatalf("exec %q: code %d, want %d; stdout %q stderr %q", command, answer.ExitCode, code, answer.Stdout, answer.Stderr)
	}
	return string(answer.Stdout)
}

// wantCode checks the gRPC code of err.
func wantCode(t *testing.T, err error, want ...codes.Code) {
	t.Helper()
	got := status.Code(err)
	for _, w := range want {
		if got == w {
			return
		}
	}
	t.Errorf("%v: code %s, want %v", err, got, want)
}
