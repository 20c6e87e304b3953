package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/server/control"
)

// fakeDaemon answers on the control socket of a state directory.
func fakeDaemon(t *testing.T, handler http.Handler) (state string) {
	t.Helper()
	state = t.TempDir()
	l, err := net.Listen("unix", controlSocket(state))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return state
}

// realDaemon is a control server over an image store.
func realDaemon(t *testing.T) (state string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers have owners")
	}
	state = t.TempDir()
	images, err := imageservice.Open(imageservice.Config{Root: filepath.Join(state, "images")})
	if err != nil {
		t.Fatal(err)
	}
	images.Collect()
	l, err := net.Listen("unix", controlSocket(state))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- control.New(images, control.NewMetrics(), func() any { return nil }).Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := images.Close(); err != nil {
			t.Error(err)
		}
	})
	return state
}

func runImage(state string, args ...string) (code int, stdout, stderr string) {
	var out, problems bytes.Buffer
	code = run(append([]string{"image", "--state", state}, args...), &out, &problems)
	return code, out.String(), problems.String()
}

// dockerArchive is what docker save writes of an image with one file.
func dockerArchive(t *testing.T, name string) []byte {
	t.Helper()
	pack := func(files ...[2]string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, f := range files {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f[0], Size: int64(len(f[1])), Mode: 0o644}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(f[1])); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	layer := pack([2]string{"file", "content"})
	config := fmt.Sprintf(`{"rootfs":{"type":"layers","diff_ids":[%q]}}`, digest.FromBytes(layer))
	return pack([2]string{"layer.tar", string(layer)}, [2]string{"c.json", config},
		[2]string{"manifest.json", fmt.Sprintf(`[{"Config":"c.json","RepoTags":[%q],"Layers":["layer.tar"]}]`, name)})
}

