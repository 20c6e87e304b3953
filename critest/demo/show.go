package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/images"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

const (
	execTimeout = 30 * time.Second
	waitTimeout = 10 * time.Second

	nameWidth = 24
	indent    = len("123456.78 ms  ") + nameWidth + 1
)

// demo is what has been started so far.
type demo struct {
	options  harness.Options
	node     *harness.Runtime
	registry *localregistry.Server
	image    *runtimeapi.ImageSpec
	config   *runtimeapi.PodSandboxConfig
	pod, web string // ids
	ip       string
}

// step does one thing and prints how long it took and what came of it.
func step(name string, do func() (string, error)) error {
	begin := time.Now()
	text, err := do()
	took := time.Since(begin)
	if err != nil {
		return fmt.Errorf("%s, after %v: %w", name, took.Round(time.Microsecond), err)
	}
	fmt.Printf("%9.2f ms  %-*s %s\n", float64(took.Microseconds())/1000, nameWidth, name, text)
	return nil
}

type namedStep struct {
	name string
	do   func(context.Context) (string, error)
}

func (d *demo) show(ctx context.Context) error {
	for _, s := range []namedStep{
		{"start a registry", d.startRegistry},
		{"start the runtime", d.startDaemon},
		{"Version, Status", d.status},
		{"PullImage", d.pull},
		{"RunPodSandbox", d.runPod},
		{"Create + StartContainer", d.startWeb},
		{"HTTP to the pod", d.fetch},
		{"a second container", d.startHello},
		{"its log", d.log},
		{"ExecSync", d.exec},
		{"ContainerStats", d.stats},
		{"memory (PSS)", d.memory},
		{"SIGKILL the runtime", func(context.Context) (string, error) {
			return "", d.node.Signal(syscall.SIGKILL, true)
		}},
		{"HTTP to the pod", d.fetch},
		{"start the runtime again", func(ctx context.Context) (string, error) {
			return "", d.node.Start(ctx)
		}},
		{"ContainerStatus", d.stillRuns},
		{"StopContainer", d.stopWeb},
		{"Stop, RemovePodSandbox", d.removePod},
	} {
		if err := step(s.name, func() (string, error) { return s.do(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// end removes what is left of the pods, stops the daemon and the registry,
// and reports what stayed behind.
func (d *demo) end(ctx context.Context) error {
	var err error
	if d.node != nil {
		err = step("SIGTERM the runtime", func() (string, error) { return "nothing left behind", d.node.Close(ctx) })
	}
	if d.registry != nil {
		err = errors.Join(err, d.registry.Close())
	}
	return err
}

func (d *demo) startRegistry(ctx context.Context) (string, error) {
	var err error
	if d.registry, err = localregistry.Start(ctx, localregistry.Options{}); err != nil {
		return "", err
	}
	image, err := webImage(ctx)
	if err != nil {
		return "", err
	}
	d.image = &runtimeapi.ImageSpec{Image: fmt.Sprintf("%s/%s:%s", d.registry.Address, image.Repository, image.Tag)}
	return d.image.Image, d.registry.Push(ctx, image)
}

// webImage is Debian's busybox in one layer and a web page in another.
func webImage(ctx context.Context) (images.Named, error) {
	base, err := images.BusyboxLayer(ctx)
	if err != nil {
		return images.Named{}, err
	}
	page := images.Layer{Compression: images.Zstd, Entries: []images.Entry{
		images.Dir("www/", 0o755), images.File("www/index.html", "It works.\n", 0o644),
	}}
	// A first process gets no signal that it does not catch.
	config := images.Config{
		Env: []string{images.DefaultPath},
		Cmd: []string{"sh", "-c", `trap 'kill $server; exit 0' TERM; httpd -f -p 8080 -h /www & server=$!; wait $server`},
	}
	artifact, err := images.Spec{Layers: []images.Layer{base, page}, Config: config}.Build()
	return images.Named{Repository: "demo/web", Tag: "v1", Artifact: artifact}, err
}

func (d *demo) startDaemon(ctx context.Context) (string, error) {
	var err error
	d.options.Registry = d.registry.Address
	if d.node, err = harness.New(ctx, d.options); err != nil {
		return "", err
	}
	return "unix://" + d.node.Socket, nil
}

func (d *demo) status(ctx context.Context) (string, error) {
	version, err := d.node.CRI.Version(ctx, "v1")
	if err != nil {
		return "", err
	}
	status, err := d.node.CRI.Status(ctx, false)
	if err != nil {
		return "", err
	}
	text := version.RuntimeName + " " + version.RuntimeVersion
	for _, c := range status.Status.Conditions {
		text += fmt.Sprintf(", %s %t", c.Type, c.Status)
		if !c.Status {
			return "", fmt.Errorf("%w: %s is false: %s: %s", errShown, c.Type, c.Reason, c.Message)
		}
	}
	return text, nil
}

func (d *demo) pull(ctx context.Context) (string, error) {
	id, err := d.node.Images.PullImage(ctx, d.image, nil, nil)
	if err != nil {
		return "", err
	}
	status, err := d.node.Images.ImageStatus(ctx, d.image, false)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%.19s, %d KiB", id, status.Image.Size/1024), nil
}

func (d *demo) runPod(ctx context.Context) (string, error) {
	d.config = &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "demo", Namespace: "default", Uid: "demo"},
		Hostname:     "demo",
		LogDirectory: filepath.Join(d.node.Dir, "logs"),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ownPIDs()},
		},
	}
	var err error
	if d.pod, err = d.node.CRI.RunPodSandbox(ctx, d.config, ""); err != nil {
		return "", err
	}
	status, err := d.node.CRI.PodSandboxStatus(ctx, d.pod, false)
	if err != nil {
		return "", err
	}
	d.ip = status.Status.GetNetwork().GetIp()
	return fmt.Sprintf("%.12s, address %s by CNI", d.pod, d.ip), nil
}

// ownPIDs is the kubelet's default: each container has a PID namespace.
func ownPIDs() *runtimeapi.NamespaceOption {
	return &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
}

func (d *demo) container(ctx context.Context, name string, command ...string) (string, error) {
	id, err := d.node.CRI.CreateContainer(ctx, d.pod, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    d.image,
		Command:  command,
		LogPath:  name + ".log",
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: ownPIDs()}},
	}, d.config)
	if err != nil {
		return "", err
	}
	return id, d.node.CRI.StartContainer(ctx, id)
}

