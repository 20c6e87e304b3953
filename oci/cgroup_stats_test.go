package oci

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func statsFixture(v2 bool, dir string) *StatsSource {
	s := &StatsSource{v2: v2, huge: &hugePages{sizes: []string{"2MB", "1GB"}, until: time.Now().Add(time.Hour)}}
	for name, to := range map[string]*string{"cpuacct": &s.cpuacct, "cpu": &s.cpu, "memory": &s.memory, "blkio": &s.blkio, "pids": &s.pids, "hugetlb": &s.hugetlb} {
		*to = dir
		if !v2 {
			*to = filepath.Join(dir, name)
		}
	}
	s.home = s.pids
	return s
}

// wantStats is what both layouts of testdata/cgroup tell.
func wantStats() CgroupStats {
	return CgroupStats{
		CPU: CPUStats{Known: true, Usage: 123456789012, User: 12e9, System: 3.45e9, Periods: 50, ThrottledPeriods: 7, Throttled: 987654321, BurstPeriods: 2, Burst: 5000},
		Memory: MemoryStats{
			Known: true, Usage: 100 << 20, WorkingSet: 80 << 20, RSS: 60 << 20, Cache: 40 << 20, MappedFile: 8192, ActiveFile: 10 << 20, InactiveFile: 20 << 20,
			Limit: 256 << 20, Swap: 1024, SwapLimit: 128 << 20, SwapKnown: true, PageFaults: 700, MajorPageFaults: 30,
			OwnPageFaults: 70, OwnMajorPageFaults: 3, Peak: 200 << 20, Kernel: 1 << 20, FailCount: 3, OOMKills: 4, Dirty: 4096, Writeback: 12288,
			RefaultFile: 11, RefaultAnon: 12,
		},
		IO: IOStats{Devices: []DeviceIO{
			{Major: 8, ReadBytes: 4096, WriteBytes: 8192, Reads: 4, Writes: 5, DiscardBytes: 300, Discards: 6, SyncBytes: 100, AsyncBytes: 200},
			{Major: 259, Minor: 3, ReadBytes: 1, WriteBytes: 2},
		}},
		Pids:    PidsStats{Known: true, Current: 17, Limit: NoLimit},
		Hugetlb: []HugetlbStats{{Size: "2MB", Usage: 4 << 20, Peak: 6 << 20, FailCount: 5}},
	}
}

func TestStatsV1(t *testing.T) {
	var got CgroupStats
	s := statsFixture(false, "testdata/cgroup/v1")
	if err := NewStatsReader().Read(s, &got, true); err != nil {
		t.Fatal(err)
	}
	if want := wantStats(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if pids := NewStatsReader().Processes(s, 10); !slices.Equal(pids, []int{11, 12, 13}) {
		t.Errorf("processes %v", pids)
	}
	if pids := NewStatsReader().Processes(s, 2); len(pids) != 2 {
		t.Errorf("processes beyond the limit: %v", pids)
	}
}

func TestStatsV2(t *testing.T) {
	var got CgroupStats
	s := statsFixture(true, "testdata/cgroup/v2")
	if err := NewStatsReader().Read(s, &got, true); err != nil {
		t.Fatal(err)
	}
	want := wantStats()
	want.CPU.Usage, want.CPU.User, want.CPU.System, want.CPU.Throttled = 123456789e3, 100e9, 23456789e3, 987654e3
	want.CPU.Pressure = Pressure{Known: true, Some: Stall{1.5, 2.25, 0.1, 3e6}, Full: Stall{Total: 1e6}}
	m := &want.Memory
	m.Pressure = Pressure{Known: true, Some: Stall{Total: 20e3}, Full: Stall{Total: 10e3}}
	m.OwnPageFaults, m.OwnMajorPageFaults, m.HighEvents, m.MaxEvents, m.PagesScanned, m.PagesStolen = 700, 30, 8, 3, 21, 22
	d := want.IO.Devices
	d[0].SyncBytes, d[0].AsyncBytes = 0, 0
	want.IO = IOStats{Devices: append(d, DeviceIO{Major: 253}), Pressure: Pressure{Known: true, Some: Stall{Total: 200e3}, Full: Stall{Avg10: 100, Total: 100e3}}}
	want.Pids.Limit = 100
	want.Hugetlb[0].Peak = 0
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// What the kernel of this machine says about its own cgroups, however it is mounted.
func TestStatsOfThisHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a cgroup")
	}
	g, err := NewCgroups("cgroupfs")
	if err != nil {
		t.Fatal(err)
	}
	name := "/cri-stats-test-" + strconv.Itoa(os.Getpid())
	c, err := g.Create(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Remove(t.Context()); err != nil && !strings.Contains(err.Error(), "canceled") {
			t.Error(err)
		}
	})
	s, err := g.StatsSource(name)
	if err != nil {
		t.Fatal(err)
	}
	r, st := NewStatsReader(), CgroupStats{}
	if err := r.Read(s, &st, true); err != nil {
		t.Fatal(err)
	}
	if !st.CPU.Known || !st.Memory.Known || st.Memory.Limit != NoLimit || st.Pids.Current != 0 || len(r.Processes(s, 10)) != 0 {
		t.Errorf("an empty cgroup: %+v", st)
	}
	if st.CPU.Pressure.Known && !g.V2() {
		t.Error("cgroup v1 has pressure")
	}
	if err := c.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Read(s, &st, true); !errors.Is(err, ErrNotFound) {
		t.Errorf("a cgroup that is gone: %v", err)
	}
}

