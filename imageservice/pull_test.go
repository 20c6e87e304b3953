package imageservice

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const hostArch = runtime.GOARCH

var testTime = time.Unix(1_600_000_000, 0)

func TestPullForms(t *testing.T) {
	for _, compress := range []string{"", "gzip", "zstd"} {
		for _, docker := range []bool{false, true} {
			t.Run(compress+map[bool]string{true: " docker", false: " oci"}[docker], func(t *testing.T) {
				r, s := newRegistry(t), openStore(t, nil)
				id, manifest := r.putTyped("a/b", "1", testConfig(), docker,
					testLayer{archive: archive(t, dir("etc", 0o755), file("etc/x", "lower")), compress: compress},
					testLayer{archive: archive(t, dir("etc", 0o755), file("etc/x", "upper")), compress: compress})
				image := mustPull(t, s, r.ref("a/b:1"))
				if image.ID != id || image.Manifest != manifest.Digest {
					t.Errorf("id %s manifest %s, want %s %s", image.ID, image.Manifest, id, manifest.Digest)
				}
				if want := []string{r.ref("a/b:1")}; !slices.Equal(image.RepoTags, want) {
					t.Errorf("tags %v, want %v", image.RepoTags, want)
				}
				if want := []string{r.ref("a/b@" + manifest.Digest.String())}; !slices.Equal(image.RepoDigests, want) {
					t.Errorf("digests %v, want %v", image.RepoDigests, want)
				}
				if len(image.Layers) != 2 {
					t.Fatalf("layers %v", image.Layers)
				}
				wantFile(t, filepath.Join(image.Layers[0], "etc/x"), "upper")
				wantFile(t, filepath.Join(image.Layers[1], "etc/x"), "lower")
				m, c, err := s.Documents(id)
				if err != nil || digest.FromBytes(m) != manifest.Digest || digest.FromBytes(c).String() != id {
					t.Errorf("documents %s %s, %v", m, c, err)
				}
				if uid, name := image.User(); uid == nil || *uid != 1000 || name != "" {
					t.Errorf("user %v %q", uid, name)
				}
			})
		}
	}
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s: %q, %v; want %q", path, got, err, want)
	}
}

func TestPullIndex(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	other := testConfig()
	other.Architecture = "s390x"
	_, foreign := r.putImage("m", "", other, gzipped(t, file("f", "s390x")))
	id, here := r.putImage("m", "", testConfig(), gzipped(t, file("f", "here")))
	foreign.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	here.Platform = &ocispec.Platform{OS: "linux", Architecture: hostArch}
	unnamed := here
	unnamed.Platform = nil
	foreignUnnamed := foreign
	foreignUnnamed.Platform = nil
	nested := r.putManifest("m", "", ocispec.MediaTypeImageIndex, index(foreign, here))
	for name, manifests := range map[string][]ocispec.Descriptor{
		"named":   {foreign, here},
		"unnamed": {foreignUnnamed, unnamed},
		"nested":  {nested},
	} {
		t.Run(name, func(t *testing.T) {
			desc := r.putManifest("m", name, ocispec.MediaTypeImageIndex, index(manifests...))
			image := mustPull(t, s, r.ref("m:"+name))
			if image.ID != id {
				t.Errorf("id %s, want %s", image.ID, id)
			}
			if want := r.ref("m@" + desc.Digest.String()); !slices.Contains(image.RepoDigests, want) {
				t.Errorf("digests %v lack %s", image.RepoDigests, want)
			}
		})
	}
	r.putManifest("m", "foreign", ocispec.MediaTypeImageIndex, index(foreign))
	_, err := s.Pull(context.Background(), r.ref("m:foreign"), nil)
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "s390x") {
		t.Errorf("foreign platform: %v", err)
	}
}

func index(manifests ...ocispec.Descriptor) ocispec.Index {
	return ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests}
}

