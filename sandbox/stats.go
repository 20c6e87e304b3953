package sandbox

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci"
)

const (
	// A rate of less time than this is noise, and of more is no rate of now.
	shortestWindow = 200 * time.Millisecond
	longestWindow  = 2 * time.Minute
	maxProcesses   = 1 << 16 // of a container or a pod that are counted
)

// Usage is what a container or a pod uses, as the kernel accounts for it: no
// monitor is asked and no verb waited for.
type Usage struct {
	At             int64  // ns since the epoch
	Cgroup         string // path below the root of all cgroups
	NanoCores      uint64 // of processor time per second since an earlier look
	NanoCoresKnown bool   // false at the first look
	Processes      int    // of a container with detail only
	PIDs           []int  // of a container, with detail only
	oci.CgroupStats

	source *oci.StatsSource
	init   int // of a container: its first process
}

// meter is what an object keeps between two looks at it.
type meter struct {
	rate rate

	mu     sync.Mutex
	source *oci.StatsSource // nil before the first look
	closed bool
}

func (m *meter) open(g *oci.Cgroups, cgroup string) (*oci.StatsSource, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.source != nil {
		return m.source, nil
	}
	source, err := g.StatsSource(cgroup)
	if err != nil {
		return nil, err
	}
	if m.closed {
		source.Close()
	}
	m.source = source
	return source, nil
}

// close closes the files that are kept open.
func (m *meter) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	if m.source != nil {
		m.source.Close()
	}
}

// rate turns a counter into a rate.
type rate struct {
	mu    sync.Mutex
	at    time.Time
	usage uint64
	cores uint64
	known bool
}

// add takes a sample and returns the rate over the window that it ends. at has its
// monotonic reading, or the rate would be wrong once the clock is set.
func (r *rate) add(at time.Time, usage uint64) (cores uint64, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	window := at.Sub(r.at)
	switch {
	case r.at.IsZero() || usage < r.usage || window < 0 || window > longestWindow:
		r.at, r.usage, r.cores, r.known = at, usage, 0, false
	case window >= shortestWindow:
		r.cores, r.known = uint64(float64(usage-r.usage)*float64(time.Second)/float64(window)), true
		r.at, r.usage = at, usage
	}
	return r.cores, r.known
}

// Usage looks at the container; ErrNotFound says that its cgroup is gone, as
// when it is being removed. Without detail the processes aren't counted.
func (c *Container) Usage(detail bool) (*Usage, error) {
	u, err := c.store.usage(&c.meter, c.record.Cgroup, detail)
	if err != nil {
		return nil, fmt.Errorf("usage of container %s: %w", c.id, err)
	}
	u.init = c.Status().PID
	if detail {
		u.PIDs = c.store.processes(u)
		u.Processes = len(u.PIDs)
	}
	return u, nil
}

// Usage looks at the pod's cgroup, with all that is in it. containers is what
// was seen of its containers just before: it spares counting their processes again,
// and is all there is of a pod that shares its cgroup with others.
func (b *Sandbox) Usage(containers ...*Usage) (*Usage, error) {
	if b.shared.Load() {
		return b.sumOf(containers), nil
	}
	u, err := b.store.usage(&b.meter, b.Status().Cgroup, false)
	if err != nil {
		return nil, fmt.Errorf("usage of sandbox %s: %w", b.id, err)
	}
	var tasks uint64
	for _, c := range containers {
		tasks += c.Pids.Current
	}
	if !u.Pids.Known || tasks != u.Pids.Current {
		containers = []*Usage{u} // others are in the pod's cgroup, or one came meanwhile
	}
	for _, c := range containers {
		n := c.Processes
		if n == 0 {
			n = len(b.store.processes(c))
		}
		u.Processes += n
	}
	return u, nil
}

func (s *Store) usage(m *meter, cgroup string, detail bool) (*Usage, error) {
	source, err := m.open(s.cgroups, cgroup)
	if err != nil {
		return nil, err
	}
	reader := s.reader()
	defer s.readers.Put(reader)
	at := time.Now()
	u := &Usage{At: at.UnixNano(), Cgroup: source.Path(), source: source}
	err = reader.Read(source, &u.CgroupStats, detail)
	if errors.Is(err, oci.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	if u.CPU.Known {
		u.NanoCores, u.NanoCoresKnown = m.rate.add(at, u.CPU.Usage)
	}
	return u, nil
}

// processes lists those of the cgroup; a single task of a container is its
// first process, without another look.
func (s *Store) processes(u *Usage) []int {
	if u.Pids.Known && u.Pids.Current == 1 && u.init > 0 {
		return []int{u.init}
	}
	reader := s.reader()
	defer s.readers.Put(reader)
	return reader.Processes(u.source, maxProcesses)
}

func (s *Store) reader() *oci.StatsReader {
	if r, ok := s.readers.Get().(*oci.StatsReader); ok {
		return r
	}
	return oci.NewStatsReader()
}

// Volume is the file system on which the containers' writable layers are.
type Volume struct {
	Device             string // MAJOR:MINOR
	Bytes              uint64
	Inodes, FreeInodes uint64
}

// WritablePath is the directory of the writable layers.
func (s *Store) WritablePath() string { return s.root("containers") }

// Volume looks at the file system of the writable layers.
func (s *Store) Volume() (Volume, error) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	path := s.root("containers")
	if err := errors.Join(unix.Stat(path, &st), unix.Statfs(path, &fs)); err != nil {
		return Volume{}, fmt.Errorf("file system of %s: %w", path, err)
	}
	return Volume{
		Device: fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)),
		Bytes:  fs.Blocks * uint64(fs.Bsize), Inodes: fs.Files, FreeInodes: fs.Ffree,
	}, nil
}