// Files that are kept open follow a cgroup that goes and comes again; none is
// open after Close, nor beyond the bound.
func TestStatsKeepFilesOpen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a cgroup")
	}
	g, err := NewCgroups("cgroupfs")
	if err != nil {
		t.Fatal(err)
	}
	name := "/cri-stats-keep-" + strconv.Itoa(os.Getpid())
	s, err := g.StatsSource(name)
	if err != nil {
		t.Fatal(err)
	}
	r, st := NewStatsReader(), CgroupStats{}
	for range 2 {
		if err := r.Read(s, &st, false); !errors.Is(err, ErrNotFound) || g.kept.Load() != 0 {
			t.Fatalf("without the cgroup: %v, %d files", err, g.kept.Load())
		}
		c, err := g.Create(name, nil)
		if err != nil {
			t.Fatal(err)
		}
		var open int32
		for range 2 {
			if err := r.Read(s, &st, true); err != nil || !st.CPU.Known || !st.Memory.Known {
				t.Errorf("%v, %+v", err, st)
			}
			if n := g.kept.Load(); n == 0 || n > keptFiles || open != 0 && n != open {
				t.Errorf("%d files, then %d", open, n)
			}
			open = g.kept.Load()
		}
		if err := c.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	c, err := g.Create(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Read(s, &st, false); err != nil || g.kept.Load() != 0 {
		t.Errorf("after Close: %v, %d files", err, g.kept.Load())
	}
	if s, err = g.StatsSource(name); err != nil {
		t.Fatal(err)
	}
	g.kept.Store(maxKeptFiles - 1)
	if err := r.Read(s, &st, false); err != nil || g.kept.Load() != maxKeptFiles {
		t.Errorf("at the bound: %v, %d files", err, g.kept.Load())
	}
	if s.Close(); g.kept.Load() != maxKeptFiles-1 {
		t.Errorf("%d files", g.kept.Load())
	}
	if s, err = g.StatsSource(name); err != nil {
		t.Fatal(err)
	}
	g.kept.Store(maxKeptDetail)
	if err := r.Read(s, &st, true); err != nil || g.kept.Load() == maxKeptDetail || g.kept.Load() > maxKeptDetail+keptTasksLimit {
		t.Errorf("at the bound of detail: %v, %d files", err, g.kept.Load()-maxKeptDetail)
	}
	if s.Close(); g.kept.Load() != maxKeptDetail {
		t.Errorf("%d files", g.kept.Load())
	}
	if err := c.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A file that goes away, is empty or malformed costs its own figures only.
func TestStatsPartial(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/cgroup/v2")); err != nil {
		t.Fatal(err)
	}
	s := statsFixture(true, dir)
	for _, change := range []struct{ file, data string }{
		{"memory.stat", "anon\nfile x\n\ninactive_file -5\nfile_mapped 99999999999999999999999\n" + strings.Repeat("y", 5000) + " 7\n"},
		{"io.stat", "8:0\n:1 rbytes=1\n8:x rbytes=1\n99999999999:1 rbytes=1\n8:1 rbytes wbytes= =3 rios=x\n"},
		{"cpu.pressure", "some avg10=NaN avg60=-1 avg300=x total=\nneither total=3\n"},
		{"pids.max", "many\n"},
	} {
		if err := os.WriteFile(filepath.Join(dir, change.file), []byte(change.data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var st CgroupStats
	if err := NewStatsReader().Read(s, &st, true); err != nil {
		t.Fatal(err)
	}
	m := st.Memory
	if !m.Known || m.Usage != 100<<20 || m.RSS != 0 || m.MappedFile != 0 || m.WorkingSet != m.Usage {
		t.Errorf("memory: %+v", m)
	}
	if len(st.IO.Devices) != 2 || st.CPU.Pressure.Known || st.Pids.Limit != NoLimit {
		t.Errorf("%+v", st)
	}
	for _, name := range []string{"memory.current", "cpu.stat"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := NewStatsReader().Read(s, &st, true); err != nil || st.Memory.Known || st.CPU.Known || !st.Pids.Known {
		t.Errorf("without two files: %v, %+v", err, st)
	}
}

// A list longer than one read, and one that is longer than any may be.
func TestStatsLongFiles(t *testing.T) {
	dir := t.TempDir()
	var list strings.Builder
	for i := range 20000 {
		list.WriteString(strconv.Itoa(i+1) + "\n")
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(list.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	r := NewStatsReader()
	if pids := r.Processes(&StatsSource{home: dir}, 1<<20); len(pids) != 20000 || pids[19999] != 20000 {
		t.Errorf("%d processes", len(pids))
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), make([]byte, 3*maxStatsBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := len(r.file(dir, "cgroup.procs")); n > maxStatsBytes {
		t.Errorf("read %d bytes", n)
	}
}

// Only sizes of which there are pages are asked for.
func TestHugePageSizes(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"hugepages-2048kB/nr_hugepages": "5\n", "hugepages-1048576kB/nr_overcommit_hugepages": "1\n", "hugepages-64kB/nr_hugepages": "1",
		"hugepages-32768kB/nr_hugepages": "0\n", "hugepages-16384kB/nr_hugepages": "many\n", "other/nr_hugepages": "3\n",
	} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	got := hugePageSizes(dir)
	slices.Sort(got)
	if want := []string{"1GB", "2MB", "64KB"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	var h *hugePages
	if got := h.now(); got != nil {
		t.Errorf("without the controller: %v", got)
	}
}

func FuzzStats(f *testing.F) {
	for _, pattern := range []string{"testdata/cgroup/v1/*/*", "testdata/cgroup/v2/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatal(files, err)
		}
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var st CgroupStats
		st.CPU.parseV2(data)
		st.CPU.parseTimesV1(data)
		st.CPU.parseQuotaV1(data)
		st.CPU.Pressure.parse(data)
		st.Memory.parseV1(data)
		st.Memory.parseV2(data)
		st.Memory.parseEvents(data)
		st.IO.parseV2(data)
		st.IO.parseBlkio(data, true)
		st.IO.parseBlkio(data, false)
		if len(st.IO.Devices) > maxBlockDevices || st.Memory.WorkingSet > st.Memory.Usage {
			t.Errorf("%+v", st)
		}
		for _, s := range []Stall{st.CPU.Pressure.Some, st.CPU.Pressure.Full} {
			if s.Avg10 < 0 || s.Avg60 != s.Avg60 {
				t.Errorf("%+v", s)
			}
		}
	})
}

func BenchmarkStats(b *testing.B) {
	for _, layout := range []struct {
		name string
		s    *StatsSource
	}{{"v1", statsFixture(false, "testdata/cgroup/v1")}, {"v2", statsFixture(true, "testdata/cgroup/v2")}} {
		for _, detail := range []bool{false, true} {
			b.Run(layout.name+map[bool]string{true: "-detail"}[detail], func(b *testing.B) {
				b.ReportAllocs()
				r, st := NewStatsReader(), CgroupStats{}
				for b.Loop() {
					if err := r.Read(layout.s, &st, detail); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
