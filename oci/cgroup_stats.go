package oci

import (
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// NoLimit stands for a limit that is not set.
const NoLimit = math.MaxUint64

// CgroupStats is what the kernel accounts for a cgroup at one moment. What its
// controller does not tell is not Known; a figure that could not be read is 0.
type CgroupStats struct {
	CPU     CPUStats
	Memory  MemoryStats
	IO      IOStats
	Pids    PidsStats
	Hugetlb []HugetlbStats // one for each page size, with detail only
}

// CPUStats is processor time in nanoseconds. All but Usage and Pressure are
// read with detail only.
type CPUStats struct {
	Known                                bool
	Usage, User, System                  uint64
	Periods, ThrottledPeriods, Throttled uint64 // of the quota; Throttled is a time
	BurstPeriods, Burst                  uint64
	Pressure                             Pressure
}

// MemoryStats is in bytes where it isn't a number of events. It counts the
// cgroups below, too.
type MemoryStats struct {
	Known                                bool
	Usage, WorkingSet, RSS, Cache        uint64
	MappedFile, ActiveFile, InactiveFile uint64
	Limit                                uint64 // or NoLimit
	Swap, SwapLimit                      uint64 // SwapLimit of swap alone, or NoLimit
	SwapKnown                            bool   // the kernel accounts for swap
	PageFaults, MajorPageFaults          uint64
	Pressure                             Pressure

	// With detail only.
	OwnPageFaults, OwnMajorPageFaults uint64 // without the cgroups below
	Peak, Kernel, FailCount           uint64
	HighEvents, MaxEvents, OOMKills   uint64
	Dirty, Writeback                  uint64
	PagesScanned, PagesStolen         uint64
	RefaultFile, RefaultAnon          uint64
}

// IOStats has the devices with detail only.
type IOStats struct {
	Devices  []DeviceIO
	Pressure Pressure
}

// DeviceIO is what was read from and written to one block device.
type DeviceIO struct {
	Major, Minor                                  uint32
	ReadBytes, WriteBytes, Reads, Writes          uint64
	DiscardBytes, Discards, SyncBytes, AsyncBytes uint64
}

// PidsStats counts tasks, that is threads.
type PidsStats struct {
	Known          bool
	Current, Limit uint64 // Limit or NoLimit
}

// HugetlbStats is the use of huge pages of one size.
type HugetlbStats struct {
	Size                   string // as the kernel names it: 2MB
	Usage, Peak, FailCount uint64
}

// Pressure is stall information; cgroup v1 has none.
type Pressure struct {
	Known      bool
	Some, Full Stall
}

// Stall says how long tasks waited: averages in percent, Total in nanoseconds.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

// StatsSource is where the kernel accounts for one cgroup. It is safe for
// concurrent use, and keeps the files that every look reads open until Close.
type StatsSource struct {
	path                                       string // below the root of all cgroups
	v2                                         bool
	cpuacct, cpu, memory, blkio, pids, hugetlb string     // directories, "" without the controller
	home                                       string     // lists the processes
	huge                                       *hugePages // nil without the controller

	budget *atomic.Int32 // files that all sources keep open; nil: keep none
	mu     sync.Mutex
	kept   [keptFiles]int // descriptors; 0: not open
	closed bool
}

// The files that are kept open. To open one takes the kernel ten times as
// long as to read it. Each one costs about 5 KiB of its memory, which is why
// there is a bound: those of a look in detail leave a part to the others.
const (
	keptUsage = iota // of the processor, with v2 cpu.stat
	keptMemory
	keptMemoryStat
	keptTasks
	keptSwap // v2, as those below
	keptMemoryLimit
	keptSwapLimit
	keptCPUPressure
	keptMemoryPressure
	keptIOPressure
	keptTasksLimit // with detail only, as those below
	keptPeak
	keptOOM // v2: memory.events
	keptIO
	keptIOOps // v1, as those below
	keptTimes
	keptQuota
	keptFailures
	keptKernel
	keptFiles

	maxKeptFiles  = 2048
	maxKeptDetail = maxKeptFiles * 7 / 8
)

// StatsSource names the files of the cgroup p, which may or may not exist.
func (g *Cgroups) StatsSource(p string) (*StatsSource, error) {
	c, err := g.at(p)
	if err != nil {
		return nil, err
	}
	s := &StatsSource{v2: g.v2, home: c.home().dir, path: strings.TrimPrefix(c.places[0].dir, g.hierarchies[0].dir), budget: &g.kept}
	for i := range c.places {
		s.place(&c.places[i])
	}
	if s.hugetlb != "" {
		s.huge = &g.huge
	}
	return s, nil
}

// Close closes the files. Looks are possible after it; they keep none open.
func (s *StatsSource) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.dropAll()
}

func (s *StatsSource) dropAll() {
	for i := range s.kept {
		s.drop(i)
	}
}

func (s *StatsSource) drop(i int) {
	if s.kept[i] > 0 {
		_ = unix.Close(s.kept[i])
		s.kept[i] = 0
		s.budget.Add(-1)
	}
}

