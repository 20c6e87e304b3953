package oci

import "math"

// tick is the unit of cpuacct.stat in nanoseconds; the kernel fixes it for
// all of user space.
const tick = 1e9 / 100

func (r *StatsReader) readV1(s *StatsSource, st *CgroupStats, detail bool) {
	st.CPU.Usage, st.CPU.Known = r.oftenValue(s, keptUsage, s.cpuacct, "cpuacct.usage")
	st.Memory.Usage, st.Memory.Known = r.oftenValue(s, keptMemory, s.memory, "memory.usage_in_bytes")
	if st.Memory.Known {
		st.Memory.parseV1(r.often(s, keptMemoryStat, s.memory, "memory.stat"))
	}
	st.Pids.Current, st.Pids.Known = r.oftenValue(s, keptTasks, s.pids, "pids.current")
	if !detail {
		return
	}
	st.CPU.parseTimesV1(r.often(s, keptTimes, s.cpuacct, "cpuacct.stat"))
	st.CPU.parseQuotaV1(r.often(s, keptQuota, s.cpu, "cpu.stat"))
	m := &st.Memory
	m.Peak, _ = r.oftenValue(s, keptPeak, s.memory, "memory.max_usage_in_bytes")
	m.FailCount, _ = r.oftenValue(s, keptFailures, s.memory, "memory.failcnt")
	m.Kernel, _ = r.oftenValue(s, keptKernel, s.memory, "memory.kmem.usage_in_bytes")
	eachValue(r.often(s, keptOOM, s.memory, "memory.oom_control"), func(key []byte, v uint64) {
		if string(key) == "oom_kill" {
			m.OOMKills = v
		}
	})
	st.Pids.readLimit(r, s)
	st.IO.parseBlkio(r.often(s, keptIO, s.blkio, "blkio.throttle.io_service_bytes_recursive"), true)
	st.IO.parseBlkio(r.often(s, keptIOOps, s.blkio, "blkio.throttle.io_serviced_recursive"), false)
	for _, size := range s.huge.now() {
		h := HugetlbStats{Size: size}
		var ok bool
		if h.Usage, ok = r.value(s.hugetlb, "hugetlb."+size+".usage_in_bytes"); !ok {
			continue
		}
		h.Peak, _ = r.value(s.hugetlb, "hugetlb."+size+".max_usage_in_bytes")
		h.FailCount, _ = r.value(s.hugetlb, "hugetlb."+size+".failcnt")
		st.Hugetlb = append(st.Hugetlb, h)
	}
}

func (p *PidsStats) readLimit(r *StatsReader, s *StatsSource) {
	p.Limit = NoLimit
	if v, ok := r.oftenValue(s, keptTasksLimit, s.pids, "pids.max"); ok {
		p.Limit = v
	}
}

// parseV1 reads memory.stat. Usage is there already.
func (m *MemoryStats) parseV1(data []byte) {
	m.Limit, m.SwapLimit = NoLimit, NoLimit
	both := uint64(NoLimit) // memory and swap together
	eachValue(data, func(key []byte, v uint64) {
		switch string(key) {
		case "total_rss":
			m.RSS = v
		case "total_cache":
			m.Cache = v
		case "total_mapped_file":
			m.MappedFile = v
		case "total_active_file":
			m.ActiveFile = v
		case "total_inactive_file":
			m.InactiveFile = v
		case "total_swap":
			m.Swap, m.SwapKnown = v, true
		case "total_pgfault":
			m.PageFaults = v
		case "total_pgmajfault":
			m.MajorPageFaults = v
		case "pgfault":
			m.OwnPageFaults = v
		case "pgmajfault":
			m.OwnMajorPageFaults = v
		case "total_dirty":
			m.Dirty = v
		case "total_writeback":
			m.Writeback = v
		case "total_workingset_refault_file":
			m.RefaultFile = v
		case "total_workingset_refault_anon":
			m.RefaultAnon = v
		case "hierarchical_memory_limit":
			m.Limit = limitV1(v)
		case "hierarchical_memsw_limit":
			both = limitV1(v)
		}
	})
	if both != NoLimit && m.Limit != NoLimit && both >= m.Limit {
		m.SwapLimit = both - m.Limit
	}
	m.WorkingSet = below(m.Usage, m.InactiveFile)
}

// limitV1 knows the number that v1 says for no limit: the most pages that fit.
func limitV1(v uint64) uint64 {
	if v >= math.MaxInt64&^(1<<16-1) {
		return NoLimit
	}
	return v
}

// below is a-b, but not below zero: the two were not read at one moment.
func below(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

func (c *CPUStats) parseTimesV1(data []byte) {
	eachValue(data, func(key []byte, v uint64) {
		switch string(key) {
		case "user":
			c.User = v * tick
		case "system":
			c.System = v * tick
		}
	})
}

func (c *CPUStats) parseQuotaV1(data []byte) {
	eachValue(data, func(key []byte, v uint64) {
		switch string(key) {
		case "nr_periods":
			c.Periods = v
		case "nr_throttled":
			c.ThrottledPeriods = v
		case "throttled_time":
			c.Throttled = v
		case "nr_bursts":
			c.BurstPeriods = v
		case "burst_time":
			c.Burst = v
		}
	})
}

// parseBlkio reads lines of "MAJOR:MINOR operation value".
func (s *IOStats) parseBlkio(data []byte, bytes bool) {
	for len(data) > 0 {
		var line, device, operation []byte
		line, data = cutLine(data)
		device, line = cutField(line)
		operation, line = cutField(line)
		major, minor, ok := parseDevice(device)
		value, isValue := parseUint(line)
		if !ok || !isValue {
			continue // the line with the total, or malformed
		}
		d := s.device(major, minor)
		if d == nil {
			return
		}
		d.add(operation, value, bytes)
	}
}

func (d *DeviceIO) add(operation []byte, value uint64, bytes bool) {
	switch string(operation) {
	case "Read":
		if bytes {
			d.ReadBytes = value
		} else {
			d.Reads = value
		}
	case "Write":
		if bytes {
			d.WriteBytes = value
		} else {
			d.Writes = value
		}
	case "Discard":
		if bytes {
			d.DiscardBytes = value
		} else {
			d.Discards = value
		}
	case "Sync":
		if bytes {
			d.SyncBytes = value
		}
	case "Async":
		if bytes {
			d.AsyncBytes = value
		}
	}
}

// maxBlockDevices bounds the block devices of one cgroup.
const maxBlockDevices = 512

// device finds or adds a device; nil when there are too many.
func (s *IOStats) device(major, minor uint32) *DeviceIO {
	for i := range s.Devices {
		if d := &s.Devices[i]; d.Major == major && d.Minor == minor {
			return d
		}
	}
	if len(s.Devices) == maxBlockDevices {
		return nil
	}
	s.Devices = append(s.Devices, DeviceIO{Major: major, Minor: minor})
	return &s.Devices[len(s.Devices)-1]
}
