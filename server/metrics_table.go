package server

import (
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
	second  = 1_000_000_000
)

// metric is one name with its values; the names, meanings and labels are those
// of cAdvisor, which dashboards and alerts are made for. CRI has whole numbers
// only, so that seconds are cut.
type metric struct {
	name   string
	kind   runtimeapi.MetricType
	help   string
	labels []string
	values func(o *observation, add func(v uint64, labels ...string))
}

// metricTable is made once, by New.
func metricTable() []metric {
	var all []metric
	for _, part := range [][]metric{
		specMetrics(), cpuMetrics(), memoryMetrics(), memoryEventMetrics(), ioMetrics(), filesystemMetrics(),
		networkMetrics(), processMetrics(), hugetlbMetrics(), pressureMetrics(),
	} {
		all = append(all, part...)
	}
	return all
}

// podMetricTable is what pods have: their network, and of their cgroup what
// needs no look in detail. The rest is the sum of the containers'.
func podMetricTable() []metric {
	all := slices.Concat(networkMetrics(), specMetrics(), cpuMetrics(), memoryMetrics(), processMetrics())
	return slices.DeleteFunc(all, func(m metric) bool {
		switch m.name {
		case "container_last_seen", "container_start_time_seconds", "container_cpu_usage_seconds_total", "container_memory_usage_bytes",
			"container_memory_working_set_bytes", "container_memory_rss", "container_memory_cache", "container_memory_swap", "container_processes", "container_threads":
			return false
		}
		return !strings.HasPrefix(m.name, "container_network_")
	})
}

type (
	number = func(o *observation) uint64
	values = func(o *observation, add func(v uint64, labels ...string))
)

// always has one value.
func always(get number) values {
	return func(o *observation, add func(uint64, ...string)) { add(get(o)) }
}

// when has one value if ok.
func when(ok func(o *observation) bool, get number) values {
	return func(o *observation, add func(uint64, ...string)) {
		if ok(o) {
			add(get(o))
		}
	}
}

func limitOrZero(v uint64) uint64 {
	if v == oci.NoLimit {
		return 0
	}
	return v
}

func specMetrics() []metric {
	asked := func(get func(r *runtimeapi.LinuxContainerResources) int64) values {
		return when(func(o *observation) bool { return o.container }, func(o *observation) uint64 { return uint64(max(0, get(o.resources))) })
	}
	return []metric{
		{"container_last_seen", gauge, "Time of this observation in seconds since the epoch.", nil, always(func(o *observation) uint64 { return uint64(o.at.Unix()) })},
		{"container_start_time_seconds", gauge, "Time of the start in seconds since the epoch.", nil, always(func(o *observation) uint64 { return uint64(o.started / second) })},
		{"container_spec_cpu_period", gauge, "Period of the CPU quota in microseconds.", nil, asked((*runtimeapi.LinuxContainerResources).GetCpuPeriod)},
		{
			"container_spec_cpu_quota", gauge, "CPU quota in microseconds for each period.", nil,
			when(func(o *observation) bool { return o.container && o.resources.GetCpuQuota() > 0 }, func(o *observation) uint64 { return uint64(o.resources.GetCpuQuota()) }),
		},
		{"container_spec_cpu_shares", gauge, "CPU shares.", nil, asked((*runtimeapi.LinuxContainerResources).GetCpuShares)},
		{"container_spec_memory_limit_bytes", gauge, "Memory limit, 0 without one.", nil, asked((*runtimeapi.LinuxContainerResources).GetMemoryLimitInBytes)},
		{"container_spec_memory_swap_limit_bytes", gauge, "Limit of memory and swap together, 0 without one.", nil, asked((*runtimeapi.LinuxContainerResources).GetMemorySwapLimitInBytes)},
		{"container_spec_memory_reservation_limit_bytes", gauge, "Memory reservation, 0 without one.", nil, asked(func(*runtimeapi.LinuxContainerResources) int64 { return 0 })},
	}
}

