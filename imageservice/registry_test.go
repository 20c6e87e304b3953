package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// testRegistry is a registry on loopback that counts downloads and lets a test
// interfere with them.
type testRegistry struct {
	t      testing.TB
	server *httptest.Server
	inner  http.Handler
	host   string

	mu   sync.Mutex
	gets map[string]int
	// hook answers a request itself when it returns true.
	hook func(w http.ResponseWriter, r *http.Request) bool
}

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	r := &testRegistry{t: t, gets: map[string]int{}}
	r.inner = registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.server = httptest.NewServer(r)
	t.Cleanup(r.server.Close)
	r.host = strings.TrimPrefix(r.server.URL, "http://")
	return r
}

func (r *testRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	if req.Method == http.MethodGet {
		r.gets[req.URL.Path]++
	}
	hook := r.hook
	r.mu.Unlock()
	if hook != nil && hook(w, req) {
		return
	}
	r.inner.ServeHTTP(w, req)
}

func (r *testRegistry) setHook(hook func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook = hook
}

// blobGets returns how often each blob was asked for, keyed by digest.
func (r *testRegistry) blobGets() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]int{}
	for path, n := range r.gets {
		if _, d, ok := strings.Cut(path, "/blobs/"); ok {
			out[d] += n
		}
	}
	return out
}

func (r *testRegistry) forgetGets() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.gets)
}

func (r *testRegistry) send(method, path, mediaType string, content []byte) {
	r.t.Helper()
	req := httptest.NewRequest(method, path, bytes.NewReader(content))
	req.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	r.inner.ServeHTTP(w, req)
	if w.Code/100 != 2 {
		r.t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
}

func (r *testRegistry) putBlob(repo string, content []byte) ocispec.Descriptor {
	r.t.Helper()
	d := digest.FromBytes(content)
	r.send(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", content)
	return ocispec.Descriptor{Digest: d, Size: int64(len(content))}
}

func (r *testRegistry) putManifest(repo, tag, mediaType string, value any) ocispec.Descriptor {
	r.t.Helper()
	content := mustJSON(r.t, value)
	d := digest.FromBytes(content)
	r.send(http.MethodPut, "/v2/"+repo+"/manifests/"+d.String(), mediaType, content)
	if tag != "" {
		r.send(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, mediaType, content)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
}

func mustJSON(t testing.TB, value any) []byte {
	t.Helper()
	content, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// testLayer is a layer of a test image.
type testLayer struct {
	archive  []byte        // plain
	compress string        // "", "gzip" or "zstd"
	diffID   digest.Digest // "" for the true one
	blob     []byte        // instead of the compressed archive
}

func (l testLayer) content(t testing.TB) []byte {
	t.Helper()
	if l.blob != nil {
		return l.blob
	}
	var b bytes.Buffer
	switch l.compress {
	case "":
		return l.archive
	case "gzip":
		z := gzip.NewWriter(&b)
		mustWrite(t, z, l.archive)
	case "zstd":
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, z, l.archive)
	}
	return b.Bytes()
}

func mustWrite(t testing.TB, w io.WriteCloser, content []byte) {
	t.Helper()
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func testConfig() ocispec.Image {
	return ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: hostArch},
		Config:   ocispec.ImageConfig{Env: []string{"PATH=/bin"}, User: "1000:5"},
	}
}

// putImage uploads an image and returns its id and its manifest's descriptor.
func (r *testRegistry) putImage(repo, tag string, config ocispec.Image, layers ...testLayer) (string, ocispec.Descriptor) {
	r.t.Helper()
	return r.putTyped(repo, tag, config, false, layers...)
}

func (r *testRegistry) putTyped(repo, tag string, config ocispec.Image, docker bool, layers ...testLayer) (string, ocispec.Descriptor) {
	r.t.Helper()
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	configType, layerType := ocispec.MediaTypeImageConfig, "application/vnd.oci.image.layer.v1.tar"
	if docker {
		manifest.MediaType = typeDockerManifest
		configType, layerType = typeDockerConfig, "application/vnd.docker.image.rootfs.diff.tar"
	}
	config.RootFS.Type = "layers"
	for _, l := range layers {
		desc := r.putBlob(repo, l.content(r.t))
		desc.MediaType = layerType
		switch {
		case l.compress != "" && docker:
			desc.MediaType += "." + l.compress
		case l.compress != "":
			desc.MediaType += "+" + l.compress
		}
		if l.diffID == "" {
			l.diffID = digest.FromBytes(l.archive)
		}
		manifest.Layers = append(manifest.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
	}
	manifest.Config = r.putBlob(repo, mustJSON(r.t, config))
	manifest.Config.MediaType = configType
	return manifest.Config.Digest.String(), r.putManifest(repo, tag, manifest.MediaType, manifest)
}

// item is an entry of a test archive.
type item struct {
	tar.Header
	content string
}

func dir(name string, mode int64) item {
	return item{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, ModTime: testTime}}
}

func file(name, content string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: testTime}, content: content}
}

func symlink(name, target string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: testTime}}
}

func hardlink(name, target string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, ModTime: testTime}}
}

func archive(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		h := i.Header
		h.Size = int64(len(i.content))
		if h.Typeflag != tar.TypeReg {
			h.Size = 0
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, i.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, items ...item) testLayer {
	t.Helper()
	return testLayer{archive: archive(t, items...), compress: "gzip"}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers have owners, devices and trusted attributes")
	}
}

// openStore opens a store for a test, and checks at the end that its disk
// holds what its records say and nothing else.
func openStore(t testing.TB, change func(*Config)) *Store {
	t.Helper()
	needRoot(t)
	config := Config{Root: filepath.Join(t.TempDir(), "images"), NoProgressTimeout: 20 * time.Second}
	if change != nil {
		change(&config)
	}
	s, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	s.Collect()
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	checkDisk(t, s)
}

// checkDisk compares the directories with the index.
func checkDisk(t testing.TB, s *Store) {
	t.Helper()
	if left := names(t, s.path("ingest")); len(left) > 0 {
		t.Errorf("left in ingest: %v", left)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := names(t, s.path("layers")); len(got) != len(s.layers) {
		t.Errorf("%d layers on the disk, %d in the index", len(got), len(s.layers))
	}
	if got := names(t, s.path("records")); len(got) != len(s.images) {
		t.Errorf("%d records on the disk, %d in the index", len(got), len(s.images))
	}
	if len(s.pins) > 0 {
		t.Errorf("pins left: %v", s.pins)
	}
}

func names(t testing.TB, path string) []string {
	t.Helper()
	dirs, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range dirs {
		out = append(out, d.Name())
	}
	return out
}

func mustPull(t testing.TB, s *Store, name string) *Image {
	t.Helper()
	image, err := s.Pull(context.Background(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func (r *testRegistry) ref(name string) string { return fmt.Sprintf("%s/%s", r.host, name) }