// keep tells whether fd stays open.
func (s *StatsSource) keep(i, fd int) bool {
	if s.closed || s.budget == nil || fd <= 0 {
		return false
	}
	limit := int32(maxKeptFiles)
	if i >= keptTasksLimit {
		limit = maxKeptDetail
	}
	if s.budget.Add(1) > limit {
		s.budget.Add(-1)
		return false
	}
	s.kept[i] = fd
	return true
}

// Path is the cgroup's path below the root of all cgroups.
func (s *StatsSource) Path() string { return s.path }

func (s *StatsSource) place(p *place) {
	for _, c := range []struct {
		name string
		dir  *string
	}{{"cpuacct", &s.cpuacct}, {"cpu", &s.cpu}, {"memory", &s.memory}, {"blkio", &s.blkio}, {"io", &s.blkio}, {"pids", &s.pids}, {"hugetlb", &s.hugetlb}} {
		if p.has(c.name) {
			*c.dir = p.dir
		}
	}
	if s.v2 {
		// cpu.stat and the pressure files are there without their controllers.
		s.cpuacct, s.cpu, s.blkio = p.dir, p.dir, p.dir
	}
}

// StatsReader reads files of cgroups, each with one open and, nearly always,
// one read. It is for one goroutine at a time.
type StatsReader struct{ buf []byte }

const (
	statsBufferBytes = 16 << 10
	// maxStatsBytes bounds a file: only lists of devices and processes have no
	// bound of their own.
	maxStatsBytes = 1 << 20
)

// NewStatsReader makes a reader.
func NewStatsReader() *StatsReader { return &StatsReader{buf: make([]byte, statsBufferBytes)} }

// Read fills in st; detail adds what only metrics need. ErrNotFound says that
// the cgroup is gone: nothing of it could be read.
func (r *StatsReader) Read(s *StatsSource, st *CgroupStats, detail bool) error {
	*st = CgroupStats{}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.v2 {
		r.readV2(s, st, detail)
	} else {
		r.readV1(s, st, detail)
	}
	if !st.CPU.Known && !st.Memory.Known && !st.Pids.Known {
		s.dropAll()
		return fmt.Errorf("statistics of cgroup %s: %w", s.home, ErrNotFound)
	}
	return nil
}

// often is file for one that may be kept open. s is locked.
func (r *StatsReader) often(s *StatsSource, i int, dir, name string) []byte {
	if dir == "" {
		return nil
	}
	if s.kept[i] > 0 {
		if data := r.readAll(s.kept[i]); data != nil {
			return data
		}
		s.drop(i) // the cgroup is gone; there may be another one of its name
	}
	fd, err := openRetry(dir + "/" + name)
	if err != nil {
		return nil
	}
	data := r.readAll(fd)
	if data == nil || !s.keep(i, fd) {
		_ = unix.Close(fd)
	}
	return data
}

// oftenValue is value for a file that may be kept open.
func (r *StatsReader) oftenValue(s *StatsSource, i int, dir, name string) (uint64, bool) {
	return parseUint(r.often(s, i, dir, name))
}

// file returns what is in a file, valid until the next call; nil if it can't be read.
func (r *StatsReader) file(dir, name string) []byte {
	if dir == "" {
		return nil
	}
	fd, err := openRetry(dir + "/" + name)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	return r.readAll(fd)
}

// readAll reads from the beginning, whatever was read before; nil after an error.
func (r *StatsReader) readAll(fd int) []byte {
	n := 0
	for {
		m, err := unix.Pread(fd, r.buf[n:], int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil // gone meanwhile, or switched off (pressure)
		}
		n += m
		// Files of values come in one piece; only a full buffer or a list has more.
		if m == 0 || m < len(r.buf)-n && m < 2048 {
			return r.buf[:n]
		}
		if len(r.buf)-n < 4096 {
			if len(r.buf) >= maxStatsBytes {
				return r.buf[:n]
			}
			r.buf = append(r.buf, make([]byte, len(r.buf))...)
		}
	}
}

func openRetry(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// value reads a file with one number; "max" is NoLimit.
func (r *StatsReader) value(dir, name string) (uint64, bool) {
	return parseUint(r.file(dir, name))
}

// Processes returns the processes in the cgroup and in those below it, at
// most limit of them; nil when it is gone.
func (r *StatsReader) Processes(s *StatsSource, limit int) []int {
	return r.processes(nil, s.home, limit, maxStatsDepth)
}

// maxStatsDepth bounds the cgroups that a container nests to be counted.
const maxStatsDepth = 8

func (r *StatsReader) processes(pids []int, dir string, limit, depth int) []int {
	data := r.file(dir, "cgroup.procs")
	for len(data) > 0 && len(pids) < limit {
		var line []byte
		line, data = cutLine(data)
		if pid, ok := parseUint(line); ok && pid > 0 && pid <= math.MaxInt32 {
			pids = append(pids, int(pid))
		}
	}
	// A directory of a cgroup has one link for each cgroup below it, and two.
	var st unix.Stat_t
	if depth == 0 || unix.Stat(dir, &st) != nil || st.Nlink <= 2 {
		return pids
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return pids
	}
	for _, e := range entries {
		if e.IsDir() && len(pids) < limit {
			pids = r.processes(pids, dir+"/"+e.Name(), limit, depth-1)
		}
	}
	return pids
}
