package critest

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	cri "k8s.io/cri-client/pkg"
)

const (
	created = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	started = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	stopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	deleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
)

// follow subscribes with the kubelet's client and returns the events in order.
func follow(t *testing.T) <-chan *runtimeapi.ContainerEventResponse {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	events := make(chan *runtimeapi.ContainerEventResponse, 1000)
	stands, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		_ = node.CRI.GetContainerEvents(ctx, events, func(c runtimeapi.RuntimeService_GetContainerEventsClient) {
			_, err := c.Header()
			stands <- err
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	if err := <-stands; err != nil {
		t.Fatal(err)
	}
	return events
}

func TestContainerEvents(t *testing.T) {
	differs(t, "has no events")
	begin(t)
	one, two := follow(t), follow(t)
	p := run(t)
	c := p.start("exit 7")
	c.wait()
	c.remove()
	want := []struct {
		id   string
		kind runtimeapi.ContainerEventType
	}{{p.id, created}, {p.id, started}, {c.id, created}, {c.id, started}, {c.id, stopped}, {c.id, deleted}}
	for _, events := range []<-chan *runtimeapi.ContainerEventResponse{one, two} {
		for i := 0; i < len(want); {
			e := <-events
			if e.PodSandboxStatus.GetId() != p.id {
				continue // of an earlier test
			}
			if e.ContainerId != want[i].id || e.ContainerEventType != want[i].kind || e.PodSandboxStatus.Metadata.Uid != p.config.Metadata.Uid {
				t.Errorf("event %d: %v", i, e)
			}
			if want[i].kind == stopped && (len(e.ContainersStatuses) != 1 || e.ContainersStatuses[0].ExitCode != 7) {
				t.Errorf("statuses: %v", e.ContainersStatuses)
			}
			i++
		}
	}
}

func TestEventsOfTheTimeWithoutDaemon(t *testing.T) {
	differs(t, "has no events")
	begin(t)
	p := run(t, podNetwork)
	c := p.start("echo up; while ! test -e /dev/shm/go; do usleep 10000; done; exit 42")
	c.prints("up")
	restart(t, syscall.SIGKILL, func() {
		touch(t, c, "go")
		await(t, "the container to exit without the daemon", func() bool { return !alive(t, "test -e /dev/shm/go") })
	})
	for e := range follow(t) {
		if e.ContainerId == c.id && e.ContainerEventType == stopped {
			if s := e.ContainersStatuses; len(s) != 1 || s[0].ExitCode != 42 {
				t.Errorf("%v", e)
			}
			return
		}
	}
}

func TestStats(t *testing.T) {
	differs(t, "leaves fields out")
	begin(t)
	p := run(t, podNetwork)
	limit := resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20})
	initContainer := p.start("exit 0", limit)
	initContainer.wait()
	c := p.start("echo data > /file; echo up; sleep 1000", limit)
	c.prints("up")
	stats, err := node.CRI.ContainerStats(t.Context(), c.id)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 || stats.Memory.GetUsageBytes().GetValue() == 0 || stats.Memory.GetAvailableBytes().GetValue() == 0 ||
		stats.Attributes.Id != c.id || stats.Attributes.Metadata.Name != c.config.Metadata.Name || stats.WritableLayer.GetInodesUsed().GetValue() == 0 {
		t.Errorf("%v", stats)
	}
	list, err := node.CRI.ListContainerStats(t.Context(), &runtimeapi.ContainerStatsFilter{PodSandboxId: p.id})
	if err != nil || len(list) != 1 || list[0].Attributes.Id != c.id {
		t.Errorf("%v, %v", list, err)
	}
	pod, err := node.CRI.PodSandboxStats(t.Context(), p.id)
	if err != nil {
		t.Fatal(err)
	}
	linux := pod.Linux
	if linux.Network.GetDefaultInterface().GetName() != "eth0" || linux.Process.GetProcessCount().GetValue() == 0 || len(linux.Containers) != 1 || linux.Memory.GetUsageBytes().GetValue() == 0 {
		t.Errorf("%v", pod)
	}
	if pods, err := node.CRI.ListPodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsFilter{LabelSelector: p.config.Labels}); err != nil || len(pods) != 1 {
		t.Errorf("%v, %v", pods, err)
	}
	checkMetrics(t, p, c)
	status, err := node.CRI.PodSandboxStatus(t.Context(), p.id, false)
	if err != nil || status.Timestamp == 0 || len(status.ContainersStatuses) != 2 {
		t.Errorf("%v, %v", status, err)
	}
}

