package server

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// cadvisorNames are what a kubelet exports of containers with its own
// cAdvisor, and their labels beside those that all have.
func cadvisorNames() map[string]string {
	names := map[string]string{"container_cpu_usage_seconds_total": "cpu", "container_memory_failures_total": "failure_type scope", "container_ulimits_soft": "ulimit"}
	add := func(labels, prefix, rest string) {
		for name := range strings.FieldsSeq(rest) {
			names["container_"+prefix+name] = labels
		}
	}
	add("", "", "last_seen start_time_seconds processes threads threads_max file_descriptors sockets oom_events_total")
	add("", "spec_", "cpu_period cpu_quota cpu_shares memory_limit_bytes memory_swap_limit_bytes memory_reservation_limit_bytes")
	add("", "cpu_", "user_seconds_total system_seconds_total cfs_periods_total cfs_throttled_periods_total cfs_throttled_seconds_total cfs_burst_periods_total cfs_burst_seconds_total")
	add("", "memory_", "cache rss kernel_usage mapped_file swap failcnt usage_bytes max_usage_bytes working_set_bytes total_active_file_bytes total_inactive_file_bytes events_high_total events_max_total file_dirty_bytes file_writeback_bytes pgscan_total pgsteal_total workingset_refault_file_total workingset_refault_anon_total")
	add("device", "fs_", "inodes_free inodes_total limit_bytes usage_bytes reads_bytes_total reads_total writes_bytes_total writes_total")
	add("device major minor operation", "", "blkio_device_usage_total")
	add("interface", "network_", "receive_bytes_total receive_packets_total receive_packets_dropped_total receive_errors_total transmit_bytes_total transmit_packets_total transmit_packets_dropped_total transmit_errors_total")
	add("pagesize", "hugetlb_", "failcnt usage_bytes max_usage_bytes")
	add("", "pressure_", "cpu_stalled_seconds_total cpu_waiting_seconds_total memory_stalled_seconds_total memory_waiting_seconds_total io_stalled_seconds_total io_waiting_seconds_total")
	return names
}

// Left out is what no kernel accounts for a cgroup any more, or what cAdvisor
// has for other runtimes or behind a switch that the kubelet does not set:
// container_fs_sector_*, *_merged_*, *_seconds_* and io_*, container_health_state,
// container_tasks_state, container_cpu_load_*, container_cpu_schedstat_*, perf events, RDT.
func TestMetricNames(t *testing.T) {
	want := cadvisorNames()
	for _, m := range metricTable() {
		labels, ok := want[m.name]
		if !ok {
			t.Errorf("%s is not cAdvisor's, or is there twice", m.name)
		}
		if got := strings.Join(m.labels, " "); got != labels {
			t.Errorf("%s: labels %q, want %q", m.name, got, labels)
		}
		if m.help == "" || (m.kind == counter) != (strings.HasSuffix(m.name, "_total") && m.name != "container_fs_inodes_total" || strings.HasSuffix(m.name, "failcnt")) {
			t.Errorf("%s: %s, %q", m.name, m.kind, m.help)
		}
		delete(want, m.name)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		t.Errorf("%s is missing", name)
	}
}

// observe returns the metrics of a table for o as a client decodes them.
func observe(t testing.TB, table []metric, o *observation, labels []string) []*runtimeapi.Metric {
	t.Helper()
	var p podMetrics
	p.ofPod(table, o, labels)
	return decoded(t, p.message("pod")).Metrics
}

