package service

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/images"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

const (
	unit     = "cri-runtime.service"
	socket   = "/run/cri-runtime/cri-runtime.sock"
	patience = 30 * time.Second
)

// node is a machine with the package.
type node struct {
	*testing.T
	deb     string
	client  runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
	image   string
	pod     string
	config  *runtimeapi.PodSandboxConfig
	started int64 // of the container that outlives everything
	ctr     string
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{T: t, deb: os.Getenv("CRITEST_DEB")}
	if n.deb == "" {
		t.Skip("needs a machine to install the package on: make test-vm")
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		t.Fatal("systemd is not the init of this machine")
	}
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	n.client, n.images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	return n
}

func dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
}

// step runs a part of the test; those after one that failed are left out.
func (n *node) step(name string, do func(*node)) {
	n.Helper()
	if n.Failed() {
		return
	}
	n.Run(name, func(t *testing.T) {
		m := *n
		m.T = t
		do(&m)
		m.T = n.T
		*n = m
	})
}

func (n *node) command(args ...string) string {
	n.Helper()
	cmd := exec.CommandContext(n.Context(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		n.Fatalf("%q: %v: %s\n%s", args, err, out, n.journal())
	}
	return strings.TrimSpace(string(out))
}

func (n *node) journal() string {
	out, err := exec.Command("journalctl", "-u", unit, "-b", "--no-pager", "-n", "40", "-o", "short-monotonic").CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

func (n *node) property(name string) string {
	n.Helper()
	return n.command("systemctl", "show", unit, "--value", "-p", name)
}

func (n *node) mainPID() int {
	n.Helper()
	pid, err := strconv.Atoi(n.property("MainPID"))
	if err != nil {
		n.Fatal(err)
	}
	return pid
}

func (n *node) await(what string, done func() bool) {
	n.Helper()
	if err := harness.Until(n.Context(), patience, what, done); err != nil {
		n.Fatalf("%v\n%s", err, n.journal())
	}
}

// ready waits until the daemon answers.
func (n *node) ready() {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), patience*harness.Slowness())
	defer cancel()
	answer, err := n.client.Status(ctx, &runtimeapi.StatusRequest{}, grpc.WaitForReady(true))
	if err != nil {
		n.Fatalf("%v\n%s", err, n.journal())
	}
	for _, c := range answer.Status.Conditions {
		if !c.Status {
			n.Errorf("condition %v", c)
		}
	}
}

func (n *node) pull() {
	n.Helper()
	base, err := images.BusyboxLayer(n.Context())
	if err != nil {
		n.Fatal(err)
	}
	a, err := images.Spec{Layers: []images.Layer{base}}.Build()
	if err != nil {
		n.Fatal(err)
	}
	depot, err := localregistry.Start(n.Context(), localregistry.Options{})
	if err != nil {
		n.Fatal(err)
	}
	defer depot.Close()
	if err := depot.Push(n.Context(), images.Named{Repository: "busybox", Tag: "latest", Artifact: a}); err != nil {
		n.Fatal(err)
	}
	n.image = depot.Address + "/busybox:latest"
	if _, err := n.images.PullImage(n.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.image}}); err != nil {
		n.Fatal(err)
	}
}

// run starts a pod on the runtime's own network and a container that lasts.
func (n *node) run() {
	n.Helper()
	logs := "/var/log/pods/critest"
	if err := os.MkdirAll(logs, 0o755); err != nil { //nolint:gosec // as the kubelet does
		n.Fatal(err)
	}
	n.config = &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "lasting", Uid: "critest", Namespace: "critest"}, LogDirectory: logs,
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/kubepods.slice/kubepods-critest.slice"},
	}
	answer, err := n.client.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.config})
	if err != nil {
		n.Fatalf("%v\n%s", err, n.journal())
	}
	n.pod = answer.PodSandboxId
	n.ctr = n.start("lasting", "while :; do sleep 1000; done")
	n.started = n.status().StartedAt
}

func (n *node) start(name, script string) string {
	n.Helper()
	made, err := n.client.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: n.pod, SandboxConfig: n.config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: n.image},
			Command: []string{"/bin/sh", "-c", script}, LogPath: name + ".log", Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20},
			},
		},
	})
	if err != nil {
		n.Fatalf("%v\n%s", err, n.journal())
	}
	if _, err := n.client.StartContainer(n.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		n.Fatalf("%v\n%s", err, n.journal())
	}
	return made.ContainerId
}

func (n *node) status() *runtimeapi.ContainerStatus {
	n.Helper()
	answer, err := n.client.ContainerStatus(n.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: n.ctr}, grpc.WaitForReady(true))
	if err != nil {
		n.Fatalf("%v\n%s", err, n.journal())
	}
	return answer.Status
}

// unharmed says whether the container is the one that was started, and serves.
func (n *node) unharmed() {
	n.Helper()
	if s := n.status(); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || s.StartedAt != n.started || s.GetMetadata().GetAttempt() != 0 {
		n.Fatalf("the container was harmed: %v\n%s", s, n.journal())
	}
	answer, err := n.client.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: n.ctr, Cmd: []string{"/bin/echo", "fine"}, Timeout: 60})
	if err != nil || string(answer.Stdout) != "fine\n" {
		n.Fatalf("exec: %v, %v", answer, err)
	}
}

// left lists what of the package is on the machine.
func left(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, pattern := range []string{
		"/usr/bin/cri-runtime*", "/usr/lib/cri-runtime*", "/usr/share/cri-runtime*", "/usr/lib/systemd/system/cri-runtime*",
		"/etc/cri-runtime*", "/etc/crictl.yaml", "/etc/systemd/system/*/cri-runtime*", "/var/lib/cri-runtime*", "/run/cri-runtime*",
		"/sys/fs/cgroup/cri*", "/sys/fs/cgroup/*/cri-runtime*", "/sys/class/net/cri*", "/run/systemd/system/cri-runtime*",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if !strings.Contains(f, "cri-runtime-test") { // what this test may run in
				out = append(out, f)
			}
		}
	}
	return out
}