// TestPullBad pulls what must not come in, and sees that nothing stays.
func TestPullBad(t *testing.T) {
	r := newRegistry(t)
	good := gzipped(t, file("f", strings.Repeat("content ", 1000)))
	blob := good.content(t)
	_, manifest := r.putImage("good", "1", testConfig(), good)
	foreign := testConfig()
	foreign.Architecture = "s390x"
	r.putImage("foreign", "1", foreign, good)
	r.putImage("diffid", "1", testConfig(), testLayer{archive: good.archive, compress: "gzip", diffID: digest.FromString("x")})
	r.putImage("cut", "1", testConfig(), testLayer{blob: blob[:len(blob)/2], compress: "gzip", diffID: digest.FromBytes(good.archive)})
	r.putImage("climb", "1", testConfig(), gzipped(t, file("../../evil", "x")))
	r.putImage("through", "1", testConfig(), gzipped(t, symlink("d", "/tmp"), file("d/evil", "x")))
	r.putImage("through2", "1", testConfig(), gzipped(t, dir("a", 0o755), symlink("a/d", "../../.."), file("a/d/evil", "x")))
	r.putImage("hard", "1", testConfig(), gzipped(t, symlink("d", "/etc"), hardlink("x", "d/passwd")))
	r.putImage("hardclimb", "1", testConfig(), gzipped(t, hardlink("x", "../../../etc/passwd")))
	r.putImage("garbage", "1", testConfig(), testLayer{archive: []byte(strings.Repeat("garbage!", 200))})
	r.putManifest("schema1", "1", typeDockerSchema1+"prettyjws", map[string]any{"schemaVersion": 1, "fsLayers": []int{}})
	r.putManifest("both", "1", ocispec.MediaTypeImageManifest, map[string]any{
		"schemaVersion": 2, "manifests": []int{}, "layers": []int{}, "config": ocispec.DescriptorEmptyJSON,
	})
	r.putManifest("artifact", "1", ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, Config: ocispec.DescriptorEmptyJSON,
	})
	for _, c := range []struct {
		ref  string
		want error
		text string
	}{
		{"missing:1", ErrNotFound, ""},
		{"good@" + digest.FromString("y").String(), ErrNotFound, ""},
		{"diffid:1", ErrDigestMismatch, "content"},
		{"cut:1", ErrMalformedLayer, "EOF"},
		{"climb:1", ErrMalformedLayer, "climbs out"},
		{"through:1", ErrMalformedLayer, "symbolic link"},
		{"through2:1", ErrMalformedLayer, "symbolic link"},
		{"hard:1", ErrMalformedLayer, "symbolic link"},
		{"hardclimb:1", ErrMalformedLayer, "climbs out"},
		{"garbage:1", ErrMalformedLayer, ""},
		{"schema1:1", ErrUnsupported, "schema 1"},
		{"both:1", ErrMalformedManifest, "both an index"},
		{"artifact:1", ErrUnsupported, "without files"},
		{"foreign:1", ErrUnsupported, "s390x"},
		{"UPPER:1", ErrInvalidReference, ""},
	} {
		t.Run(c.ref, func(t *testing.T) {
			s := openStore(t, nil)
			_, err := s.Pull(context.Background(), r.ref(c.ref), nil)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
			t.Log(err)
			if len(s.Images()) > 0 || len(s.layers) > 0 {
				t.Error("something stays")
			}
		})
	}
	t.Run("by digest", func(t *testing.T) {
		image := mustPull(t, openStore(t, nil), r.ref("good@"+manifest.Digest.String()))
		if len(image.RepoTags) != 0 || len(image.RepoDigests) != 1 {
			t.Errorf("tags %v digests %v", image.RepoTags, image.RepoDigests)
		}
	})
	if _, err := os.Lstat("/tmp/evil"); err == nil {
		t.Fatal("a layer wrote to /tmp/evil")
	}
}