func cpuMetrics() []metric {
	known := func(o *observation) bool { return o.CPU.Known }
	limited := func(o *observation) bool {
		return o.CPU.Known && (o.resources.GetCpuQuota() > 0 || o.CPU.Periods > 0)
	}
	return []metric{
		{
			"container_cpu_usage_seconds_total", counter, "Processor time used, in seconds.",
			[]string{"cpu"},
			func(o *observation, add func(uint64, ...string)) {
				if o.CPU.Known {
					add(o.CPU.Usage/second, "total")
				}
			},
		},
		{"container_cpu_user_seconds_total", counter, "Processor time used in user mode, in seconds.", nil, when(known, func(o *observation) uint64 { return o.CPU.User / second })},
		{"container_cpu_system_seconds_total", counter, "Processor time used in the kernel, in seconds.", nil, when(known, func(o *observation) uint64 { return o.CPU.System / second })},
		{"container_cpu_cfs_periods_total", counter, "Periods in which the CPU quota was enforced.", nil, when(limited, func(o *observation) uint64 { return o.CPU.Periods })},
		{"container_cpu_cfs_throttled_periods_total", counter, "Periods in which the quota was used up.", nil, when(limited, func(o *observation) uint64 { return o.CPU.ThrottledPeriods })},
		{"container_cpu_cfs_throttled_seconds_total", counter, "Time throttled, in seconds.", nil, when(limited, func(o *observation) uint64 { return o.CPU.Throttled / second })},
		{"container_cpu_cfs_burst_periods_total", counter, "Periods with a burst beyond the quota.", nil, when(limited, func(o *observation) uint64 { return o.CPU.BurstPeriods })},
		{"container_cpu_cfs_burst_seconds_total", counter, "Time used beyond the quota, in seconds.", nil, when(limited, func(o *observation) uint64 { return o.CPU.Burst / second })},
	}
}

func memoryMetrics() []metric {
	known := func(get func(m *oci.MemoryStats) uint64) values {
		return when(func(o *observation) bool { return o.Memory.Known }, func(o *observation) uint64 { return get(&o.Memory) })
	}
	return []metric{
		{"container_memory_usage_bytes", gauge, "Memory in use, whenever it was accessed.", nil, known(func(m *oci.MemoryStats) uint64 { return m.Usage })},
		{"container_memory_working_set_bytes", gauge, "Memory in use without inactive files.", nil, known(func(m *oci.MemoryStats) uint64 { return m.WorkingSet })},
		{"container_memory_max_usage_bytes", gauge, "Most memory ever in use.", nil, known(func(m *oci.MemoryStats) uint64 { return m.Peak })},
		{"container_memory_rss", gauge, "Anonymous memory in bytes.", nil, known(func(m *oci.MemoryStats) uint64 { return m.RSS })},
		{"container_memory_cache", gauge, "Page cache in bytes.", nil, known(func(m *oci.MemoryStats) uint64 { return m.Cache })},
		{"container_memory_kernel_usage", gauge, "Kernel memory in bytes.", nil, known(func(m *oci.MemoryStats) uint64 { return m.Kernel })},
		{"container_memory_mapped_file", gauge, "Mapped files in bytes.", nil, known(func(m *oci.MemoryStats) uint64 { return m.MappedFile })},
		{"container_memory_total_active_file_bytes", gauge, "Active page cache in bytes.", nil, known(func(m *oci.MemoryStats) uint64 { return m.ActiveFile })},
		{"container_memory_total_inactive_file_bytes", gauge, "Inactive page cache in bytes.", nil, known(func(m *oci.MemoryStats) uint64 { return m.InactiveFile })},
		{"container_memory_file_dirty_bytes", gauge, "Page cache that is to be written to disk.", nil, known(func(m *oci.MemoryStats) uint64 { return m.Dirty })},
		{"container_memory_file_writeback_bytes", gauge, "Page cache that is being written to disk.", nil, known(func(m *oci.MemoryStats) uint64 { return m.Writeback })},
		{"container_memory_swap", gauge, "Swap in use, in bytes.", nil, known(func(m *oci.MemoryStats) uint64 { return m.Swap })},
		{"container_memory_failcnt", counter, "Times that the limit was hit.", nil, known(func(m *oci.MemoryStats) uint64 { return m.FailCount })},
	}
}