func decoded(t testing.TB, m *runtimeapi.PodSandboxMetrics) *runtimeapi.PodSandboxMetrics {
	t.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := &runtimeapi.PodSandboxMetrics{}
	if err := proto.Unmarshal(raw, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// What is encoded by hand is what the messages themselves say.
func TestMetricsAreEncoded(t *testing.T) {
	table := []metric{
		{name: "one", kind: gauge, values: always(func(*observation) uint64 { return 0 })},
		{name: "two", values: func(_ *observation, add func(uint64, ...string)) { add(1<<64-1, "x", ""); add(300, "y\xff") }},
		{name: "none", values: when(func(*observation) bool { return false }, nil)},
	}
	var p podMetrics
	o := &observation{}
	p.ofContainer("c1", table, o, []string{"a", "", "\xff"})
	p.ofPod(table[:1], o, []string{"b"})
	p.ofContainer("c2", table[2:], o, nil)
	metrics := []*runtimeapi.Metric{
		{Name: "one", MetricType: gauge, LabelValues: []string{"a", "", "\uFFFD"}, Value: value(0)},
		{Name: "two", LabelValues: []string{"a", "", "\uFFFD", "x", ""}, Value: value(1<<64 - 1)},
		{Name: "two", LabelValues: []string{"a", "", "\uFFFD", "y\uFFFD"}, Value: value(300)},
	}
	want := &runtimeapi.PodSandboxMetrics{
		PodSandboxId: "pod", Metrics: []*runtimeapi.Metric{{Name: "one", MetricType: gauge, LabelValues: []string{"b"}, Value: value(0)}},
		ContainerMetrics: []*runtimeapi.ContainerMetrics{{ContainerId: "c1", Metrics: metrics}, {ContainerId: "c2"}},
	}
	got := decoded(t, p.message("pod"))
	if !proto.Equal(got, want) || len(got.ProtoReflect().GetUnknown()) != 0 {
		t.Errorf("%v", got)
	}
}

// Every metric has the labels of its descriptor, and none is there twice.
func TestMetricsMatchDescriptors(t *testing.T) {
	s := &Server{metrics: metricTable(), devices: newDeviceNames()}
	pressure := oci.Pressure{Known: true, Some: oci.Stall{Total: 3e9}}
	full := &observation{
		Usage: &sandbox.Usage{Processes: 3, CgroupStats: oci.CgroupStats{
			CPU:     oci.CPUStats{Known: true, Usage: 5e9, Periods: 1, Pressure: pressure},
			Memory:  oci.MemoryStats{Known: true, Usage: 100, Pressure: pressure},
			IO:      oci.IOStats{Devices: []oci.DeviceIO{{Major: 8, ReadBytes: 1}, {Major: 8, Minor: 16, SyncBytes: 3}}, Pressure: pressure},
			Pids:    oci.PidsStats{Known: true, Current: 4, Limit: oci.NoLimit},
			Hugetlb: []oci.HugetlbStats{{Size: "2MB"}, {Size: "1GB"}},
		}},
		at: time.Unix(99, 0), started: 7e9, container: true, resources: &runtimeapi.LinuxContainerResources{CpuQuota: 5},
		interfaces: []sandbox.Interface{{Name: "eth0", RxBytes: 10}, {Name: "net1"}, {Name: "lo"}},
		volume:     &sandbox.Volume{Bytes: 10}, writtenKnown: true, files: sandbox.OpenFiles{SocketsKnown: true}, fileLimitKnown: true,
		deviceName: func(_, minor uint32) string { return map[uint32]string{0: "/dev/sda", 16: "/dev/sdb"}[minor] },
	}
	base := []string{"/kubepods/pod/c", "c", "image", "name", "pod", "namespace"}
	seen := map[string]bool{}
	values := map[string]uint64{}
	for _, m := range observe(t, s.metrics, full, base) {
		values[m.Name] = m.Value.Value
		i := slices.IndexFunc(s.metrics, func(d metric) bool { return d.name == m.Name })
		if i < 0 || len(m.LabelValues) != len(baseLabels())+len(s.metrics[i].labels) || !slices.Equal(m.LabelValues[:len(base)], base) || m.Timestamp != 0 {
			t.Errorf("%v", m)
		}
		key := m.Name + strings.Join(m.LabelValues, "\x00")
		if seen[key] {
			t.Errorf("twice: %v", m)
		}
		seen[key] = true
	}
	for i := range s.metrics {
		if _, ok := values[s.metrics[i].name]; !ok {
			t.Errorf("%s has no value", s.metrics[i].name)
		}
	}
	for name, want := range map[string]uint64{
		"container_cpu_usage_seconds_total": 5, "container_last_seen": 99, "container_start_time_seconds": 7,
		"container_threads_max": 0, "container_pressure_io_waiting_seconds_total": 3, "container_spec_cpu_quota": 5,
	} {
		if values[name] != want {
			t.Errorf("%s is %d, want %d", name, values[name], want)
		}
	}
	// Nothing known, nothing said: no zero stands for an absent figure.
	for _, m := range observe(t, s.metrics, &observation{Usage: &sandbox.Usage{}}, base) {
		if m.Name != "container_last_seen" && m.Name != "container_start_time_seconds" {
			t.Errorf("of nothing: %v", m)
		}
	}
}

func TestDeviceNames(t *testing.T) {
	d := newDeviceNames()
	for range 2 {
		if got := d.name(1023, 1<<19); got != "" {
			t.Errorf("a device that isn't there is %q", got)
		}
	}
	if got := d.named("../../../etc"); got != "" {
		t.Errorf("%q", got)
	}
}

func BenchmarkObserve(b *testing.B) {
	s := &Server{metrics: metricTable(), devices: newDeviceNames()}
	o := &observation{
		Usage: &sandbox.Usage{CgroupStats: oci.CgroupStats{CPU: oci.CPUStats{Known: true}, Memory: oci.MemoryStats{Known: true}, Pids: oci.PidsStats{Known: true}}}, container: true,
		resources: &runtimeapi.LinuxContainerResources{}, deviceName: s.devices.name,
	}
	b.ReportAllocs()
	var p podMetrics
	for b.Loop() {
		p.ofContainer("c", s.metrics, o, []string{"a", "b", "c", "d", "e", "f"})
		if _, err := proto.Marshal(p.message("pod")); err != nil {
			b.Fatal(err)
		}
	}
}