func TestImageCommands(t *testing.T) {
	state, dir := realDaemon(t), t.TempDir()
	file := filepath.Join(dir, "image.tar")
	if err := os.WriteFile(file, dockerArchive(t, "a.example/x:1"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, problems := runImage(state, "import", file)
	id, names, _ := strings.Cut(strings.TrimSpace(out), " ")
	if code != 0 || names != "a.example/x:1" || digest.Digest(id).Validate() != nil {
		t.Fatalf("import: %d %q %q", code, out, problems)
	}
	if _, out, problems := runImage(state, "list"); !strings.HasPrefix(out, "IMAGE ") || !strings.Contains(out, "a.example/x:1  "+shortID(id)) {
		t.Errorf("list: %q %q", out, problems)
	}
	if _, out, _ := runImage(state, "list", "-q"); out != id+"\n" {
		t.Errorf("list -q: %q", out)
	}
	var images []control.Image
	if _, out, _ := runImage(state, "list", "--json"); json.Unmarshal([]byte(out), &images) != nil || len(images) != 1 {
		t.Errorf("list --json: %q", out)
	}
	var details imageservice.Details
	if _, out, _ := runImage(state, "inspect", shortID(id)); json.Unmarshal([]byte(out), &details) != nil || details.ID != id || details.Source != "import" {
		t.Errorf("inspect: %q", out)
	}
	if code, out, problems := runImage(state, "check"); code != 0 || !strings.Contains(out, "1 images, 1 layers") {
		t.Errorf("check: %d %q %q", code, out, problems)
	}
	layout := filepath.Join(dir, "layout") + "/"
	for _, output := range []string{filepath.Join(dir, "out.tar"), layout} {
		if code, out, problems := runImage(state, "export", "a.example/x:1", "-o", output); code != 0 || out != "" || !strings.Contains(problems, "manifest sha256:") {
			t.Fatalf("export: %d %q %q", code, out, problems)
		}
		name := "b.example/" + filepath.Base(output) + ":2"
		if code, out, problems := runImage(state, "import", "--name", name, output); code != 0 || !strings.Contains(out, name) {
			t.Errorf("import of the export: %d %q %q", code, out, problems)
		}
	}
	if _, err := os.Stat(filepath.Join(layout, "index.json")); err != nil {
		t.Error(err)
	}
	if code, _, problems := runImage(state, "export", "a.example/x:1", "-o", layout); code == 0 || !strings.Contains(problems, "file exists") {
		t.Errorf("export over a directory: %d %q", code, problems)
	}
	if code, out, problems := runImage(state, "remove", "a.example/x:1", "none:1"); code != 1 || !strings.HasPrefix(out, "removed "+shortID(id)) ||
		!strings.Contains(problems, "image not found: docker.io/library/none:1") {
		t.Errorf("remove: %d %q %q", code, out, problems)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 3 {
		t.Errorf("files %v, %v", left, err)
	}
	if _, out, _ := runImage(state, "pulls"); out != "no pulls\n" {
		t.Errorf("pulls: %q", out)
	}
}

func TestImageErrors(t *testing.T) {
	state := realDaemon(t)
	nobody := t.TempDir()
	garbage := filepath.Join(nobody, "garbage")
	if err := os.WriteFile(garbage, bytes.Repeat([]byte("garbage!"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		state string
		args  []string
		want  string
	}{
		"no daemon":      {nobody, []string{"list"}, nobody + `/control.sock: start one with "systemctl start cri-runtime"`},
		"unknown image":  {state, []string{"inspect", "none"}, "the daemon says: inspect: image not found: docker.io/library/none:latest"},
		"bad reference":  {state, []string{"pull", "UPPER"}, "invalid image reference"},
		"import garbage": {state, []string{"import", garbage}, "malformed archive"},
		"import nothing": {state, []string{"import", nobody + "/none"}, "no such file"},
		"empty layout":   {state, []string{"import", t.TempDir()}, "malformed archive"},
		"export nothing": {state, []string{"export", "none", "-o", nobody + "/out"}, "image not found"},
		"export nowhere": {state, []string{"export", "none"}, "--output is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, problems := runImage(c.state, c.args...)
			if code != 1 || !strings.Contains(problems, c.want) {
				t.Errorf("%d %q, want %q", code, problems, c.want)
			}
		})
	}
	if left, err := os.ReadDir(nobody); err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
}

// pullOf is a pull at two thirds.
func pullOf(state imageservice.PullState) *imageservice.PullProgress {
	start := time.Unix(1_700_000_000, 0).UTC()
	p := &imageservice.PullProgress{
		ID: 7, Reference: "r.example/app:1", State: state, Clients: 2, Started: start, Total: 3_000_000, Downloaded: 1_500_000, Reused: 1_000_000,
		Layers: []imageservice.LayerProgress{
			{Digest: digest.FromString("a"), State: imageservice.LayerPresent, Total: 1_000_000},
			{Digest: digest.FromString("b"), State: imageservice.LayerDownloading, Total: 2_000_000, Downloaded: 1_500_000, Unpacked: 4_000_000},
		},
	}
	if state == imageservice.PullDone {
		p.Ended, p.Downloaded, p.Layers[1].State = start.Add(2*time.Second), 2_000_000, imageservice.LayerDone
	}
	return p
}

func TestPullCommand(t *testing.T) {
	events := []control.PullEvent{
		{Progress: pullOf(imageservice.PullDownloading)}, {Progress: pullOf(imageservice.PullDone)}, {Image: &control.Image{ID: "sha256:1"}},
	}
	var asked control.PullRequest
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/images/pull", func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Error(err)
		}
		for _, event := range events {
			_ = json.NewEncoder(w).Encode(event)
		}
	})
	mux.HandleFunc("GET /v1/pulls", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode([]any{pullOf(imageservice.PullDone), pullOf(imageservice.PullDownloading)})
	})
	state := fakeDaemon(t, mux)
	code, out, problems := runImage(state, "pull", "r.example/app:1", "--username", "u")
	if code != 0 || out != "sha256:1\n" || asked.Reference != "r.example/app:1" || asked.Username != "u" {
		t.Errorf("%d %q %q, asked %+v", code, out, problems, asked)
	}
	for _, line := range []string{
		shortID(digest.FromString("a").String()) + " present 1.0 MB\n",
		shortID(digest.FromString("b").String()) + " downloading 2.0 MB\n",
		"2.0 MB in 2s (1.0 MB/s), layers: 1 downloaded, 1 reused; reused 1.0 MB of 3.0 MB (33 %)\n",
	} {
		if !strings.Contains(problems, line) {
			t.Errorf("no %q in %q", line, problems)
		}
	}
	if _, out, _ = runImage(state, "pull", "x", "--json"); strings.Count(out, "\n") != len(events) {
		t.Errorf("%q", out)
	}
	if _, out, _ = runImage(state, "pulls"); !strings.Contains(out, "downloading, 1.5 MB of 2.0 MB, 1.0 MB reused, 2 clients") ||
		!strings.Contains(out, "[==================      ]    1.5 MB of 2.0 MB, 4.0 MB unpacked") {
		t.Errorf("%q", out)
	}
	events = []control.PullEvent{{Error: &control.Error{Reason: "unauthorized", Text: "denied\x1b[2J"}}}
	if code, _, problems = runImage(state, "pull", "x"); code != 1 || !strings.Contains(problems, "denied\uFFFD[2J") {
		t.Errorf("%d %q", code, problems)
	}
	events = nil
	if code, _, problems = runImage(state, "pull", "x"); code != 1 || !strings.Contains(problems, "ended before the pull did") {
		t.Errorf("%d %q", code, problems)
	}
}

func TestScreen(t *testing.T) {
	var b bytes.Buffer
	s := &screen{w: &b}
	s.draw([]string{"one", strings.Repeat("x", 100)})
	s.draw([]string{"1", "2", "3", "4", "5", "6"})
	if text := b.String(); !strings.Contains(text, "\x1b[2A") || strings.Contains(text, strings.Repeat("x", 40)) || !strings.Contains(text, "and 3 more lines") {
		t.Errorf("%q", text)
	}
	if s.drawn != 4 {
		t.Errorf("drew %d lines", s.drawn)
	}
}

func TestHumanNumbers(t *testing.T) {
	var got []string
	for _, n := range []int64{0, 999, 1000, 1_234_567, 123_456_789, 1 << 62} {
		got = append(got, size(n))
	}
	if want := []string{"0 B", "999 B", "1.0 kB", "1.2 MB", "123 MB", "4612 PB"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	now := time.Unix(1_700_000_000, 0)
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s ago", 59 * time.Second: "59 s ago", 90 * time.Minute: "1 h ago", 72 * time.Hour: "3 days ago",
	} {
		if got := age(now.Add(-d), now); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
