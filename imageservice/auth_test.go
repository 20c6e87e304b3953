package imageservice

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

const testPassword = "s3cr3t/pass+word"

// basic makes a registry ask for a user and a password.
func (r *testRegistry) basic() {
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if user, password, ok := req.BasicAuth(); ok && user == "user" && password == testPassword {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

// bearer makes a registry ask for a token of another server, which gives one
// for the user and password, or for a refresh token.
func (r *testRegistry) bearer(t *testing.T) {
	t.Helper()
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		user, password, _ := req.BasicAuth()
		if req.Method == http.MethodPost {
			_ = req.ParseForm()
			user, password = req.Form.Get("username"), req.Form.Get("password")
			if req.Form.Get("refresh_token") == testPassword {
				user, password = "user", testPassword
			}
		}
		if user != "user" || password != testPassword {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"token": "tok", "access_token": "tok"})
	}))
	t.Cleanup(tokens.Close)
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Authorization") == "Bearer tok" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test",scope="repository:x:pull"`, tokens.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

func TestAuth(t *testing.T) {
	encoded := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	for _, scheme := range []string{"basic", "bearer"} {
		r := newRegistry(t)
		r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
		if scheme == "basic" {
			r.basic()
		} else {
			r.bearer(t)
		}
		for _, c := range []struct {
			name string
			auth *Auth
			only string // scheme
			want error
		}{
			{"password", &Auth{Username: "user", Password: testPassword}, "", nil},
			{"auth", &Auth{Auth: encoded("user:" + testPassword)}, "", nil},
			{"server", &Auth{Username: "user", Password: testPassword, ServerAddress: "http://" + r.host + "/v2/"}, "", nil},
			{"identity token", &Auth{IdentityToken: testPassword}, "bearer", nil},
			{"registry token", &Auth{RegistryToken: "tok"}, "bearer", nil},
			{"none", nil, "", ErrUnauthorized},
			{"wrong", &Auth{Username: "user", Password: testPassword + "x"}, "", ErrUnauthorized},
			{"wrong token", &Auth{RegistryToken: testPassword}, "", ErrUnauthorized},
			{"other server", &Auth{Username: "user", Password: testPassword, ServerAddress: "docker.io"}, "", ErrUnauthorized},
			{"broken", &Auth{Auth: "%" + testPassword}, "", ErrUnauthorized},
			{"broken too", &Auth{Auth: encoded(testPassword)}, "", ErrUnauthorized},
		} {
			if c.only != "" && c.only != scheme {
				continue
			}
			t.Run(scheme+" "+c.name, func(t *testing.T) {
				_, err := openStore(t, nil).Pull(context.Background(), r.ref("x:1"), c.auth)
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				if err != nil && strings.Contains(err.Error(), "s3cr3t") {
					t.Errorf("a secret is in %v", err)
				}
			})
		}
	}
}

// TestAuthRedirect redirects a blob to a host that asks for the password.
func TestAuthRedirect(t *testing.T) {
	r := newRegistry(t)
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
	var got atomic.Bool
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Authorization") != "" {
			got.Store(true)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(thief.Close)
	r.basic()
	inner := r.hook
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if inner(w, req) {
			return true
		}
		if strings.Contains(req.URL.Path, "/blobs/") {
			http.Redirect(w, req, thief.URL+"/x?X-Signature=s3cr3t", http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	_, err := openStore(t, nil).Pull(context.Background(), r.ref("x:1"), &Auth{Username: "user", Password: testPassword})
	if !errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("got %v", err)
	}
	if got.Load() {
		t.Error("the password went where the registry redirected to")
	}
}

// TestAuthSeparate lets nobody share a pull of somebody else's credentials.
func TestAuthSeparate(t *testing.T) {
	a, _ := newCredentials(&Auth{Username: "user", Password: "a"})
	b, _ := newCredentials(&Auth{Username: "user", Password: "b"})
	c, _ := newCredentials(&Auth{Username: "usera"})
	if a.key() == b.key() || a.key() == c.key() || strings.Contains(a.key(), "user") {
		t.Errorf("keys %s %s %s", a.key(), b.key(), c.key())
	}
}

// TestHosts pulls through mirrors of a hosts.toml: one is down, one is busy,
// one has the image.
func TestHosts(t *testing.T) {
	r, busy := newRegistry(t), newRegistry(t)
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
	busy.setHook(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	gone := newRegistry(t)
	gone.server.Close()
	dir := t.TempDir()
	hosts := fmt.Sprintf("server = %q\n[host.%q]\n[host.%q]\n[host.%q]\n",
		"https://registry.invalid", gone.server.URL, busy.server.URL, r.server.URL)
	if err := os.Mkdir(filepath.Join(dir, "registry.example"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "registry.example", "hosts.toml")
	if err := os.WriteFile(path, []byte(hosts), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, func(c *Config) { c.RegistryConfigDir = dir })
	image := mustPull(t, s, "registry.example/x:1")
	if image.RepoTags[0] != "registry.example/x:1" {
		t.Errorf("tags %v", image.RepoTags)
	}
	for _, broken := range []string{"[host", "[host.\"https://x\"]\ncapabilities = [\"fly\"]"} {
		if err := os.WriteFile(path, []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := s.Pull(context.Background(), "registry.example/x:2", nil)
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("hosts.toml %q: %v", broken, err)
		}
	}
}

// TestHTTPS pulls over TLS: an authority that nobody vouches for is refused,
// on loopback too, with the remedy.
func TestHTTPS(t *testing.T) {
	r := newRegistry(t)
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
	var major atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		major.Store(int64(req.ProtoMajor))
		r.ServeHTTP(w, req)
	}))
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	address := strings.TrimPrefix(server.URL, "https://")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	for _, c := range []struct {
		name, domain, hosts string
		trusted             bool
	}{
		{"skip_verify", "secure.example", fmt.Sprintf("server = %q\nskip_verify = true\n", server.URL), true},
		{"authority", "secure.example", fmt.Sprintf("server = %q\nca = \"ca.pem\"\n", server.URL), true},
		{"authorities", "secure.example", fmt.Sprintf("server = %q\nca = [\"ca.pem\"]\n", server.URL), true},
		{"nothing said", "secure.example", fmt.Sprintf("server = %q\n", server.URL), false},
		{"loopback, authority", address, "ca = \"ca.pem\"\n", true},
		{"loopback, skip_verify", address, "skip_verify = true\n", true},
		{"loopback, nothing said", address, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := hostsDir(t, c.domain, c.hosts)
			if err := os.WriteFile(filepath.Join(dir, c.domain, "ca.pem"), ca, 0o600); err != nil {
				t.Fatal(err)
			}
			s := openStore(t, func(config *Config) { config.RegistryConfigDir = dir })
			_, err := s.Pull(context.Background(), c.domain+"/x:1", nil)
			if c.trusted != (err == nil) {
				t.Fatalf("got %v", err)
			}
			if err == nil && major.Load() != 2 {
				t.Errorf("HTTP/%d was used", major.Load())
			}
			if err != nil && (!strings.Contains(err.Error(), "unknown authority") || !strings.Contains(err.Error(), "hosts.toml")) {
				t.Errorf("no remedy in %v", err)
			}
		})
	}
}

// hostsDir makes a registry configuration directory for one registry.
func hostsDir(t *testing.T, domain, hosts string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, domain), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, domain, hostsFile), []byte(hosts), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
