package server

import (
	"context"
	"errors"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// baseLabels are what the kubelet gives the metrics of its own cAdvisor: the
// cgroup, the container's id, its image and what it is to Kubernetes. The
// metrics of a pod have the sandbox's id as name, and no image and no container.
func baseLabels() []string {
	return []string{"id", "name", "image", "container", "pod", "namespace"}
}

// ListMetricDescriptors names the metrics that there can be on this node.
func (s *runtimeService) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	resp := &runtimeapi.ListMetricDescriptorsResponse{}
	for i := range s.metrics {
		m := &s.metrics[i]
		if strings.HasPrefix(m.name, "container_hugetlb_") && !s.config.Runtime.HasHugepages() {
			continue
		}
		resp.Descriptors = append(resp.Descriptors, &runtimeapi.MetricDescriptor{
			Name: m.name, Help: m.help, LabelKeys: append(baseLabels(), m.labels...),
		})
	}
	return resp, nil
}

// ListPodSandboxMetrics returns the metrics of all ready pods, looked up now.
func (s *runtimeService) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	resp := &runtimeapi.ListPodSandboxMetricsResponse{}
	return resp, s.eachPodMetrics(ctx, func(m *runtimeapi.PodSandboxMetrics) error {
		resp.PodMetrics = append(resp.PodMetrics, m)
		return nil
	})
}

func (s *runtimeService) eachPodMetrics(ctx context.Context, yield func(*runtimeapi.PodSandboxMetrics) error) error {
	pods, containers := s.readyPods(func(*sandbox.SandboxStatus) bool { return true })
	volume, err := s.config.Runtime.Volume()
	if err != nil {
		klog.ErrorS(err, "Metrics of file systems are left out")
	}
	names := newImageNames(s.config.Images)
	images := map[*sandbox.Container]string{} // found here: names is for one goroutine
	for _, list := range containers {
		for _, c := range list {
			images[c] = names.of(c.Status()).spec.GetImage()
		}
	}
	return inBatches(ctx, pods, func(box *sandbox.Sandbox) *runtimeapi.PodSandboxMetrics {
		st := box.Status()
		pod := &runtimeapi.PodSandboxMetrics{PodSandboxId: st.ID}
		var usages []*sandbox.Usage
		for _, c := range containers[st.ID] {
			// One that has exited, such as an init container, has no metrics; its pod has.
			if list, u := s.containerMetrics(c, st, images[c], &volume); u != nil {
				usages = append(usages, u)
				pod.ContainerMetrics = append(pod.ContainerMetrics, &runtimeapi.ContainerMetrics{ContainerId: c.Status().ID, Metrics: list})
			}
		}
		pod.Metrics = s.podMetrics(box, usages)
		return pod
	}, yield)
}

// observation is what the metrics of one container or pod are computed from.
type observation struct {
	*sandbox.Usage
	at         time.Time
	started    int64 // ns since the epoch
	resources  *runtimeapi.LinuxContainerResources
	container  bool
	interfaces []sandbox.Interface // of a pod

	// Of a container.
	volume         *sandbox.Volume
	written        uint64 // bytes of the writable layer
	writtenKnown   bool
	files          sandbox.OpenFiles
	fileLimit      uint64
	fileLimitKnown bool
	volumeDevice   string
	deviceName     func(major, minor uint32) string
}

func (s *runtimeService) containerMetrics(c *sandbox.Container, pod *sandbox.SandboxStatus, image string, volume *sandbox.Volume) ([]*runtimeapi.Metric, *sandbox.Usage) {
	st := c.Status()
	if st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, nil
	}
	u, err := c.Usage(true)
	if err != nil {
		if !errors.Is(err, sandbox.ErrNotFound) {
			klog.ErrorS(err, "Metrics of a container", "container", st.ID, "pod", st.SandboxID)
		}
		return nil, nil
	}
	o := &observation{
		Usage: u, at: time.Now(), started: st.StartedAt, resources: st.Resources.GetLinux(), container: true,
		volume: volume, files: sandbox.CountFiles(u.PIDs), deviceName: s.devices.name, volumeDevice: s.devices.named(volume.Device),
	}
	o.fileLimit, o.fileLimitKnown = sandbox.FileLimit(st.PID)
	bytes, _, at := c.WritableLayer()
	o.written, o.writtenKnown = bytes, !at.IsZero()
	meta := pod.Config.GetMetadata()
	return observe(s.metrics, o, []string{u.Cgroup, st.ID, image, st.Config.GetMetadata().GetName(), meta.GetName(), meta.GetNamespace()}), u
}

