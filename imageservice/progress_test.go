package imageservice

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"
)

// noise is text that no compressor makes much smaller.
func noise(n int) string {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// eventually waits for something that other goroutines bring about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s did not happen within a minute", what)
		}
	}
}

func last(s *Store) PullProgress {
	pulls := s.Pulls()
	if len(pulls) == 0 {
		return PullProgress{}
	}
	return pulls[len(pulls)-1]
}

// gate lets the first half of each blob through, and the rest when it is open.
type gate struct {
	r    *testRegistry
	open chan struct{}
}

func newGate(r *testRegistry) *gate {
	g := &gate{r: r, open: make(chan struct{})}
	r.setHook(g.serve)
	return g
}

func (g *gate) serve(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
		return false
	}
	g.r.inner.ServeHTTP(&gatedWriter{ResponseWriter: w, gate: g, r: r}, r)
	return true
}

type gatedWriter struct {
	http.ResponseWriter
	gate *gate
	r    *http.Request
}

func (w *gatedWriter) Write(p []byte) (int, error) {
	half := len(p) / 2
	if len(p) < 10_000 {
		return w.ResponseWriter.Write(p)
	}
	n, err := w.ResponseWriter.Write(p[:half])
	if err != nil {
		return n, err
	}
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
	select {
	case <-w.gate.open:
	case <-w.r.Context().Done():
		return n, w.r.Context().Err()
	}
	m, err := w.ResponseWriter.Write(p[half:])
	return n + m, err
}

func TestProgress(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	base := gzipped(t, file("base", noise(20_000)))
	r.putImage("base", "1", testConfig(), base)
	r.putImage("app", "1", testConfig(), base, gzipped(t, file("app", noise(2_000_000))))
	mustPull(t, s, r.ref("base:1"))
	before := s.Traffic()
	g := newGate(r)
	done := make(chan error, 2)
	pull := func() {
		_, err := s.Pull(context.Background(), r.ref("app:1"), nil)
		done <- err
	}
	go pull()
	go pull()
	eventually(t, "half of a layer for two clients", func() bool {
		p := last(s)
		return p.Clients == 2 && p.Downloaded > 500_000
	})
	p := last(s)
	if p.State != PullDownloading || len(p.Layers) != 2 || p.Downloaded >= p.Layers[1].Total ||
		p.Layers[0].State != LayerPresent || p.Layers[1].State != LayerDownloading ||
		p.Reused != p.Layers[0].Total || p.Total != p.Layers[0].Total+p.Layers[1].Total || !p.Ended.IsZero() {
		t.Errorf("in between: %+v", p)
	}
	close(g.open)
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	p = last(s)
	if p.State != PullDone || p.Downloaded != p.Layers[1].Total || p.Layers[1].State != LayerDone ||
		p.Unpacked < 2_000_000 || p.Image == "" || p.Clients != 0 || p.Ended.IsZero() {
		t.Errorf("at the end: %+v", p)
	}
	after := s.Traffic()
	if after.Downloaded-before.Downloaded != p.Downloaded || after.Reused-before.Reused != p.Reused ||
		after.Layers-before.Layers != 1 || after.Present-before.Present != 1 {
		t.Errorf("traffic %+v, then %+v", before, after)
	}
	mustPull(t, s, r.ref("app:1"))
	if p = last(s); p.Reused != p.Total || p.Total == 0 || p.Downloaded != 0 {
		t.Errorf("again: %+v", p)
	}
}

func TestProgressOfFailures(t *testing.T) {
	r := newRegistry(t)
	var told []PullState
	s := openStore(t, func(c *Config) { c.PullEnded = func(p PullProgress, _ error) { told = append(told, p.State) } })
	for i := range keptPulls + 3 {
		if _, err := s.Pull(t.Context(), r.ref(fmt.Sprintf("missing:%d", i)), nil); err == nil {
			t.Fatal("pulled what is not there")
		}
	}
	pulls := s.Pulls()
	if len(pulls) != keptPulls || pulls[0].Reference != r.ref("missing:3") || pulls[0].State != PullFailed || pulls[0].Error == "" {
		t.Errorf("%d pulls, the first %+v", len(pulls), pulls[0])
	}
	r.putImage("slow", "1", testConfig(), gzipped(t, file("f", noise(1_000_000))))
	newGate(r)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, r.ref("slow:1"), nil)
		done <- err
	}()
	eventually(t, "a part of the layer", func() bool { return last(s).Downloaded > 100_000 })
	cancel()
	<-done
	if p := last(s); p.State != PullCancelled || p.Ended.IsZero() {
		t.Errorf("cancelled: %+v", p)
	}
	if len(told) != keptPulls+4 || told[0] != PullFailed || told[keptPulls+3] != PullCancelled {
		t.Errorf("told of %v", told)
	}
}