// TestPullTampered changes blobs on their way.
func TestPullTampered(t *testing.T) {
	r := newRegistry(t)
	l := gzipped(t, file("f", strings.Repeat("some content ", 5000)))
	blob := l.content(t)
	id, manifest := r.putImage("x", "1", testConfig(), l)
	serve := func(path string, content []byte) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, req *http.Request) bool {
			if req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, path) {
				return false
			}
			_, _ = w.Write(content)
			return true
		}
	}
	flipped := slices.Clone(blob)
	flipped[len(flipped)/2] ^= 1
	blobPath := digest.FromBytes(blob).String()
	for name, hook := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"layer":       serve(blobPath, flipped),
		"layer tail":  serve(blobPath, append(slices.Clone(blob[:len(blob)-1]), blob[len(blob)-1]^1)),
		"layer short": serve(blobPath, blob[:100]),
		"layer long":  serve(blobPath, append(slices.Clone(blob), "more"...)),
		"config":      serve(id, []byte(`{}`)),
		"manifest":    serve(manifest.Digest.String(), []byte(`{"schemaVersion":2}`)),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, nil)
			r.setHook(hook)
			_, err := s.Pull(context.Background(), r.ref("x:1"), nil)
			if !errors.Is(err, ErrDigestMismatch) {
				t.Errorf("got %v, want %v", err, ErrDigestMismatch)
			}
			t.Log(err)
			r.setHook(nil)
			mustPull(t, s, r.ref("x:1"))
		})
	}
}

// TestPullResumes breaks the connection in the middle of a layer.
func TestPullResumes(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	l := testLayer{archive: archive(t, file("f", strings.Repeat("0123456789abcdef", 1<<16)))}
	r.putImage("x", "1", testConfig(), l)
	var broken atomic.Int64
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, digest.FromBytes(l.archive).String()) {
			return false
		}
		n := broken.Add(1)
		if n > 3 {
			return false
		}
		w.Header().Set("Content-Length", "1048576")
		_, _ = w.Write(l.archive[:1000*n])
		panic(http.ErrAbortHandler)
	})
	image := mustPull(t, s, r.ref("x:1"))
	wantFile(t, filepath.Join(image.Layers[0], "f"), strings.Repeat("0123456789abcdef", 1<<16))
}

// TestPullStalled meets a registry that stops talking.
func TestPullStalled(t *testing.T) {
	r := newRegistry(t)
	l := testLayer{archive: archive(t, file("f", strings.Repeat("x", 1<<20)))}
	r.putImage("x", "1", testConfig(), l)
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	for name, suffix := range map[string]string{"resolve": "/manifests/1", "layer": digest.FromBytes(l.archive).String()} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, func(c *Config) { c.NoProgressTimeout = 100 * time.Millisecond })
			r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.HasSuffix(req.URL.Path, suffix) {
					return false
				}
				if suffix != "/manifests/1" {
					_, _ = w.Write(l.archive[:1000])
					_ = http.NewResponseController(w).Flush()
				}
				select {
				case <-end:
				case <-req.Context().Done():
				}
				return true
			})
			_, err := s.Pull(context.Background(), r.ref("x:1"), nil)
			if !errors.Is(err, ErrStalled) {
				t.Errorf("got %v, want %v", err, ErrStalled)
			}
			t.Log(err)
		})
	}
}

// TestPullBusy meets a registry that is overloaded for a while, or for good.
func TestPullBusy(t *testing.T) {
	r := newRegistry(t)
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
	for _, c := range []struct {
		name   string
		status int
		times  int
		want   error
	}{
		{"429 twice", http.StatusTooManyRequests, 2, nil},
		{"503 twice", http.StatusServiceUnavailable, 2, nil},
		{"500 for good", http.StatusInternalServerError, 1000, ErrRegistryUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t, nil)
			var mu sync.Mutex
			n := 0
			r.setHook(func(w http.ResponseWriter, _ *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				if n++; n > c.times {
					return false
				}
				w.WriteHeader(c.status)
				return true
			})
			_, err := s.Pull(context.Background(), r.ref("x:1"), nil)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if n > 20 {
				t.Errorf("%d requests", n)
			}
		})
	}
	t.Run("asks for too long", func(t *testing.T) {
		s := openStore(t, nil)
		r.setHook(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		})
		_, err := s.Pull(context.Background(), r.ref("x:1"), nil)
		if !errors.Is(err, ErrRegistryUnavailable) || !strings.Contains(err.Error(), "1h0m0s") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		gone := newRegistry(t)
		gone.server.Close()
		_, err := openStore(t, nil).Pull(context.Background(), gone.ref("x:1"), nil)
		if !errors.Is(err, ErrRegistryUnavailable) {
			t.Errorf("got %v", err)
		}
		t.Log(err)
	})
}

