package server

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// ContainerStats tells what one container uses; of one that does not run, only
// its writable layer.
func (s *runtimeService) ContainerStats(_ context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	stats, _ := s.containerStats(c)
	return &runtimeapi.ContainerStatsResponse{Stats: stats}, nil
}

// ListContainerStats tells what the running containers that pass the filter use.
func (s *runtimeService) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	resp := &runtimeapi.ListContainerStatsResponse{}
	return resp, s.eachContainerStats(ctx, req.GetFilter(), func(stats *runtimeapi.ContainerStats) error {
		resp.Stats = append(resp.Stats, stats)
		return nil
	})
}

// PodSandboxStats tells what one pod uses.
func (s *runtimeService) PodSandboxStats(_ context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	box, err := s.sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: s.podStats(box, box.Containers())}, nil
}

// ListPodSandboxStats tells what the pods that pass the filter use; those that
// are not ready use nothing.
func (s *runtimeService) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	resp := &runtimeapi.ListPodSandboxStatsResponse{}
	return resp, s.eachPodStats(ctx, req.GetFilter(), func(stats *runtimeapi.PodSandboxStats) error {
		resp.Stats = append(resp.Stats, stats)
		return nil
	})
}

func (s *runtimeService) eachContainerStats(ctx context.Context, f *runtimeapi.ContainerStatsFilter, yield func(*runtimeapi.ContainerStats) error) error {
	var running []*sandbox.Container
	for _, c := range s.config.Runtime.Containers() {
		st := c.Status()
		if st.State == runtimeapi.ContainerState_CONTAINER_RUNNING && strings.HasPrefix(st.ID, f.GetId()) &&
			strings.HasPrefix(st.SandboxID, f.GetPodSandboxId()) && matchLabels(f.GetLabelSelector(), st.Config.GetLabels()) {
			running = append(running, c)
		}
	}
	return inBatches(ctx, running, func(c *sandbox.Container) *runtimeapi.ContainerStats {
		stats, u := s.containerStats(c)
		if u == nil {
			return nil // it has gone meanwhile
		}
		return stats
	}, yield)
}

func (s *runtimeService) eachPodStats(ctx context.Context, f *runtimeapi.PodSandboxStatsFilter, yield func(*runtimeapi.PodSandboxStats) error) error {
	ready, containers := s.readyPods(func(st *sandbox.SandboxStatus) bool {
		return strings.HasPrefix(st.ID, f.GetId()) && matchLabels(f.GetLabelSelector(), st.Config.GetLabels())
	})
	return inBatches(ctx, ready, func(box *sandbox.Sandbox) *runtimeapi.PodSandboxStats {
		return s.podStats(box, containers[box.Status().ID])
	}, yield)
}

// readyPods returns the ready sandboxes that match, and all containers by sandbox.
func (s *runtimeService) readyPods(match func(*sandbox.SandboxStatus) bool) ([]*sandbox.Sandbox, map[string][]*sandbox.Container) {
	ready := slices.DeleteFunc(s.config.Runtime.Sandboxes(), func(box *sandbox.Sandbox) bool {
		st := box.Status()
		return st.State != runtimeapi.PodSandboxState_SANDBOX_READY || !match(st)
	})
	containers := map[string][]*sandbox.Container{}
	for _, c := range s.config.Runtime.Containers() {
		id := c.Status().SandboxID
		containers[id] = append(containers[id], c)
	}
	return ready, containers
}

