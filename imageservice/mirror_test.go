package imageservice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// wrongs are ways of a mirror to send something else than what it has.
func wrongs(t *testing.T) map[string]func(w http.ResponseWriter, right []byte) {
	t.Helper()
	send := func(w http.ResponseWriter, content []byte, size int) {
		w.Header().Set("Content-Length", strconv.Itoa(size))
		_, _ = w.Write(content)
	}
	other := gzipped(t, file("other", "image")).content(t)
	flipped := func(right []byte, at int) []byte {
		right = bytes.Clone(right)
		right[at] ^= 1
		return right
	}
	return map[string]func(w http.ResponseWriter, right []byte){
		"first byte":    func(w http.ResponseWriter, right []byte) { send(w, flipped(right, 0), len(right)) },
		"middle":        func(w http.ResponseWriter, right []byte) { send(w, flipped(right, len(right)/2), len(right)) },
		"last byte":     func(w http.ResponseWriter, right []byte) { send(w, flipped(right, len(right)-1), len(right)) },
		"half":          func(w http.ResponseWriter, right []byte) { send(w, right[:len(right)/2], len(right)/2) },
		"nothing":       func(w http.ResponseWriter, _ []byte) { send(w, nil, 0) },
		"broken off":    func(w http.ResponseWriter, right []byte) { send(w, right[:len(right)/2], len(right)) },
		"another layer": func(w http.ResponseWriter, _ []byte) { send(w, other, len(other)) },
		"a page":        func(w http.ResponseWriter, _ []byte) { send(w, []byte("<html>log in"), 12) },
		"more":          func(w http.ResponseWriter, right []byte) { send(w, append(bytes.Clone(right), 0), len(right)+1) },
		"an odd encoding": func(w http.ResponseWriter, right []byte) {
			w.Header().Set("Content-Encoding", "br")
			send(w, right, len(right))
		},
	}
}

// TestMirrorServesWrongContent pulls through two mirrors that send something
// wrong, once for layers, once for documents: the registry has the right thing.
func TestMirrorServesWrongContent(t *testing.T) {
	for name, wrong := range wrongs(t) {
		for _, part := range []string{"/blobs/", "/manifests/sha256:"} {
			t.Run(name+" "+strings.Trim(part, "/"), func(t *testing.T) {
				t.Parallel()
				r := newRegistry(t)
				_, root := r.putImage("x", "1", testConfig(), gzipped(t, file("f", strings.Repeat("content", 5000))), testLayer{archive: archive(t, file("g", "y"))})
				asked := make(chan string, 1000)
				mirror := func() *httptest.Server {
					m := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
						if req.Method != http.MethodGet || !strings.Contains(req.URL.Path, part) {
							r.ServeHTTP(w, req)
							return
						}
						asked <- req.URL.Path
						answer := httptest.NewRecorder()
						req.Header.Del("Range")
						r.ServeHTTP(answer, req)
						wrong(w, answer.Body.Bytes())
					}))
					t.Cleanup(m.Close)
					return m
				}
				dir := hostsDir(t, "registry.example", fmt.Sprintf("server = %q\n[host.%q]\n[host.%q]\n", r.server.URL, mirror().URL, mirror().URL))
				s := openStore(t, func(c *Config) { c.RegistryConfigDir = dir })
				image := mustPull(t, s, "registry.example/x:1")
				wantFile(t, image.Layers[0]+"/g", "y")
				if len(image.Layers) != 2 || image.Manifest != root.Digest {
					t.Errorf("%+v", image)
				}
				if len(asked) < 2 {
					t.Errorf("the mirrors were asked %d times", len(asked))
				}
				wantWhole(t, s)
			})
		}
	}
}

// TestAllHostsServeWrongContent names every host, and asks none for ever.
func TestAllHostsServeWrongContent(t *testing.T) {
	r := newRegistry(t)
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
	gets := make(chan string, 100)
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") {
			return false
		}
		gets <- req.URL.Path
		_, _ = w.Write([]byte("wrong"))
		return true
	})
	mirror := httptest.NewServer(r)
	defer mirror.Close()
	dir := hostsDir(t, "registry.example", fmt.Sprintf("server = %q\n[host.%q]\n", r.server.URL, mirror.URL))
	s := openStore(t, func(c *Config) { c.RegistryConfigDir = dir })
	_, err := s.Pull(context.Background(), "registry.example/x:1", nil)
	if !errors.Is(err, ErrDigestMismatch) || strings.Count(err.Error(), ErrDigestMismatch.Error()) != 2 {
		t.Errorf("got %v, want both hosts' mismatches", err)
	}
	if len(gets) != 2 {
		t.Errorf("%d requests, want one to each host", len(gets))
	}
}

// TestRightButMalformedIsAskedOnce: what is right by its digest is no better at
// another host.
func TestRightButMalformedIsAskedOnce(t *testing.T) {
	r := newRegistry(t)
	good := gzipped(t, file("f", "x"))
	r.putImage("climb", "1", testConfig(), gzipped(t, file("../../f", "x")))
	r.putImage("diffid", "1", testConfig(), testLayer{archive: good.archive, compress: "gzip", diffID: digest.FromString("x")})
	mirror := httptest.NewServer(http.NotFoundHandler())
	defer mirror.Close()
	for name, want := range map[string]error{"climb": ErrMalformedLayer, "diffid": ErrDigestMismatch} {
		dir := hostsDir(t, "registry.example", fmt.Sprintf("server = %q\n[host.%q]\n", mirror.URL, r.server.URL))
		s := openStore(t, func(c *Config) { c.RegistryConfigDir = dir })
		r.forgetGets()
		if _, err := s.Pull(context.Background(), "registry.example/"+name+":1", nil); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		if gets := r.blobGets(); len(gets) != 2 {
			t.Errorf("%s: requests %v", name, gets)
		}
	}
}