// TestPullShared pulls one image from many callers at once.
func TestPullShared(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	shared := gzipped(t, file("shared", "s"))
	r.putImage("x", "1", testConfig(), shared, gzipped(t, file("a", "a")))
	r.putImage("x", "2", testConfig(), shared, gzipped(t, file("b", "b")))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := s.Pull(context.Background(), r.ref([]string{"x:1", "x:2"}[i%2]), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for d, n := range r.blobGets() {
		if n != 1 {
			t.Errorf("%s was downloaded %d times", d, n)
		}
	}
	if len(s.Images()) != 2 || len(s.layers) != 3 {
		t.Errorf("%d images, %d layers", len(s.Images()), len(s.layers))
	}
	r.forgetGets()
	mustPull(t, s, r.ref("x:1"))
	if gets := r.blobGets(); len(gets) > 0 {
		t.Errorf("downloaded again: %v", gets)
	}
}

// TestPullCancelled cancels a pull alone, and one of two that share the work.
func TestPullCancelled(t *testing.T) {
	r := newRegistry(t)
	l := testLayer{archive: archive(t, file("f", strings.Repeat("x", 1<<20)))}
	r.putImage("x", "1", testConfig(), l)
	started, proceed := make(chan struct{}, 10), make(chan struct{})
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, digest.FromBytes(l.archive).String()) {
			return false
		}
		_, _ = w.Write(l.archive[:1000])
		_ = http.NewResponseController(w).Flush()
		started <- struct{}{}
		select {
		case <-proceed:
			_, _ = w.Write(l.archive[1000:])
		case <-req.Context().Done():
		}
		return true
	})
	s := openStore(t, nil)
	first, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { _, err := s.Pull(first, r.ref("x:1"), nil); done <- err }()
	<-started
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	checkDisk(t, s)
	if len(s.layers) > 0 {
		t.Error("a cancelled pull left a layer")
	}

	first, cancel = context.WithCancel(context.Background())
	go func() { _, err := s.Pull(first, r.ref("x:1"), nil); done <- err }()
	<-started
	second := make(chan error, 1)
	go func() { _, err := s.Pull(context.Background(), r.ref("x:1"), nil); second <- err }()
	waitFor(t, func() bool {
		s.pulls.mu.Lock()
		defer s.pulls.mu.Unlock()
		for _, f := range s.pulls.flying {
			return f.waiters == 2
		}
		return false
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	close(proceed)
	if err := <-second; err != nil {
		t.Errorf("the other: %v", err)
	}
}

// waitFor polls a condition that the test's own steps make true.
func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the condition never came true")
		}
	}
}

// TestPullJoinedFailure shares a layer with a pull whose registry damages it:
// each then depends on its own registry only.
func TestPullJoinedFailure(t *testing.T) {
	bad, good, s := newRegistry(t), newRegistry(t), openStore(t, nil)
	l := testLayer{archive: archive(t, file("f", strings.Repeat("x", 1<<20)))}
	bad.putImage("x", "1", testConfig(), l)
	good.putImage("x", "1", testConfig(), l)
	started, proceed := make(chan struct{}, 1), make(chan struct{})
	bad.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, digest.FromBytes(l.archive).String()) {
			return false
		}
		started <- struct{}{}
		<-proceed
		_, _ = w.Write(make([]byte, len(l.archive)))
		return true
	})
	errs := make(chan error, 1)
	go func() { _, err := s.Pull(context.Background(), bad.ref("x:1"), nil); errs <- err }()
	<-started
	ok := make(chan error, 1)
	go func() { _, err := s.Pull(context.Background(), good.ref("x:1"), nil); ok <- err }()
	waitFor(t, func() bool {
		s.downloads.mu.Lock()
		defer s.downloads.mu.Unlock()
		for _, f := range s.downloads.flying {
			return f.waiters == 2
		}
		return false
	})
	close(proceed)
	if err := <-errs; !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("bad registry: %v", err)
	}
	if err := <-ok; err != nil {
		t.Errorf("good registry: %v", err)
	}
}
