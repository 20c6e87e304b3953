package server

import (
	"context"
	"errors"
	"os"
	"path"
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
	scratch := sync.Pool{New: func() any { return &podMetrics{} }}
	return inBatches(ctx, pods, func(box *sandbox.Sandbox) *runtimeapi.PodSandboxMetrics {
		pod, _ := scratch.Get().(*podMetrics)
		defer scratch.Put(pod)
		var usages []*sandbox.Usage
		st := box.Status()
		for _, c := range containers[st.ID] {
			// One that has exited, such as an init container, has no metrics; its pod has.
			if u := s.containerMetrics(pod, c, st, images[c], &volume); u != nil {
				usages = append(usages, u)
			}
		}
		s.podMetrics(pod, box, usages)
		return pod.message(st.ID)
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

// containerMetrics adds those of a running container and returns what it uses;
// nil when it does not run any more.
func (s *runtimeService) containerMetrics(to *podMetrics, c *sandbox.Container, pod *sandbox.SandboxStatus, image string, volume *sandbox.Volume) *sandbox.Usage {
	st := c.Status()
	if st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	u, err := c.Usage(true)
	if err != nil {
		if !errors.Is(err, sandbox.ErrNotFound) {
			klog.ErrorS(err, "Metrics of a container", "container", st.ID, "pod", st.SandboxID)
		}
		return nil
	}
	o := &observation{
		Usage: u, at: time.Now(), started: st.StartedAt, resources: st.Resources.GetLinux(), container: true,
		volume: volume, files: sandbox.CountFiles(u.PIDs), deviceName: s.devices.name, volumeDevice: s.devices.named(volume.Device),
	}
	o.fileLimit, o.fileLimitKnown = sandbox.FileLimit(st.PID)
	bytes, _, at := c.WritableLayer()
	o.written, o.writtenKnown = bytes, !at.IsZero()
	meta := pod.Config.GetMetadata()
	to.ofContainer(st.ID, s.metrics, o, []string{u.Cgroup, st.ID, image, st.Config.GetMetadata().GetName(), meta.GetName(), meta.GetNamespace()})
	return u
}

func (s *runtimeService) podMetrics(to *podMetrics, box *sandbox.Sandbox, containers []*sandbox.Usage) {
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
	to.ofPod(s.podTable, o, []string{u.Cgroup, st.ID, "", "", meta.GetName(), meta.GetNamespace()})
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
