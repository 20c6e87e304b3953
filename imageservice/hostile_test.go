package imageservice

import (
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// endless writes until the client goes away, and returns how much it took.
func endless(w http.ResponseWriter) int64 {
	chunk := []byte(strings.Repeat(" ", 64<<10))
	for n := int64(0); ; n += int64(len(chunk)) {
		if _, err := w.Write(chunk); err != nil || n > 1<<30 {
			return n
		}
	}
}

// TestHostileRegistry meets registries that lie, and sees that nothing stays.
func TestHostileRegistry(t *testing.T) {
	r := newRegistry(t)
	l := gzipped(t, file("f", strings.Repeat("content ", 1000)))
	_, manifest := r.putImage("x", "1", testConfig(), l)
	blob := digest.FromBytes(l.content(t))
	content := mustGet(t, r, "/v2/x/manifests/1")
	nested := manifest
	nested.Platform = nil
	for range maxIndexDepth + 1 {
		nested = r.putManifest("x", "nested", ocispec.MediaTypeImageIndex, index(nested))
	}
	many := ocispec.Manifest{Layers: make([]ocispec.Descriptor, 10_000)}
	many.SchemaVersion, many.Config = 2, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: blob, Size: 2}
	for i := range many.Layers {
		many.Layers[i] = ocispec.Descriptor{MediaType: typeTar, Digest: blob, Size: 1}
	}
	r.putManifest("many", "1", ocispec.MediaTypeImageManifest, many)
	var sent atomic.Int64
	for _, c := range []struct {
		name, ref string
		path      string // that the hook is for
		hook      func(w http.ResponseWriter, req *http.Request)
		want      error
		text      string
	}{
		{"nested", "x:nested", "", nil, ErrTooLarge, "nested"},
		{"10,000 layers", "many:1", "", nil, ErrTooLarge, "10000 layers"},
		{"endless manifest", "x:1", "/manifests/1", func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			sent.Store(endless(w))
		}, ErrTooLarge, "more than"},
		{"endless manifest by digest", "x@" + manifest.Digest.String(), "/manifests/sha256", func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodHead {
				w.Header().Set("Content-Length", "1000")
				return
			}
			sent.Store(endless(w))
		}, ErrDigestMismatch, "longer"},
		{"endless blob", "x:1", blob.String(), func(w http.ResponseWriter, _ *http.Request) {
			sent.Store(endless(w))
		}, ErrDigestMismatch, "longer"},
		{"announced too large", "x:1", "/manifests/1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", manifest.Digest.String())
			w.Header().Set("Content-Length", "1000000000")
		}, ErrTooLarge, "1000000000"},
		{"lie about the size", "x:1", "/manifests/1", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", manifest.Digest.String())
			w.Header().Set("Content-Type", manifest.MediaType)
			w.Header().Set("Content-Length", "10")
		}, ErrDigestMismatch, "longer"},
		{"another digest", "x@" + digest.FromString("y").String(), "/manifests/", func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Docker-Content-Digest", manifest.Digest.String())
			w.Header().Set("Content-Type", manifest.MediaType)
			_, _ = w.Write(content)
		}, ErrDigestMismatch, "got"},
		{"redirect loop", "x:1", "/", func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, req.URL.Path, http.StatusTemporaryRedirect)
		}, errRegistry, "redirect"},
		{"file", "x:1", "/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "file:///etc/shadow")
			w.WriteHeader(http.StatusFound)
		}, errRegistry, "scheme"},
		{"metadata", "x:1", "/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://169.254.169.254/latest/meta-data")
			w.WriteHeader(http.StatusFound)
		}, errRegistry, "link-local"},
		{"huge header", "x:1", "/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+strings.Repeat("x", 1<<20)+`"`)
			w.WriteHeader(http.StatusUnauthorized)
		}, errRegistry, "header"},
		{"large challenge", "x:1", "/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+strings.Repeat("x", 100<<10)+`"`)
			w.WriteHeader(http.StatusUnauthorized)
		}, ErrUnauthorized, "no kind"},
		{"encoding", "x:1", blob.String(), func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "br")
		}, ErrUnsupported, `"br"`},
		{"terminal escapes", "x:1", "/", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"errors":[{"code":"DENIED","message":"\u001b[2J\nERROR forged"}]}`))
		}, ErrUnauthorized, " [2J ERROR forged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t, nil)
			sent.Store(0)
			r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
				if c.hook == nil || !strings.Contains(req.URL.Path, c.path) {
					return false
				}
				c.hook(w, req)
				return true
			})
			_, err := s.Pull(context.Background(), r.ref(c.ref), nil)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
			if sent.Load() > 4*maxDocument {
				t.Errorf("%d bytes were read", sent.Load())
			}
			if len(s.Images()) > 0 || len(s.layers) > 0 {
				t.Error("something stays")
			}
		})
	}
}

func mustGet(t *testing.T, r *testRegistry, path string) []byte {
	t.Helper()
	w := httptest.NewRecorder()
	r.inner.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%s: %d", path, w.Code)
	}
	return w.Body.Bytes()
}

// TestOddRegistry meets registries that are strange but right.
func TestOddRegistry(t *testing.T) {
	for _, c := range []struct {
		name string
		hook func(r *testRegistry, w http.ResponseWriter, req *http.Request) bool
	}{
		{"no HEAD", func(_ *testRegistry, w http.ResponseWriter, req *http.Request) bool {
			if req.Method != http.MethodHead {
				return false
			}
			w.WriteHeader(http.StatusMethodNotAllowed)
			return true
		}},
		{"no digest", func(r *testRegistry, w http.ResponseWriter, req *http.Request) bool {
			return serveChanged(r, w, req, func(h http.Header, body []byte) []byte {
				h.Del("Docker-Content-Digest")
				return body
			})
		}},
		{"text/plain", func(r *testRegistry, w http.ResponseWriter, req *http.Request) bool {
			return serveChanged(r, w, req, func(h http.Header, body []byte) []byte {
				h.Set("Content-Type", "text/plain; charset=utf-8")
				return body
			})
		}},
		{"gzip on its own", func(r *testRegistry, w http.ResponseWriter, req *http.Request) bool {
			return serveChanged(r, w, req, func(h http.Header, body []byte) []byte {
				var b strings.Builder
				z := gzip.NewWriter(&b)
				_, _ = z.Write(body)
				_ = z.Close()
				h.Set("Content-Encoding", "gzip")
				h.Del("Content-Length")
				return []byte(b.String())
			})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRegistry(t)
			same := gzipped(t, file("f", "x"))
			r.putImage("x", "1", testConfig(), same, gzipped(t, file("g", "y")), same)
			r.setHook(func(w http.ResponseWriter, req *http.Request) bool { return c.hook(r, w, req) })
			image := mustPull(t, openStore(t, nil), r.ref("x:1"))
			wantFile(t, filepath.Join(image.Layers[0], "f"), "x")
			for d, n := range r.blobGets() {
				if n != 1 {
					t.Errorf("%s was downloaded %d times", d, n)
				}
			}
		})
	}
}

func serveChanged(r *testRegistry, w http.ResponseWriter, req *http.Request, change func(http.Header, []byte) []byte) bool {
	answer := httptest.NewRecorder()
	r.inner.ServeHTTP(answer, req)
	body := change(answer.Header(), answer.Body.Bytes())
	for k, v := range answer.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(body)
	return true
}

// TestResume breaks downloads with registries that serve ranges, ignore them
// and refuse them.
func TestResume(t *testing.T) {
	text := strings.Repeat("0123456789abcdef", 1<<14)
	l := testLayer{archive: archive(t, file("f", text))}
	for name, answer := range map[string]func(w http.ResponseWriter, from int){
		"ranges": func(w http.ResponseWriter, from int) {
			if from > 0 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(l.archive)-1, len(l.archive)))
				w.WriteHeader(http.StatusPartialContent)
			}
			_, _ = w.Write(l.archive[from:])
		},
		"ignored": func(w http.ResponseWriter, _ int) { _, _ = w.Write(l.archive) },
		"refused": func(w http.ResponseWriter, from int) {
			if from > 0 {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			_, _ = w.Write(l.archive)
		},
		"another range": func(w http.ResponseWriter, from int) {
			if from > 0 {
				w.Header().Set("Content-Range", "bytes 0-")
				w.WriteHeader(http.StatusPartialContent)
			}
			_, _ = w.Write(l.archive)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			r.putImage("x", "1", testConfig(), l)
			var broken atomic.Bool
			r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.HasSuffix(req.URL.Path, digest.FromBytes(l.archive).String()) {
					return false
				}
				if !broken.Swap(true) {
					w.Header().Set("Content-Length", fmt.Sprint(len(l.archive)))
					_, _ = w.Write(l.archive[:len(l.archive)/2])
					panic(http.ErrAbortHandler)
				}
				from := 0
				_, _ = fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from)
				answer(w, from)
				return true
			})
			image := mustPull(t, openStore(t, nil), r.ref("x:1"))
			wantFile(t, filepath.Join(image.Layers[0], "f"), text)
		})
	}
}

// TestConnectionBreaks repeats a request whose connection broke.
func TestConnectionBreaks(t *testing.T) {
	r := newRegistry(t)
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
	var n atomic.Int64
	r.setHook(func(http.ResponseWriter, *http.Request) bool {
		if n.Add(1) <= 2 {
			panic(http.ErrAbortHandler)
		}
		return false
	})
	mustPull(t, openStore(t, nil), r.ref("x:1"))
}

func TestOutside(t *testing.T) {
	for address, want := range map[string]bool{
		"192.0.2.1:443": true, "[2001:db8::1]:443": true, "10.0.0.1:80": true, "127.0.0.1:80": false, "[::1]:80": false,
		"169.254.169.254:80": false, "[fe80::1]:80": false, "0.0.0.0:80": false, "[::ffff:127.0.0.1]:80": false, "224.0.0.1:80": false,
	} {
		if err := outside(address, false); (err == nil) != want {
			t.Errorf("%s: %v", address, err)
		}
		at := netip.MustParseAddrPort(address).Addr().Unmap()
		if err := outside(address, true); (err == nil) != (want || at.IsLoopback()) {
			t.Errorf("%s from loopback: %v", address, err)
		}
	}
}

// TestProxy pulls through a proxy, HTTP by requests to it and HTTPS by tunnels.
func TestProxy(t *testing.T) {
	r := newRegistry(t)
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
	secure := httptest.NewTLSServer(r)
	t.Cleanup(secure.Close)
	var used atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:s3cr3t"))
		if req.Header.Get("Proxy-Authorization") != want {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		used.Add(1)
		if req.Method != http.MethodConnect {
			r.ServeHTTP(w, req)
			return
		}
		tunnel(t, w, secure.Listener.Addr().String())
	}))
	t.Cleanup(proxy.Close)
	address := strings.Replace(proxy.URL, "http://", "http://me:s3cr3t@", 1)
	for _, c := range []struct {
		name, hosts string
		proxy       Proxy
		ok          bool
	}{
		{"http", "server = \"http://registry.test\"\n", Proxy{HTTP: address}, true},
		{"https", "server = \"https://registry.test\"\nskip_verify = true\n", Proxy{HTTPS: address}, true},
		{"none", "server = \"http://registry.test\"\n", Proxy{HTTP: address, None: "registry.test"}, false},
		{"refused", "server = \"http://registry.test\"\n", Proxy{HTTP: strings.Replace(address, "s3cr3t", "s3cr3t2", 1)}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			used.Store(0)
			dir := hostsDir(t, "registry.test", c.hosts)
			s := openStore(t, func(config *Config) { config.RegistryConfigDir, config.Proxy = dir, c.proxy })
			_, err := s.Pull(context.Background(), "registry.test/x:1", nil)
			if (err == nil) != c.ok || c.ok != (used.Load() > 0) {
				t.Errorf("got %v, the proxy was used %d times", err, used.Load())
			}
			if err != nil && strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("the proxy's password is in %v", err)
			}
		})
	}
}

func tunnel(t *testing.T, w http.ResponseWriter, to string) {
	server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", to)
	if err != nil {
		t.Error(err)
		return
	}
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	_, _ = client.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	var both sync.WaitGroup
	both.Go(func() { _, _ = buffered.WriteTo(server); _ = server.Close() })
	both.Go(func() { _, _ = server.(*net.TCPConn).WriteTo(client); _ = client.Close() })
	both.Wait()
}

// TestReferrersAPI finds signatures by the registry's own list.
func TestReferrersAPI(t *testing.T) {
	r, key := newRegistry(t), newSigner(t, "ecdsa")
	_, desc := r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
	text := payloadOf(desc.Digest, r.ref("x"))
	r.attach("x", desc, true, map[string][]byte{key.sign(t, text): text})
	list := mustGet(t, r, "/v2/x/manifests/sha256-"+desc.Digest.Encoded())
	var asked atomic.Value
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		switch {
		case strings.Contains(req.URL.Path, "/manifests/sha256-"):
			w.WriteHeader(http.StatusNotFound)
		case strings.HasSuffix(req.URL.Path, "/referrers/"+desc.Digest.String()):
			asked.Store(req.URL.Query().Get("artifactType"))
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			_, _ = w.Write(list)
		default:
			return false
		}
		return true
	})
	s := openStore(t, func(c *Config) {
		c.Policy = Policy{Rules: []PolicyRule{{Prefix: r.host, Type: PolicySigstore, Keys: []string{key.file}}}}
	})
	mustPull(t, s, r.ref("x:1"))
	if asked.Load() != typeCosignArtifact {
		t.Errorf("asked for %v", asked.Load())
	}
	if _, err := os.Stat(s.config.Root); err != nil {
		t.Error(err)
	}
}
