package imageservice

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// keptPulls is how many pulls are remembered after their end.
const keptPulls = 16

// PullState is where a pull stands.
type PullState string

// The states of a pull.
const (
	PullResolving   PullState = "resolving" // what the name stands for is being asked
	PullDownloading PullState = "downloading"
	PullDone        PullState = "done"
	PullFailed      PullState = "failed"
	PullCancelled   PullState = "cancelled" // all who waited for it gave up
)

// LayerState is where a layer of a pull stands.
type LayerState string

// The states of a layer.
const (
	LayerWaiting     LayerState = "waiting"
	LayerPresent     LayerState = "present" // it was here already
	LayerDownloading LayerState = "downloading"
	LayerDone        LayerState = "done"
)

// PullProgress is one pull at one moment, whoever asked for it.
type PullProgress struct {
	ID        uint64          `json:"id"` // counts from the daemon's start
	Reference string          `json:"reference"`
	State     PullState       `json:"state"`
	Error     string          `json:"error,omitempty"`
	Image     string          `json:"image,omitempty"` // its id, once done
	Clients   int             `json:"clients"`         // that wait for it
	Started   time.Time       `json:"started"`
	Ended     time.Time       `json:"ended,omitzero"`
	Layers    []LayerProgress `json:"layers"`
	// Bytes of the layers as the registry has them: of all, of those downloaded
	// so far, and of those that were here already.
	Total      int64 `json:"total"`
	Downloaded int64 `json:"downloaded"`
	Reused     int64 `json:"reused"`
	// Unpacked are the bytes of the decompressed archives so far.
	Unpacked int64 `json:"unpacked"`
}

// LayerProgress is one layer of a pull.
type LayerProgress struct {
	Digest     digest.Digest `json:"digest"` // of the blob
	State      LayerState    `json:"state"`
	Total      int64         `json:"total"`
	Downloaded int64         `json:"downloaded"`
	Unpacked   int64         `json:"unpacked"`
}

// Traffic is what all pulls of this Store brought, also those that failed.
type Traffic struct {
	Downloaded int64 // bytes of layers
	Reused     int64 // bytes of layers that were here already
	Layers     int64 // downloaded and unpacked
	Present    int64 // layers that were here already
}

// tracker knows the pulls under way and the last ones that ended.
type tracker struct {
	downloaded, reused, layers, present atomic.Int64

	mu     sync.Mutex // guards all below
	count  uint64
	active map[uint64]*tracked
	ended  []PullProgress // the last keptPulls, in the order of their ends
	meters map[string]*meter
}

// tracked is a pull under way.
type tracked struct {
	tracker *tracker
	key     string // of its flight
	head    PullProgress
	layers  []*trackedLayer // guarded by tracker.mu until the pull's end
}

// trackedLayer is a layer of one pull. Its meter is shared by all pulls that
// wait for the same download.
type trackedLayer struct {
	digest digest.Digest
	total  int64
	state  LayerState // guarded by tracker.mu; never LayerDownloading, the meter knows
	meter  *meter     // guarded by tracker.mu
}

// meter counts the bytes of one download. A nil meter counts nothing.
type meter struct {
	tracker              *tracker
	users                int // guarded by tracker.mu
	running              atomic.Bool
	downloaded, unpacked atomic.Int64
}

func newTracker() *tracker {
	return &tracker{active: map[uint64]*tracked{}, meters: map[string]*meter{}}
}

// begin lists a pull. Who begins it calls end.
func (t *tracker) begin(n name, key string) *tracked {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count++
	p := &tracked{tracker: t, key: key, head: PullProgress{
		ID: t.count, Reference: n.String(), State: PullResolving, Started: time.Now(),
	}}
	t.active[t.count] = p
	return p
}

// expect lists the layers of the pull, each once.
func (p *tracked) expect(r *resolved) {
	if p == nil {
		return
	}
	p.tracker.mu.Lock()
	defer p.tracker.mu.Unlock()
	p.head.State = PullDownloading
	seen := map[digest.Digest]bool{}
	for i, diffID := range r.config.RootFS.DiffIDs {
		if seen[diffID] {
			continue
		}
		seen[diffID] = true
		blob := r.layers[i]
		p.layers = append(p.layers, &trackedLayer{digest: blob.Digest, total: blob.Size, state: LayerWaiting})
		p.head.Total += blob.Size
	}
}

// adopted says that all of the image was here. It is nil when it could not be
// given its new name.
func (p *tracked) adopted(s *Store, image *Image) {
	if image == nil {
		return
	}
	var layers []trackedLayer
	s.mu.Lock()
	for _, diffID := range unique(image.Config.RootFS.DiffIDs) {
		if l := s.layers[diffID]; l != nil {
			layers = append(layers, trackedLayer{digest: l.Blob, total: l.Size, state: LayerPresent})
		}
	}
	s.mu.Unlock()
	t := p.tracker
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range layers {
		p.layers = append(p.layers, &layers[i])
		p.head.Total += layers[i].total
		t.reused.Add(layers[i].total)
		t.present.Add(1)
	}
}