func memoryEventMetrics() []metric {
	known := func(get func(m *oci.MemoryStats) uint64) values {
		return when(func(o *observation) bool { return o.Memory.Known }, func(o *observation) uint64 { return get(&o.Memory) })
	}
	return []metric{
		{
			"container_memory_failures_total", counter, "Page faults.",
			[]string{"failure_type", "scope"},
			func(o *observation, add func(uint64, ...string)) {
				if m := &o.Memory; m.Known {
					add(m.OwnPageFaults, "pgfault", "container")
					add(m.OwnMajorPageFaults, "pgmajfault", "container")
					add(m.PageFaults, "pgfault", "hierarchy")
					add(m.MajorPageFaults, "pgmajfault", "hierarchy")
				}
			},
		},
		{"container_memory_events_high_total", counter, "Times throttled above memory.high.", nil, known(func(m *oci.MemoryStats) uint64 { return m.HighEvents })},
		{"container_memory_events_max_total", counter, "Times that memory.max was hit.", nil, known(func(m *oci.MemoryStats) uint64 { return m.MaxEvents })},
		{"container_memory_pgscan_total", counter, "Pages scanned for reclaim.", nil, known(func(m *oci.MemoryStats) uint64 { return m.PagesScanned })},
		{"container_memory_pgsteal_total", counter, "Pages reclaimed.", nil, known(func(m *oci.MemoryStats) uint64 { return m.PagesStolen })},
		{"container_memory_workingset_refault_file_total", counter, "File pages read again soon after their eviction.", nil, known(func(m *oci.MemoryStats) uint64 { return m.RefaultFile })},
		{"container_memory_workingset_refault_anon_total", counter, "Anonymous pages read again soon after their eviction.", nil, known(func(m *oci.MemoryStats) uint64 { return m.RefaultAnon })},
		{"container_oom_events_total", counter, "Processes killed for lack of memory.", nil, known(func(m *oci.MemoryStats) uint64 { return m.OOMKills })},
	}
}

func ioMetrics() []metric {
	each := func(get func(d *oci.DeviceIO) uint64) values {
		return func(o *observation, add func(uint64, ...string)) {
			for i := range o.IO.Devices {
				d := &o.IO.Devices[i]
				add(get(d), o.deviceName(d.Major, d.Minor))
			}
		}
	}
	device := []string{"device"}
	return []metric{
		{"container_fs_reads_bytes_total", counter, "Bytes read.", device, each(func(d *oci.DeviceIO) uint64 { return d.ReadBytes })},
		{"container_fs_reads_total", counter, "Reads completed.", device, each(func(d *oci.DeviceIO) uint64 { return d.Reads })},
		{"container_fs_writes_bytes_total", counter, "Bytes written.", device, each(func(d *oci.DeviceIO) uint64 { return d.WriteBytes })},
		{"container_fs_writes_total", counter, "Writes completed.", device, each(func(d *oci.DeviceIO) uint64 { return d.Writes })},
		{"container_blkio_device_usage_total", counter, "Bytes by device and operation.", []string{"device", "major", "minor", "operation"}, blkioUsage},
	}
}

func blkioUsage(o *observation, add func(v uint64, labels ...string)) {
	for i := range o.IO.Devices {
		d := &o.IO.Devices[i]
		name, major, minor := o.deviceName(d.Major, d.Minor), strconv.FormatUint(uint64(d.Major), 10), strconv.FormatUint(uint64(d.Minor), 10)
		for _, operation := range []struct {
			name  string
			bytes uint64
			some  bool // left out when it is 0: cgroup v2 does not have it
		}{{"Read", d.ReadBytes, false}, {"Write", d.WriteBytes, false}, {"Discard", d.DiscardBytes, false}, {"Sync", d.SyncBytes, true}, {"Async", d.AsyncBytes, true}} {
			if operation.bytes > 0 || !operation.some {
				add(operation.bytes, name, major, minor, operation.name)
			}
		}
	}
}

func filesystemMetrics() []metric {
	of := func(get func(o *observation) uint64) values {
		return func(o *observation, add func(uint64, ...string)) {
			if o.volume != nil && o.volume.Bytes > 0 {
				add(get(o), o.volumeDevice)
			}
		}
	}
	device := []string{"device"}
	return []metric{
		{"container_fs_inodes_free", gauge, "Free inodes of the file system of the writable layer.", device, of(func(o *observation) uint64 { return o.volume.FreeInodes })},
		{"container_fs_inodes_total", gauge, "Inodes of the file system of the writable layer.", device, of(func(o *observation) uint64 { return o.volume.Inodes })},
		{"container_fs_limit_bytes", gauge, "Size of the file system of the writable layer.", device, of(func(o *observation) uint64 { return o.volume.Bytes })},
		{
			"container_fs_usage_bytes", gauge, "Bytes that the writable layer takes.", device,
			func(o *observation, add func(uint64, ...string)) {
				if o.container && o.writtenKnown {
					add(o.written, o.volumeDevice)
				}
			},
		},
	}
}

