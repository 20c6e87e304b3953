package control

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/cri-runtime/cri-runtime/imageservice"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// slowStore is a store whose pulls wait until they are told to end.
type slowStore struct {
	*imageservice.Store
	mu    sync.Mutex
	going []imageservice.PullProgress
	end   chan error
}

func (s *slowStore) Pull(ctx context.Context, _ string, _ *imageservice.Auth) (*imageservice.Image, error) {
	s.step(1000)
	select {
	case err := <-s.end:
		return &imageservice.Image{ID: "sha256:1"}, err
	case <-ctx.Done():
		s.step(-1)
		return nil, context.Cause(ctx)
	}
}

// step sets the bytes of the one pull; less than 0 ends it.
func (s *slowStore) step(got int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := imageservice.PullProgress{ID: 1, Reference: "r.example/a:1", State: imageservice.PullDownloading, Downloaded: got}
	if got < 0 {
		p.State, p.Ended = imageservice.PullCancelled, time.Now()
	}
	s.going = []imageservice.PullProgress{p}
}

func (s *slowStore) Pulls() []imageservice.PullProgress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.going
}

// started is a Server that runs, and a client of it.
type started struct {
	store   *slowStore
	metrics *Metrics
	client  *http.Client
}

func start(t *testing.T) *started {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers have owners")
	}
	dir := t.TempDir()
	images, err := imageservice.Open(imageservice.Config{Root: filepath.Join(dir, "images")})
	if err != nil {
		t.Fatal(err)
	}
	images.Collect()
	s := &started{store: &slowStore{Store: images, end: make(chan error, 1)}, metrics: NewMetrics()}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- New(s.store, s.metrics, func() any { return map[string]int{"answer": 42} }).Serve(ctx, l)
	}()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	s.client = &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := images.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// ask sends a request and returns the status and the whole answer.
func (s *started) ask(t *testing.T, method, path string, body io.Reader) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://control"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(content)
}