func (s *runtimeService) podMetrics(box *sandbox.Sandbox, containers []*sandbox.Usage) []*runtimeapi.Metric {
	st := box.Status()
	u, err := box.Usage(containers...)
	if err != nil {
		if !errors.Is(err, sandbox.ErrNotFound) {
			klog.ErrorS(err, "Metrics of a sandbox", "pod", st.ID)
		}
		u = &sandbox.Usage{} // its network may still be there
	}
	o := &observation{Usage: u, at: time.Now(), started: st.CreatedAt, deviceName: s.devices.name}
	if o.interfaces, err = box.Interfaces(); err != nil {
		klog.ErrorS(err, "Network metrics of a sandbox", "pod", st.ID)
	}
	meta := st.Config.GetMetadata()
	return observe(s.podTable, o, []string{u.Cgroup, st.ID, "", "", meta.GetName(), meta.GetNamespace()})
}

// observe computes the metrics of a table for o. They are made in few pieces: there are
// thousands in an answer.
func observe(table []metric, o *observation, labels []string) []*runtimeapi.Metric {
	b := &metricSlab{labels: labels[:len(labels):len(labels)], size: len(table)}
	for i := range table {
		b.metric = &table[i]
		b.metric.values(o, b.add)
	}
	return b.out
}

// slabMetrics is how many metrics a further slab has: some have several values.
const slabMetrics = 16

type metricSlab struct {
	labels  []string // of all
	more    []string // with those of the last metric that has its own
	size    int      // of the next slab
	metric  *metric
	out     []*runtimeapi.Metric
	metrics []slabMetric
}

type slabMetric struct {
	metric runtimeapi.Metric
	value  runtimeapi.UInt64Value
}

func (b *metricSlab) add(v uint64, extra ...string) {
	if len(b.metrics) == 0 {
		b.metrics = make([]slabMetric, b.size)
		b.out = slices.Grow(b.out, b.size)
		b.size = slabMetrics
	}
	n := &b.metrics[0]
	b.metrics = b.metrics[1:]
	n.value.Value = v
	m := &n.metric
	m.Name, m.MetricType, m.Value, m.LabelValues = b.metric.name, b.metric.kind, &n.value, b.with(extra)
	b.out = append(b.out, m)
}

// with returns all labels. Metrics share them: nobody changes them.
func (b *metricSlab) with(extra []string) []string {
	if len(extra) == 0 {
		return b.labels
	}
	if n := len(b.labels); len(b.more) != n+len(extra) || !slices.Equal(b.more[n:], extra) {
		b.more = append(b.labels, extra...) // b.labels is full: a new array
	}
	return b.more
}

// deviceNames names block devices as /dev does, each looked up once.
type deviceNames struct {
	mu    sync.Mutex
	known map[string]string // by MAJOR:MINOR
}

// maxDeviceNames bounds what is kept; devices come and go.
const maxDeviceNames = 1024

func newDeviceNames() *deviceNames { return &deviceNames{known: map[string]string{}} }

func (d *deviceNames) name(major, minor uint32) string {
	return d.named(strconv.FormatUint(uint64(major), 10) + ":" + strconv.FormatUint(uint64(minor), 10))
}

// named names the device with that number; "" when it has no name.
func (d *deviceNames) named(number string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	name, ok := d.known[number]
	if ok {
		return name
	}
	if target, err := os.Readlink("/sys/dev/block/" + number); err == nil {
		name = "/dev/" + path.Base(target)
	}
	if len(d.known) >= maxDeviceNames {
		clear(d.known)
	}
	d.known[number] = name
	return name
}