// inBatches calls look for a batch of items at a time, on all processors, and
// yield for what is not nil, in the order of the items.
func inBatches[T any, R any](ctx context.Context, items []T, look func(T) *R, yield func(*R) error) error {
	for batch := range slices.Chunk(items, maxBatchItems) {
		if err := ctx.Err(); err != nil {
			return err
		}
		results := make([]*R, len(batch))
		workers := min(runtime.GOMAXPROCS(0), len(batch))
		var wait sync.WaitGroup
		var next atomic.Int64
		for range workers {
			wait.Go(func() {
				for i := next.Add(1) - 1; i < int64(len(batch)); i = next.Add(1) - 1 {
					results[i] = look(batch[i])
				}
			})
		}
		wait.Wait()
		for _, r := range results {
			if r == nil {
				continue
			}
			if err := yield(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// containerStats has what could be read: a container may go while it is looked
// at. What it uses is nil then, and when it does not run.
func (s *runtimeService) containerStats(c *sandbox.Container) (*runtimeapi.ContainerStats, *sandbox.Usage) {
	st := c.Status()
	stats := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id: st.ID, Metadata: st.Config.GetMetadata(), Labels: st.Config.GetLabels(), Annotations: st.Config.GetAnnotations(),
		},
		WritableLayer: s.writableLayer(c),
	}
	if st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return stats, nil
	}
	u, err := c.Usage(false)
	if err != nil {
		if !errors.Is(err, sandbox.ErrNotFound) {
			klog.ErrorS(err, "Statistics of a container", "container", st.ID, "pod", st.SandboxID)
		}
		return stats, nil
	}
	if !u.CPU.Known && !u.Memory.Known {
		return stats, nil // it is going
	}
	stats.Cpu, stats.Memory, stats.Swap, stats.Io = cpuUsage(u), memoryUsage(u), swapUsage(u), ioUsage(u)
	return stats, u
}

func (s *runtimeService) writableLayer(c *sandbox.Container) *runtimeapi.FilesystemUsage {
	bytes, inodes, at := c.WritableLayer()
	if at.IsZero() {
		return nil // not counted yet
	}
	return filesystem(s.config.Runtime.WritablePath(), bytes, inodes, at)[0]
}

func (s *runtimeService) podStats(box *sandbox.Sandbox, containers []*sandbox.Container) *runtimeapi.PodSandboxStats {
	st := box.Status()
	linux := &runtimeapi.LinuxPodSandboxStats{Network: networkUsage(box)}
	var usages []*sandbox.Usage
	for _, c := range containers {
		if c.Status().State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		if stats, u := s.containerStats(c); u != nil {
			linux.Containers, usages = append(linux.Containers, stats), append(usages, u)
		}
	}
	if u, err := box.Usage(usages...); err == nil {
		linux.Cpu, linux.Memory, linux.Io = cpuUsage(u), memoryUsage(u), ioUsage(u)
		linux.Process = &runtimeapi.ProcessUsage{Timestamp: u.At, ProcessCount: value(uint64(u.Processes))}
	} else if !errors.Is(err, sandbox.ErrNotFound) {
		klog.ErrorS(err, "Statistics of a sandbox", "pod", st.ID)
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: st.ID, Metadata: st.Config.GetMetadata(), Labels: st.Config.GetLabels(), Annotations: st.Config.GetAnnotations(),
		},
		Linux: linux,
	}
}

func value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

// remaining is what is left of a limit, nil without one.
func remaining(limit, used uint64) *runtimeapi.UInt64Value {
	if limit == oci.NoLimit {
		return nil
	}
	return value(limit - min(limit, used))
}

func cpuUsage(u *sandbox.Usage) *runtimeapi.CpuUsage {
	if !u.CPU.Known {
		return nil
	}
	usage := &runtimeapi.CpuUsage{Timestamp: u.At, UsageCoreNanoSeconds: value(u.CPU.Usage), Psi: psi(&u.CPU.Pressure)}
	if u.NanoCoresKnown {
		usage.UsageNanoCores = value(u.NanoCores)
	}
	return usage
}

func memoryUsage(u *sandbox.Usage) *runtimeapi.MemoryUsage {
	m := &u.Memory
	if !m.Known {
		return nil
	}
	return &runtimeapi.MemoryUsage{
		Timestamp:       u.At,
		WorkingSetBytes: value(m.WorkingSet),
		AvailableBytes:  remaining(m.Limit, m.WorkingSet),
		UsageBytes:      value(m.Usage),
		RssBytes:        value(m.RSS),
		PageFaults:      value(m.PageFaults),
		MajorPageFaults: value(m.MajorPageFaults),
		Psi:             psi(&m.Pressure),
	}
}

func swapUsage(u *sandbox.Usage) *runtimeapi.SwapUsage {
	if !u.Memory.SwapKnown {
		return nil
	}
	return &runtimeapi.SwapUsage{
		Timestamp:          u.At,
		SwapUsageBytes:     value(u.Memory.Swap),
		SwapAvailableBytes: remaining(u.Memory.SwapLimit, u.Memory.Swap),
	}
}

func ioUsage(u *sandbox.Usage) *runtimeapi.IoUsage {
	return &runtimeapi.IoUsage{Timestamp: u.At, Psi: psi(&u.IO.Pressure)}
}

// psi is nil where the kernel has no pressure information, as on cgroup v1.
func psi(p *oci.Pressure) *runtimeapi.PsiStats {
	if !p.Known {
		return nil
	}
	data := func(s *oci.Stall) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: s.Total, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &runtimeapi.PsiStats{Full: data(&p.Full), Some: data(&p.Some)}
}

// networkUsage is nil for a pod on the host's network: what goes through the
// host's interfaces is not the pod's.
func networkUsage(box *sandbox.Sandbox) *runtimeapi.NetworkUsage {
	list, err := box.Interfaces()
	if err != nil {
		klog.ErrorS(err, "Network statistics of a sandbox", "pod", box.Status().ID)
	}
	if len(list) == 0 {
		return nil
	}
	usage := &runtimeapi.NetworkUsage{Timestamp: time.Now().UnixNano()}
	for i := range list {
		n := &list[i]
		item := &runtimeapi.NetworkInterfaceUsage{
			Name:    n.Name,
			RxBytes: value(n.RxBytes), RxErrors: value(n.RxErrors),
			TxBytes: value(n.TxBytes), TxErrors: value(n.TxErrors),
		}
		if i == 0 && !n.Loopback() {
			usage.DefaultInterface = item
			continue
		}
		usage.Interfaces = append(usage.Interfaces, item)
	}
	return usage
}
