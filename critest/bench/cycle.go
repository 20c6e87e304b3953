package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/images"
)

// grace is the stop time-out: the processes here end at once on SIGTERM.
const grace = 30

// pod is a pod of one container.
type pod struct {
	on            *runtime
	config        *runtimeapi.PodSandboxConfig
	id, container string
	stdin         bool // the container's stdin stays open
}

func (b *bench) newPod(r *runtime, network bool) (*pod, error) {
	b.serial++
	uid := fmt.Sprintf("bench-%d", b.serial)
	mode := runtimeapi.NamespaceMode_NODE
	if network {
		mode = runtimeapi.NamespaceMode_POD
	}
	p := &pod{on: r, config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: uid, Uid: uid, Namespace: "bench"},
		LogDirectory: filepath.Join(r.Dir, "logs", uid),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: r.Parent + "/" + uid,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: mode, Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}}
	if err := os.MkdirAll(p.config.LogDirectory, 0o755); err != nil {
		return nil, fmt.Errorf("make the log directory: %w", err)
	}
	return p, nil
}

func (p *pod) run(ctx context.Context) (err error) {
	p.id, err = p.on.CRI.RunPodSandbox(ctx, p.config, "")
	return err
}

// create makes the container as a kubelet does: default seccomp profile,
// limits, masked paths, a log.
func (p *pod) create(ctx context.Context, command []string) (err error) {
	p.container, err = p.on.CRI.CreateContainer(ctx, p.id, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
		Image:    &runtimeapi.ImageSpec{Image: p.on.image},
		Command:  command,
		LogPath:  "main.log",
		Stdin:    p.stdin,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{
				CpuShares: 512, CpuQuota: 100_000, CpuPeriod: 100_000, MemoryLimitInBytes: 128 << 20, OomScoreAdj: 900,
			},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				MaskedPaths: []string{
					"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
					"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
				},
				ReadonlyPaths: []string{"/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}, p.config)
	return err
}

func (p *pod) up(ctx context.Context, command []string) error {
	if err := p.run(ctx); err != nil {
		return err
	}
	if err := p.create(ctx, command); err != nil {
		return err
	}
	return p.on.CRI.StartContainer(ctx, p.container)
}

// ready waits until the container has printed something.
func (p *pod) ready(ctx context.Context) error {
	path := filepath.Join(p.config.LogDirectory, "main.log")
	return harness.Until(ctx, time.Minute, "output of the container", func() bool {
		s, err := os.Stat(path)
		return err == nil && s.Size() > 0
	})
}

func (p *pod) down(ctx context.Context) error {
	if err := p.on.CRI.StopPodSandbox(ctx, p.id); err != nil {
		return err
	}
	if err := p.on.CRI.RemovePodSandbox(ctx, p.id); err != nil {
		return err
	}
	return p.forget()
}

// forget removes what the kubelet keeps of a pod.
func (p *pod) forget() error {
	dirs, err := filepath.Glob("/sys/fs/cgroup/*" + p.config.Linux.CgroupParent)
	errs := []error{err}
	for _, d := range append(dirs, "/sys/fs/cgroup"+p.config.Linux.CgroupParent) {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(p.config.LogDirectory))...)
}

// step is one measured call.
type step struct {
	name, goal string
	call       func(ctx context.Context) error
}

func (p *pod) steps(network bool) []step {
	cri := p.on.CRI
	all := []step{
		{"RunPodSandbox", "<= 2", p.run},
		{"CreateContainer", "", func(ctx context.Context) error { return p.create(ctx, images.Signaller()) }},
		{"StartContainer", "", func(ctx context.Context) error { return cri.StartContainer(ctx, p.container) }},
		{"ExecSync true", "<= 2.5", func(ctx context.Context) error {
			_, _, err := cri.ExecSync(ctx, p.container, []string{"true"}, time.Minute)
			return err
		}},
		{"ContainerStatus", "", func(ctx context.Context) error {
			_, err := cri.ContainerStatus(ctx, p.container, false)
			return err
		}},
		{"ListContainers", "", func(ctx context.Context) error {
			_, err := cri.ListContainers(ctx, nil)
			return err
		}},
		{"StopContainer", "<= 8", func(ctx context.Context) error { return cri.StopContainer(ctx, p.container, grace) }},
		{"RemoveContainer", "<= 3", func(ctx context.Context) error { return cri.RemoveContainer(ctx, p.container) }},
		{"StopPodSandbox", "", func(ctx context.Context) error { return cri.StopPodSandbox(ctx, p.id) }},
		{"RemovePodSandbox", "<= 3", func(ctx context.Context) error { return cri.RemovePodSandbox(ctx, p.id) }},
	}
	if network {
		return []step{all[0], all[8], all[9]}
	}
	return all
}

// cycle runs one pod through its life and measures each call after an idle
// time of gap.
func (b *bench) cycle(ctx context.Context, r *runtime, network bool, gap time.Duration) ([]time.Duration, error) {
	p, err := b.newPod(r, network)
	if err != nil {
		return nil, err
	}
	var out []time.Duration
	for _, s := range p.steps(network) {
		if s.name == "StopContainer" {
			if err := p.ready(ctx); err != nil {
				return nil, err
			}
		}
		if err := idle(ctx, gap); err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := s.call(ctx); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", r.Name, s.name, err)
		}
		out = append(out, time.Since(begin))
	}
	return out, p.forget()
}

// idle waits.
func idle(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