func networkMetrics() []metric {
	each := func(get func(i *sandbox.Interface) uint64) values {
		return func(o *observation, add func(uint64, ...string)) {
			for i := range o.interfaces {
				if n := &o.interfaces[i]; !n.Loopback() {
					add(get(n), n.Name)
				}
			}
		}
	}
	label := []string{"interface"}
	return []metric{
		{"container_network_receive_bytes_total", counter, "Bytes received.", label, each(func(i *sandbox.Interface) uint64 { return i.RxBytes })},
		{"container_network_receive_packets_total", counter, "Packets received.", label, each(func(i *sandbox.Interface) uint64 { return i.RxPackets })},
		{"container_network_receive_packets_dropped_total", counter, "Packets dropped while receiving.", label, each(func(i *sandbox.Interface) uint64 { return i.RxDropped })},
		{"container_network_receive_errors_total", counter, "Errors while receiving.", label, each(func(i *sandbox.Interface) uint64 { return i.RxErrors })},
		{"container_network_transmit_bytes_total", counter, "Bytes sent.", label, each(func(i *sandbox.Interface) uint64 { return i.TxBytes })},
		{"container_network_transmit_packets_total", counter, "Packets sent.", label, each(func(i *sandbox.Interface) uint64 { return i.TxPackets })},
		{"container_network_transmit_packets_dropped_total", counter, "Packets dropped while sending.", label, each(func(i *sandbox.Interface) uint64 { return i.TxDropped })},
		{"container_network_transmit_errors_total", counter, "Errors while sending.", label, each(func(i *sandbox.Interface) uint64 { return i.TxErrors })},
	}
}

func processMetrics() []metric {
	container := func(o *observation) bool { return o.container }
	known := func(o *observation) bool { return o.Pids.Known }
	return []metric{
		{"container_processes", gauge, "Processes.", nil, when(known, func(o *observation) uint64 { return uint64(o.Processes) })},
		{"container_threads", gauge, "Threads.", nil, when(known, func(o *observation) uint64 { return o.Pids.Current })},
		{"container_threads_max", gauge, "Limit of threads, 0 without one.", nil, when(known, func(o *observation) uint64 { return limitOrZero(o.Pids.Limit) })},
		{"container_file_descriptors", gauge, "Open file descriptors.", nil, when(container, func(o *observation) uint64 { return uint64(o.files.Files) })},
		{
			"container_sockets", gauge, "Open sockets; left out when there are too many descriptors to look at.", nil,
			when(func(o *observation) bool { return o.container && o.files.SocketsKnown }, func(o *observation) uint64 { return uint64(o.files.Sockets) }),
		},
		{
			"container_ulimits_soft", gauge, "Soft limits of the first process.",
			[]string{"ulimit"},
			func(o *observation, add func(uint64, ...string)) {
				if o.fileLimitKnown {
					add(o.fileLimit, "max_open_files")
				}
			},
		},
	}
}

func hugetlbMetrics() []metric {
	each := func(get func(h *oci.HugetlbStats) uint64) values {
		return func(o *observation, add func(uint64, ...string)) {
			for i := range o.Hugetlb {
				add(get(&o.Hugetlb[i]), o.Hugetlb[i].Size)
			}
		}
	}
	label := []string{"pagesize"}
	return []metric{
		{"container_hugetlb_usage_bytes", gauge, "Huge pages in use, in bytes.", label, each(func(h *oci.HugetlbStats) uint64 { return h.Usage })},
		{"container_hugetlb_max_usage_bytes", gauge, "Most huge pages ever in use, in bytes.", label, each(func(h *oci.HugetlbStats) uint64 { return h.Peak })},
		{"container_hugetlb_failcnt", counter, "Times that the limit of huge pages was hit.", label, each(func(h *oci.HugetlbStats) uint64 { return h.FailCount })},
	}
}

func pressureMetrics() []metric {
	var all []metric
	for _, p := range []struct {
		resource, text string
		get            func(o *observation) *oci.Pressure
	}{
		{"cpu", "processor time", func(o *observation) *oci.Pressure { return &o.CPU.Pressure }},
		{"memory", "memory", func(o *observation) *oci.Pressure { return &o.Memory.Pressure }},
		{"io", "input and output", func(o *observation) *oci.Pressure { return &o.IO.Pressure }},
	} {
		known := func(o *observation) bool { return p.get(o).Known }
		all = append(all,
			metric{
				"container_pressure_" + p.resource + "_waiting_seconds_total", counter, "Time that some tasks waited for " + p.text + ", in seconds.", nil,
				when(known, func(o *observation) uint64 { return p.get(o).Some.Total / second }),
			},
			metric{
				"container_pressure_" + p.resource + "_stalled_seconds_total", counter, "Time that all tasks waited for " + p.text + ", in seconds.", nil,
				when(known, func(o *observation) uint64 { return p.get(o).Full.Total / second }),
			})
	}
	return all
}