// archiveOf is a docker-archive with one image.
func archiveOf(t *testing.T, name string) []byte {
	t.Helper()
	var layer, b bytes.Buffer
	put := func(w *tar.Writer, name, content string) {
		t.Helper()
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	l := tar.NewWriter(&layer)
	put(l, "file", "content")
	w := tar.NewWriter(&b)
	config, err := json.Marshal(ocispec.Image{})
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	config = bytes.Replace(config, []byte(`"diff_ids":null`), []byte(`"diff_ids":["`+digest.FromBytes(layer.Bytes()).String()+`"]`), 1)
	put(w, "layer.tar", layer.String())
	put(w, "config.json", string(config))
	put(w, "manifest.json", fmt.Sprintf(`[{"Config":"config.json","RepoTags":[%q],"Layers":["layer.tar"]}]`, name))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestImagesOverTheSocket(t *testing.T) {
	s := start(t)
	if status, body := s.ask(t, "GET", "/v1/images", nil); status != 200 || strings.TrimSpace(body) != "[]" {
		t.Errorf("%d %s", status, body)
	}
	status, body := s.ask(t, "POST", "/v1/images/import", bytes.NewReader(archiveOf(t, "a.example/x:1")))
	var imported Imported
	if err := json.Unmarshal([]byte(body), &imported); status != 200 || err != nil || len(imported.Images) != 1 {
		t.Fatalf("%d %s, %v", status, body, err)
	}
	status, body = s.ask(t, "GET", "/v1/images/inspect?ref=a.example/x:1", nil)
	var details imageservice.Details
	if err := json.Unmarshal([]byte(body), &details); status != 200 || err != nil || details.ID != imported.Images[0].ID || len(details.Layers) != 1 {
		t.Errorf("%d %s, %v", status, body, err)
	}
	if status, body = s.ask(t, "POST", "/v1/images/check", strings.NewReader(`{"repair":false}`)); status != 200 || !strings.Contains(body, details.ID) {
		t.Errorf("%d %s", status, body)
	}
	status, archive := s.ask(t, "GET", "/v1/images/export?ref=a.example/x:1", nil)
	if status != 200 {
		t.Fatalf("%d %s", status, archive)
	}
	if status, body = s.ask(t, "POST", "/v1/images/import?name=b.example/y:2", strings.NewReader(archive)); status != 200 || !strings.Contains(body, `"b.example/y:2"`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body = s.ask(t, "GET", "/metrics", nil); status != 200 || !strings.Contains(body, "cri_runtime_images 2\n") {
		t.Errorf("%d %s", status, body)
	}
	for range 2 {
		status, body = s.ask(t, "DELETE", "/v1/images?ref=a.example/x:1", nil)
	}
	if status != 404 || !strings.Contains(body, `"not_found"`) {
		t.Errorf("%d %s", status, body)
	}
}

func TestBadRequests(t *testing.T) {
	s := start(t)
	huge := `{"reference":"` + strings.Repeat("x", maxBody) + `"}`
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		reason             string
	}{
		"no reference":     {"GET", "/v1/images/inspect", "", 400, "bad_request"},
		"unknown image":    {"GET", "/v1/images/inspect?ref=none", "", 404, "not_found"},
		"bad reference":    {"GET", "/v1/images/inspect?ref=../../etc", "", 400, "invalid_reference"},
		"not UTF-8":        {"GET", "/v1/images/inspect?ref=%ff%fe", "", 400, "invalid_reference"},
		"export unknown":   {"GET", "/v1/images/export?ref=none", "", 404, "not_found"},
		"remove unknown":   {"DELETE", "/v1/images?ref=none", "", 404, "not_found"},
		"bad JSON":         {"POST", "/v1/images/pull", "{", 400, "bad_request"},
		"no body":          {"POST", "/v1/images/pull", "", 400, "bad_request"},
		"unknown key":      {"POST", "/v1/images/pull", `{"ref":"x"}`, 400, "bad_request"},
		"wrong type":       {"POST", "/v1/images/check", `{"repair":"yes"}`, 400, "bad_request"},
		"two values":       {"POST", "/v1/images/check", `{} {}`, 400, "bad_request"},
		"huge body":        {"POST", "/v1/images/pull", huge, 400, "bad_request"},
		"pull of nonsense": {"POST", "/v1/images/pull", `{"reference":"UPPER"}`, 400, "invalid_reference"},
		"import garbage":   {"POST", "/v1/images/import", strings.Repeat("garbage!", 100_000), 422, "malformed"},
		"import nothing":   {"POST", "/v1/images/import", "", 422, "malformed"},
		"import cut short": {"POST", "/v1/images/import", string(archiveOf(t, "a:1")[:3000]), 422, "malformed"},
		"import bad name":  {"POST", "/v1/images/import?name=UPPER", "", 400, "invalid_reference"},
		"wrong method":     {"PUT", "/v1/images", "", 405, ""},
		"no such path":     {"GET", "/v1/../../etc/passwd", "", 404, ""},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := s.ask(t, c.method, c.path, strings.NewReader(c.body))
			if status != c.status || !strings.Contains(body, c.reason) {
				t.Errorf("%d %s, want %d %s", status, body, c.status, c.reason)
			}
		})
	}
	if left := s.store.Images(); len(left) != 0 {
		t.Errorf("images %v", left)
	}
}

// pulling begins a pull and returns its lines; cancel makes the client go away.
func (s *started) pulling(t *testing.T) (lines *bufio.Scanner, cancel func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", "http://control/v1/images/pull", strings.NewReader(`{"reference":"r.example/a:1"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return bufio.NewScanner(resp.Body), func() {
		stop()
		_ = resp.Body.Close()
	}
}

func next(t *testing.T, lines *bufio.Scanner) PullEvent {
	t.Helper()
	var event PullEvent
	if !lines.Scan() {
		t.Fatalf("no more lines: %v", lines.Err())
	}
	if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
		t.Fatal(err)
	}
	return event
}

