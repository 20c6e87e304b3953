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

	criapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"

	"github.com/cri-runtime/cri-runtime/critest/images"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

const (
	rpcTimeout  = 30 * time.Second
	httpTimeout = 10 * time.Second
)

// demo is what has been started so far.
type demo struct {
	node     *node
	registry *localregistry.Server
	runtime  criapi.RuntimeService
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
	fmt.Printf("%9.2f ms  %-24s %s\n", float64(took.Microseconds())/1000, name, text)
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
		{"Create + StartContainer", d.startContainers},
		{"HTTP to the pod", d.fetch},
		{"ExecSync", d.exec},
		{"the container's log", d.log},
		{"memory (PSS)", d.memory},
		{"SIGKILL the runtime", func(context.Context) (string, error) {
			return "and start it again", d.node.stop(syscall.SIGKILL)
		}},
		{"start the runtime", d.startDaemon},
		{"ContainerStatus", d.stillRuns},
		{"HTTP to the pod", d.fetch},
		{"StopContainer", d.stopWeb},
		{"Stop, RemovePodSandbox", d.removePod},
		{"SIGTERM the runtime", func(context.Context) (string, error) {
			return "ended cleanly", d.node.stop(syscall.SIGTERM)
		}},
	} {
		if err := step(s.name, func() (string, error) { return s.do(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// undo takes away what a failed demo has left.
func (d *demo) undo(ctx context.Context) error {
	var err error
	if d.pod != "" && d.node.cmd != nil {
		ctx, cancel := context.WithTimeout(ctx, rpcTimeout)
		defer cancel()
		_, err = d.removePod(ctx)
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
	catalog, err := images.Catalog(ctx)
	if err != nil {
		return "", err
	}
	for _, named := range catalog {
		if named.Repository != "cri-runtime/web" {
			continue
		}
		d.image = &runtimeapi.ImageSpec{Image: fmt.Sprintf("%s/%s:%s", d.registry.Address, named.Repository, named.Tag)}
		return d.image.Image, d.registry.Push(ctx, named)
	}
	return "", fmt.Errorf("image cri-runtime/web: %w", os.ErrNotExist)
}

func (d *demo) startDaemon(ctx context.Context) (string, error) {
	if err := d.node.start(ctx); err != nil {
		return "", err
	}
	var err error
	d.runtime, err = criclient.NewRemoteRuntimeService(ctx, d.node.socket(), rpcTimeout, nil, false)
	return d.node.socket(), err
}

func (d *demo) status(ctx context.Context) (string, error) {
	version, err := d.runtime.Version(ctx, "v1")
	if err != nil {
		return "", err
	}
	status, err := d.runtime.Status(ctx, false)
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
	service, err := criclient.NewRemoteImageService(ctx, d.node.socket(), rpcTimeout, nil, false)
	if err != nil {
		return "", err
	}
	id, err := service.PullImage(ctx, d.image, nil, nil)
	if err != nil {
		return "", err
	}
	status, err := service.ImageStatus(ctx, d.image, false)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%.19s, %d KiB", id, status.Image.Size/1024), nil
}

func (d *demo) runPod(ctx context.Context) (string, error) {
	d.config = &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "demo", Namespace: "default", Uid: "demo"},
		Hostname:     "demo",
		LogDirectory: d.node.path("logs"),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: d.node.cgroup + "/pod",
		},
	}
	var err error
	if d.pod, err = d.runtime.RunPodSandbox(ctx, d.config, ""); err != nil {
		return "", err
	}
	status, err := d.runtime.PodSandboxStatus(ctx, d.pod, false)
	if err != nil {
		return "", err
	}
	d.ip = status.Status.GetNetwork().GetIp()
	return fmt.Sprintf("%.12s, address %s by CNI", d.pod, d.ip), nil
}

func (d *demo) container(ctx context.Context, name string, command ...string) (string, error) {
	id, err := d.runtime.CreateContainer(ctx, d.pod, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    d.image,
		Command:  command,
		LogPath:  name + ".log",
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{}},
	}, d.config)
	if err != nil {
		return "", err
	}
	return id, d.runtime.StartContainer(ctx, id)
}

func (d *demo) startContainers(ctx context.Context) (string, error) {
	var err error
	if d.web, err = d.container(ctx, "web"); err != nil {
		return "", err
	}
	hello, err := d.container(ctx, "hello", "sh", "-c", "echo hello from $(hostname); echo and an error >&2")
	return fmt.Sprintf("%.12s (web server), %.12s (two lines of output)", d.web, hello), err
}

// fetch asks the pod's web server for its page, again until it listens.
func (d *demo) fetch(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, httpTimeout)
	defer cancel()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		page, err := get(ctx, "http://"+net.JoinHostPort(d.ip, "8080")+"/")
		if err == nil {
			return page, nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return "", err
		}
	}
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
	defer answer.Body.Close() //nolint:errcheck // it has been read
	page, err := io.ReadAll(io.LimitReader(answer.Body, 4096))
	return fmt.Sprintf("%s %q", answer.Status, page), err
}

func (d *demo) exec(ctx context.Context) (string, error) {
	out, _, err := d.runtime.ExecSync(ctx, d.web, []string{"sh", "-c", "echo $(hostname): $(ps | wc -l) lines of ps, root is $(stat -f -c %T /)"}, rpcTimeout)
	return strings.TrimSpace(string(out)), err
}

// log shows the log of the container that has ended by itself.
func (d *demo) log(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, httpTimeout)
	defer cancel()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		text, err := os.ReadFile(filepath.Join(d.config.LogDirectory, "hello.log"))
		if err == nil && strings.Count(string(text), "\n") == 2 {
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			return strings.Join(lines, "\n"+strings.Repeat(" ", 38)), nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return "", fmt.Errorf("%w: log %q, %w", errShown, text, errors.Join(err, ctx.Err()))
		}
	}
}

func (d *demo) stillRuns(ctx context.Context) (string, error) {
	answer, err := d.runtime.ContainerStatus(ctx, d.web, false)
	if err != nil {
		return "", err
	}
	if answer.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return "", fmt.Errorf("%w: the web server is %s", errShown, answer.Status.State)
	}
	return "the web server went on meanwhile", nil
}

func (d *demo) stopWeb(ctx context.Context) (string, error) {
	if err := d.runtime.StopContainer(ctx, d.web, 5); err != nil {
		return "", err
	}
	answer, err := d.runtime.ContainerStatus(ctx, d.web, false)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("exit code %d, %s", answer.Status.ExitCode, answer.Status.Reason), nil
}

func (d *demo) removePod(ctx context.Context) (string, error) {
	if err := d.runtime.StopPodSandbox(ctx, d.pod); err != nil {
		return "", err
	}
	if err := d.runtime.RemovePodSandbox(ctx, d.pod); err != nil {
		return "", err
	}
	d.pod = ""
	left, err := d.runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{})
	return fmt.Sprintf("%d containers left", len(left)), err
}