// checkMetrics sees that a pod with an ended init container has metrics, which
// all have the labels of their descriptors.
func checkMetrics(t *testing.T, p *pod, c *container) {
	t.Helper()
	descriptors, err := node.CRI.ListMetricDescriptors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]int{}
	for _, d := range descriptors {
		labels[d.Name] = len(d.LabelKeys)
	}
	metrics, err := node.CRI.ListPodSandboxMetrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(metrics, func(m *runtimeapi.PodSandboxMetrics) bool { return m.PodSandboxId == p.id })
	if i < 0 || len(metrics[i].ContainerMetrics) != 1 || metrics[i].ContainerMetrics[0].ContainerId != c.id {
		t.Fatalf("the pod's metrics: %v", metrics)
	}
	for _, m := range slices.Concat(metrics[i].Metrics, metrics[i].ContainerMetrics[0].Metrics) {
		if n, ok := labels[m.Name]; !ok || n != len(m.LabelValues) || m.LabelValues[4] != p.config.Metadata.Name {
			t.Errorf("%v", m)
		}
	}
	if !slices.ContainsFunc(metrics[i].Metrics, func(m *runtimeapi.Metric) bool {
		return strings.HasPrefix(m.Name, "container_network_receive_bytes") && slices.Contains(m.LabelValues, "eth0")
	}) {
		t.Error("no metric of the network")
	}
}

// The kubelet's client with streamed lists sees the same as without.
func TestStreamedLists(t *testing.T) {
	differs(t, "has no streamed lists")
	begin(t)
	client, err := cri.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + node.Socket).WithConnectionTimeout(patience).
		WithTracerProvider(nil).WithUseStreaming(true).Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close(context.Background())
	var pods []*pod
	for range 3 {
		p := run(t)
		p.start("sleep 1000")
		pods = append(pods, p)
	}
	for _, list := range []struct {
		name string
		ids  func() ([]string, error)
	}{
		{"sandboxes", func() (ids []string, err error) {
			all, err := client.ListPodSandbox(t.Context(), nil)
			for _, p := range all {
				ids = append(ids, p.Id)
			}
			return ids, err
		}},
		{"containers", func() (ids []string, err error) {
			all, err := client.ListContainers(t.Context(), nil)
			for _, c := range all {
				ids = append(ids, c.PodSandboxId)
			}
			return ids, err
		}},
		{"container stats", func() (ids []string, err error) {
			for _, p := range pods {
				all, err := client.ListContainerStats(t.Context(), &runtimeapi.ContainerStatsFilter{PodSandboxId: p.id})
				if err != nil || len(all) != 1 {
					return ids, err
				}
				ids = append(ids, p.id)
			}
			return ids, nil
		}},
		{"pod stats", func() (ids []string, err error) {
			all, err := client.ListPodSandboxStats(t.Context(), nil)
			for _, p := range all {
				ids = append(ids, p.Attributes.Id)
			}
			return ids, err
		}},
		{"metrics", func() (ids []string, err error) {
			all, err := client.ListPodSandboxMetrics(t.Context())
			for _, p := range all {
				ids = append(ids, p.PodSandboxId)
			}
			return ids, err
		}},
	} {
		ids, err := list.ids()
		if err != nil || len(ids) != len(pods) {
			t.Errorf("%s: %v, %v", list.name, ids, err)
		}
		for _, p := range pods {
			if !slices.Contains(ids, p.id) {
				t.Errorf("%s: %s is missing", list.name, p.id)
			}
		}
	}
}