func TestPullIsToldLineByLine(t *testing.T) {
	for name, c := range map[string]struct {
		end    error
		reason string
	}{"done": {nil, ""}, "failed": {imageservice.ErrUnauthorized, "unauthorized"}} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			lines, stop := s.pulling(t)
			defer stop()
			if event := next(t, lines); event.Progress == nil || event.Progress.Downloaded != 1000 {
				t.Errorf("%+v", event)
			}
			s.store.step(2000)
			event := next(t, lines)
			for event.Progress != nil && event.Progress.Downloaded != 2000 {
				event = next(t, lines)
			}
			s.store.end <- c.end
			for event.Progress != nil {
				event = next(t, lines)
			}
			switch {
			case c.end == nil && (event.Image == nil || event.Image.ID != "sha256:1"),
				c.end != nil && (event.Error == nil || event.Error.Reason != c.reason):
				t.Errorf("at the end %+v", event)
			}
		})
	}
}

// A client that goes away ends its part of the pull.
func TestPullIsCancelled(t *testing.T) {
	s := start(t)
	lines, stop := s.pulling(t)
	next(t, lines)
	stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for s.store.Pulls()[0].State != imageservice.PullCancelled {
		select {
		case <-tick.C:
		case <-time.After(time.Minute):
			t.Fatal("the pull goes on")
		}
	}
}

func TestMetrics(t *testing.T) {
	s := start(t)
	s.metrics.RPC("PullImage", "OK", 20*time.Millisecond)
	s.metrics.RPC("PullImage", "NotFound", time.Millisecond)
	now := time.Now()
	s.metrics.Pull(imageservice.PullProgress{State: imageservice.PullDone, Started: now, Ended: now.Add(time.Second)}, nil)
	s.metrics.Pull(imageservice.PullProgress{State: imageservice.PullFailed}, fmt.Errorf("x: %w", imageservice.ErrStalled))
	s.store.step(1)
	_, text := s.ask(t, "GET", "/metrics", nil)
	for _, line := range []string{
		`cri_runtime_rpcs_total{code="NotFound",method="PullImage"} 1`,
		`cri_runtime_rpc_seconds_count{method="PullImage"} 2`,
		`cri_runtime_image_pulls_total{reason="",result="done"} 1`,
		`cri_runtime_image_pulls_total{reason="stalled",result="failed"} 1`,
		`cri_runtime_image_pull_seconds_sum{result="done"} 1`,
		`cri_runtime_image_pull_bytes_total{source="registry"} 0`,
		`cri_runtime_image_layers_total{source="reused"} 0`,
		`cri_runtime_image_pulls_active 1`,
		`go_goroutines `, `process_open_fds `,
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in:\n%s", line, text)
		}
	}
	if status, body := s.ask(t, "GET", "/debug/pprof/goroutine?debug=1", nil); status != 200 || !strings.Contains(body, "goroutine profile") {
		t.Errorf("%d %s", status, body)
	}
}

// On TCP there is nothing but metrics.
func TestMetricsListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewMetrics().ServeMetrics(ctx, l) }()
	transport := &http.Transport{}
	for path, want := range map[string]int{"/metrics": 200, "/v1/images": 404, "/debug/pprof/": 404, "/": 404} {
		resp, err := (&http.Client{Transport: transport}).Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	transport.CloseIdleConnections()
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTooManyRequests(t *testing.T) {
	s := &Server{slots: make(chan struct{}, 1)}
	s.slots <- struct{}{}
	w := &recorder{header: http.Header{}}
	s.answered(func(http.ResponseWriter, *http.Request) error { return errors.New("ran") }).
		ServeHTTP(w, &http.Request{Method: "GET", URL: mustURL(t, "/v1/pulls")})
	if w.status != 503 || !strings.Contains(w.body.String(), "busy") {
		t.Errorf("%d %s", w.status, w.body.String())
	}
}

// recorder is an answer in memory.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }

func mustURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