func (d *demo) startWeb(ctx context.Context) (string, error) {
	var err error
	d.web, err = d.container(ctx, "web")
	return fmt.Sprintf("%.12s, a web server", d.web), err
}

func (d *demo) startHello(ctx context.Context) (string, error) {
	id, err := d.container(ctx, "hello", "sh", "-c", "echo hello from $(hostname); echo and an error >&2")
	return fmt.Sprintf("%.12s, two lines of output", id), err
}

// fetch asks the pod's web server for its page, again until it listens.
func (d *demo) fetch(ctx context.Context) (string, error) {
	var page string
	var err error
	waitErr := harness.Until(ctx, waitTimeout, "the web server to answer", func() bool {
		page, err = get(ctx, "http://"+net.JoinHostPort(d.ip, "8080")+"/")
		return err == nil
	})
	return page, errors.Join(waitErr, err)
}

func get(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(io.LimitReader(answer.Body, 4096))
	return fmt.Sprintf("%s %q", answer.Status, page), err
}

func (d *demo) exec(ctx context.Context) (string, error) {
	out, _, err := d.node.CRI.ExecSync(ctx, d.web, []string{"sh", "-c", "echo $(hostname), user $(id -un), process 1 is $(cat /proc/1/comm), $(ls /proc/self/fd | wc -l) descriptors"}, execTimeout)
	return strings.TrimSpace(string(out)), err
}

func (d *demo) stats(ctx context.Context) (string, error) {
	s, err := d.node.CRI.ContainerStats(ctx, d.web)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("processor %s, memory %d KiB, writable layer %d KiB",
		time.Duration(s.GetCpu().GetUsageCoreNanoSeconds().GetValue()).Round(time.Microsecond), //nolint:gosec // nanoseconds of a short life
		s.GetMemory().GetWorkingSetBytes().GetValue()>>10, s.GetWritableLayer().GetUsedBytes().GetValue()>>10), nil
}

// log shows the log of the container that ends by itself.
func (d *demo) log(ctx context.Context) (string, error) {
	var text []byte
	err := harness.Until(ctx, waitTimeout, "two lines in the log", func() bool {
		text, _ = os.ReadFile(filepath.Join(d.config.LogDirectory, "hello.log"))
		return strings.Count(string(text), "\n") == 2
	})
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines, "\n"+strings.Repeat(" ", indent)), err
}

func (d *demo) stillRuns(ctx context.Context) (string, error) {
	answer, err := d.node.CRI.ContainerStatus(ctx, d.web, false)
	if err != nil {
		return "", err
	}
	if answer.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return "", fmt.Errorf("%w: the web server is %s", errShown, answer.Status.State)
	}
	return "the web server went on meanwhile", nil
}

func (d *demo) stopWeb(ctx context.Context) (string, error) {
	if err := d.node.CRI.StopContainer(ctx, d.web, 5); err != nil {
		return "", err
	}
	answer, err := d.node.CRI.ContainerStatus(ctx, d.web, false)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("exit code %d, %s", answer.Status.ExitCode, answer.Status.Reason), nil
}

func (d *demo) removePod(ctx context.Context) (string, error) {
	if err := d.node.CRI.StopPodSandbox(ctx, d.pod); err != nil {
		return "", err
	}
	if err := d.node.CRI.RemovePodSandbox(ctx, d.pod); err != nil {
		return "", err
	}
	d.pod = ""
	left, err := d.node.CRI.ListContainers(ctx, &runtimeapi.ContainerFilter{})
	return fmt.Sprintf("%d containers left", len(left)), err
}
