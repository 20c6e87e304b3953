package oci

const microsecond = 1000

func (r *StatsReader) readV2(s *StatsSource, st *CgroupStats, detail bool) {
	st.CPU.parseV2(r.often(s, keptUsage, s.cpu, "cpu.stat"))
	st.CPU.Pressure.parse(r.often(s, keptCPUPressure, s.cpu, "cpu.pressure"))
	st.IO.Pressure.parse(r.often(s, keptIOPressure, s.blkio, "io.pressure"))
	m := &st.Memory
	if m.Usage, m.Known = r.oftenValue(s, keptMemory, s.memory, "memory.current"); m.Known {
		m.parseV2(r.often(s, keptMemoryStat, s.memory, "memory.stat"))
		m.Limit, m.SwapLimit = NoLimit, NoLimit
		if v, ok := r.oftenValue(s, keptMemoryLimit, s.memory, "memory.max"); ok {
			m.Limit = v
		}
		if m.Swap, m.SwapKnown = r.oftenValue(s, keptSwap, s.memory, "memory.swap.current"); m.SwapKnown {
			if v, ok := r.oftenValue(s, keptSwapLimit, s.memory, "memory.swap.max"); ok {
				m.SwapLimit = v
			}
		}
		m.Pressure.parse(r.often(s, keptMemoryPressure, s.memory, "memory.pressure"))
	}
	st.Pids.Current, st.Pids.Known = r.oftenValue(s, keptTasks, s.pids, "pids.current")
	if !detail {
		return
	}
	st.Pids.readLimit(r, s)
	m.Peak, _ = r.oftenValue(s, keptPeak, s.memory, "memory.peak")
	m.parseEvents(r.often(s, keptOOM, s.memory, "memory.events"))
	st.IO.parseV2(r.often(s, keptIO, s.blkio, "io.stat"))
	for _, size := range s.huge.now() {
		h := HugetlbStats{Size: size}
		var ok bool
		if h.Usage, ok = r.value(s.hugetlb, "hugetlb."+size+".current"); !ok {
			continue
		}
		eachValue(r.file(s.hugetlb, "hugetlb."+size+".events"), func(key []byte, v uint64) {
			if string(key) == "max" {
				h.FailCount = v
			}
		})
		st.Hugetlb = append(st.Hugetlb, h)
	}
}

func (c *CPUStats) parseV2(data []byte) {
	eachValue(data, func(key []byte, v uint64) {
		switch string(key) {
		case "usage_usec":
			c.Usage, c.Known = v*microsecond, true
		case "user_usec":
			c.User = v * microsecond
		case "system_usec":
			c.System = v * microsecond
		case "nr_periods":
			c.Periods = v
		case "nr_throttled":
			c.ThrottledPeriods = v
		case "throttled_usec":
			c.Throttled = v * microsecond
		case "nr_bursts":
			c.BurstPeriods = v
		case "burst_usec":
			c.Burst = v * microsecond
		}
	})
}

// parseV2 reads memory.stat. Usage is there already.
func (m *MemoryStats) parseV2(data []byte) {
	eachValue(data, func(key []byte, v uint64) {
		switch string(key) {
		case "anon":
			m.RSS = v
		case "file":
			m.Cache = v
		case "file_mapped":
			m.MappedFile = v
		case "active_file":
			m.ActiveFile = v
		case "inactive_file":
			m.InactiveFile = v
		case "kernel":
			m.Kernel = v
		case "pgfault":
			m.PageFaults, m.OwnPageFaults = v, v // v2 has no figures without those below
		case "pgmajfault":
			m.MajorPageFaults, m.OwnMajorPageFaults = v, v
		case "file_dirty":
			m.Dirty = v
		case "file_writeback":
			m.Writeback = v
		case "pgscan":
			m.PagesScanned = v
		case "pgsteal":
			m.PagesStolen = v
		case "workingset_refault_file":
			m.RefaultFile = v
		case "workingset_refault_anon":
			m.RefaultAnon = v
		}
	})
	m.WorkingSet = below(m.Usage, m.InactiveFile)
}

func (m *MemoryStats) parseEvents(data []byte) {
	eachValue(data, func(key []byte, v uint64) {
		switch string(key) {
		case "high":
			m.HighEvents = v
		case "max":
			m.MaxEvents, m.FailCount = v, v
		case "oom_kill":
			m.OOMKills = v
		}
	})
}

// parseV2 reads lines of "MAJOR:MINOR key=value ...".
func (s *IOStats) parseV2(data []byte) {
	for len(data) > 0 {
		var line, device []byte
		line, data = cutLine(data)
		device, line = cutField(line)
		major, minor, ok := parseDevice(device)
		if !ok {
			continue
		}
		d := s.device(major, minor)
		if d == nil {
			return
		}
		for len(line) > 0 {
			var pair []byte
			pair, line = cutField(line)
			d.parsePair(pair)
		}
	}
}

func (d *DeviceIO) parsePair(pair []byte) {
	key, text := cutAt(pair, '=')
	v, ok := parseUint(text)
	if !ok {
		return
	}
	switch string(key) {
	case "rbytes":
		d.ReadBytes = v
	case "wbytes":
		d.WriteBytes = v
	case "rios":
		d.Reads = v
	case "wios":
		d.Writes = v
	case "dbytes":
		d.DiscardBytes = v
	case "dios":
		d.Discards = v
	}
}

// parse reads the lines "some" and "full" of a pressure file.
func (p *Pressure) parse(data []byte) {
	for len(data) > 0 {
		var line, kind []byte
		line, data = cutLine(data)
		kind, line = cutField(line)
		stall := &p.Some
		switch string(kind) {
		case "some":
		case "full":
			stall = &p.Full
		default:
			continue
		}
		for len(line) > 0 {
			var pair []byte
			pair, line = cutField(line)
			if stall.parsePair(pair) {
				p.Known = true
			}
		}
	}
}

// parsePair tells whether it has read the total.
func (s *Stall) parsePair(pair []byte) bool {
	key, text := cutAt(pair, '=')
	switch string(key) {
	case "avg10":
		s.Avg10 = parsePercent(text)
	case "avg60":
		s.Avg60 = parsePercent(text)
	case "avg300":
		s.Avg300 = parsePercent(text)
	case "total":
		v, ok := parseUint(text)
		s.Total = v * microsecond
		return ok
	}
	return false
}