// layer finds a layer of the pull by its blob; nil if there is none.
func (p *tracked) layer(blob digest.Digest) *trackedLayer {
	for _, l := range p.layers {
		if l.digest == blob {
			return l
		}
	}
	return nil
}

// measure returns the meter of a layer's download, and what ends its use:
// present tells that the layer was here before.
func (p *tracked) measure(l layer) (m *meter, done func(present bool, err error)) {
	if p == nil {
		return nil, func(bool, error) {}
	}
	t, key := p.tracker, l.key()
	t.mu.Lock()
	defer t.mu.Unlock()
	at := p.layer(l.blob.Digest)
	if at == nil {
		return nil, func(bool, error) {}
	}
	m = t.meters[key]
	if m == nil {
		m = &meter{tracker: t}
		t.meters[key] = m
	}
	m.users++
	at.meter = m
	return m, func(present bool, err error) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if m.users--; m.users == 0 {
			delete(t.meters, key)
		}
		switch {
		case err != nil:
		case present:
			at.state, at.meter = LayerPresent, nil
			t.reused.Add(at.total)
			t.present.Add(1)
		default:
			at.state = LayerDone
		}
	}
}

// end takes the pull off the list and returns what it was in the end.
func (p *tracked) end(image *Image, err error) PullProgress {
	t := p.tracker
	t.mu.Lock()
	defer t.mu.Unlock()
	p.head.State = PullDone
	switch {
	case errors.Is(err, ErrStalled): // may wrap a deadline that is nobody's but ours
		p.head.State = PullFailed
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, ErrClosed):
		p.head.State = PullCancelled
	case err != nil:
		p.head.State = PullFailed
	}
	if err != nil {
		p.head.Error = err.Error()
	}
	if image != nil {
		p.head.Image = image.ID
	}
	// By the monotonic reading of Started: the clock may have been set meanwhile.
	p.head.Ended = p.head.Started.Add(time.Since(p.head.Started))
	last := p.snapshot()
	delete(t.active, p.head.ID)
	if len(t.ended) >= keptPulls {
		t.ended = slices.Delete(t.ended, 0, 1)
	}
	t.ended = append(t.ended, last)
	return last
}

// snapshot is the pull now. The caller holds tracker.mu.
func (p *tracked) snapshot() PullProgress {
	now := p.head
	now.Started, now.Ended = now.Started.UTC(), now.Ended.UTC()
	now.Layers = make([]LayerProgress, 0, len(p.layers))
	for _, l := range p.layers {
		at := LayerProgress{Digest: l.digest, State: l.state, Total: l.total}
		if l.meter != nil {
			at.Downloaded, at.Unpacked = l.meter.downloaded.Load(), l.meter.unpacked.Load()
			if l.state == LayerWaiting && l.meter.running.Load() {
				at.State = LayerDownloading
			}
		}
		if l.state == LayerPresent {
			now.Reused += l.total
		}
		now.Downloaded += at.Downloaded
		now.Unpacked += at.Unpacked
		now.Layers = append(now.Layers, at)
	}
	return now
}

// start begins the count of one attempt; the end of it is counted by finish.
func (m *meter) start() {
	if m == nil {
		return
	}
	m.downloaded.Store(0)
	m.unpacked.Store(0)
	m.running.Store(true)
}

func (m *meter) finish(err error) {
	if m == nil {
		return
	}
	m.running.Store(false)
	if err == nil {
		m.tracker.layers.Add(1)
	}
}

// arriving counts what is read of the blob.
func (m *meter) arriving(r io.Reader) io.Reader {
	if m == nil {
		return r
	}
	return &counted{Reader: r, into: [2]*atomic.Int64{&m.downloaded, &m.tracker.downloaded}}
}

// unpacking counts what is read of the archive.
func (m *meter) unpacking(r io.Reader) io.Reader {
	if m == nil {
		return r
	}
	return &counted{Reader: r, into: [2]*atomic.Int64{&m.unpacked, nil}}
}

// counted is a reader whose bytes are counted.
type counted struct {
	io.Reader
	into [2]*atomic.Int64
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	for _, into := range c.into {
		if into != nil {
			into.Add(int64(n))
		}
	}
	return n, err
}

// Pulls returns the pulls under way, the oldest first, and before them the
// last ones that ended.
func (s *Store) Pulls() []PullProgress {
	t := s.tracker
	t.mu.Lock()
	pulls := slices.Clone(t.ended)
	keys := map[uint64]string{}
	for _, p := range slices.SortedFunc(maps.Values(t.active), func(a, b *tracked) int { return cmp.Compare(a.head.ID, b.head.ID) }) {
		pulls = append(pulls, p.snapshot())
		keys[p.head.ID] = p.key
	}
	t.mu.Unlock()
	for i := range pulls {
		if key, ok := keys[pulls[i].ID]; ok {
			pulls[i].Clients = s.pulls.waiting(key)
		}
	}
	return pulls
}

// Traffic returns what all pulls so far brought.
func (s *Store) Traffic() Traffic {
	t := s.tracker
	return Traffic{
		Downloaded: t.downloaded.Load(), Reused: t.reused.Load(),
		Layers: t.layers.Load(), Present: t.present.Load(),
	}
}

// busy tells whether a pull is under way.
func (t *tracker) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.active) > 0
}
