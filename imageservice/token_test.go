package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestMirrorsGetNoCredentials pulls through a mirror that asks for the
// password, and by one that redirects.
func TestMirrorsGetNoCredentials(t *testing.T) {
	for _, c := range []struct {
		name   string
		server string // server_address of the credentials
		mirror bool   // may see them
		origin bool
	}{
		{"no address", "", false, true},
		{"registry's address", "registry.example", false, true},
		{"mirror's address", "MIRROR", true, false},
		{"another address", "elsewhere.example", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, mirror := newRegistry(t), newRegistry(t)
			var seen sync.Map
			for name, x := range map[string]*testRegistry{"origin": r, "mirror": mirror} {
				x.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
				x.basic()
				inner := x.hook
				x.setHook(func(w http.ResponseWriter, req *http.Request) bool {
					if req.Header.Get("Authorization") != "" {
						seen.Store(name, true)
					}
					return inner(w, req)
				})
			}
			dir := hostsDir(t, "registry.example", fmt.Sprintf("server = %q\n[host.%q]\n", r.server.URL, mirror.server.URL))
			s := openStore(t, func(config *Config) { config.RegistryConfigDir = dir })
			auth := &Auth{Username: "user", Password: testPassword, ServerAddress: strings.ReplaceAll(c.server, "MIRROR", mirror.host)}
			_, err := s.Pull(context.Background(), "registry.example/x:1", auth)
			if (err == nil) != (c.mirror || c.origin) {
				t.Errorf("got %v", err)
			}
			_, atMirror := seen.Load("mirror")
			_, atOrigin := seen.Load("origin")
			if atMirror != c.mirror || atOrigin != c.origin {
				t.Errorf("seen by mirror %v, by origin %v", atMirror, atOrigin)
			}
		})
	}
}

// TestTokenServers asks for tokens as registries have it, and in ways in which
// passwords would go astray.
func TestTokenServers(t *testing.T) {
	var stolen atomic.Bool
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_ = req.ParseForm()
		if req.Header.Get("Authorization") != "" || req.Form.Get("password") != "" {
			stolen.Store(true)
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"token": "tok"})
	}))
	t.Cleanup(thief.Close)
	good := func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"access_token":"tok","expires_in":1}`)) }
	for _, c := range []struct {
		name   string
		tokens func(w http.ResponseWriter, req *http.Request)
		want   error
		text   string
	}{
		{"post", func(w http.ResponseWriter, req *http.Request) {
			if req.PostFormValue("grant_type") == "password" && req.PostFormValue("scope") == "repository:x:pull" &&
				req.PostFormValue("service") == "test" && req.PostFormValue("password") == testPassword {
				good(w)
			}
		}, nil, ""},
		{"get", func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodPost {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			if user, password, _ := req.BasicAuth(); user == "user" && password == testPassword && req.FormValue("scope") == "repository:x:pull" {
				good(w)
			}
		}, nil, ""},
		{"redirect with the password", func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, thief.URL, http.StatusTemporaryRedirect)
		}, errRegistry, "redirect"},
		{"endless", func(w http.ResponseWriter, _ *http.Request) { endless(w) }, ErrTooLarge, "more than"},
		{"no token", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) }, ErrUnauthorized, "no token"},
		{"garbage", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(testPassword)) }, ErrUnauthorized, "JSON"},
		{"wrong token", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"token":"other"}`)) }, ErrUnauthorized, "401"},
		{"down", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusServiceUnavailable)
		}, ErrRegistryUnavailable, "503"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRegistry(t)
			r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
			tokens := httptest.NewServer(http.HandlerFunc(c.tokens))
			t.Cleanup(tokens.Close)
			r.wantToken(tokens.URL)
			stolen.Store(false)
			_, err := openStore(t, nil).Pull(context.Background(), r.ref("x:1"), &Auth{Username: "user", Password: testPassword})
			if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
			if stolen.Load() || err != nil && strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("the password went astray: %v", err)
			}
		})
	}
}

// wantToken makes a registry ask for the token "tok".
func (r *testRegistry) wantToken(realm string) {
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Authorization") == "Bearer tok" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="test"`, realm))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

func TestRealms(t *testing.T) {
	for _, c := range []struct{ scheme, realm, text string }{
		{"https", "https://tokens.example/x", ""},
		{"https", "http://tokens.example/x", "plain HTTP"},
		{"http", "http://tokens.example/x", ""},
		{"http", "file:///etc/shadow", "http or https"},
		{"https", "https://u:p@tokens.example", "http or https"},
		{"https", "//tokens.example", "http or https"},
	} {
		u, err := url.Parse(c.realm)
		if err != nil {
			t.Fatal(err)
		}
		a := newAuthorizer(credentials{}, "x", &http.Client{}, &endpoint{scheme: c.scheme, host: "registry.example"})
		err = a.checkRealm(u)
		if (err == nil) != (c.text == "") || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s for %s: %v", c.realm, c.scheme, err)
		}
	}
}

// TestFollow sends headers and credentials nowhere but where they were meant
// for.
func TestFollow(t *testing.T) {
	h := &host{endpoint: endpoint{scheme: "https", host: "registry.example", header: map[string][]string{"X-Token": {"t"}}}}
	const blobs, tags = "/v2/x/blobs/sha256:00", "/v2/x/manifests/1"
	for _, c := range []struct {
		from, to string
		keeps    bool
		refused  bool
	}{
		{blobs, "https://registry.example/other", true, false},
		{blobs, "https://registry.example:443/other", true, false},
		{blobs, "https://registry.example:5000/other", false, false},
		{blobs, "https://cdn.registry.example/other", false, false},
		{blobs, "http://registry.example/other", false, false},
		{tags, "http://registry.example/other", false, true},
		{tags, "ftp://registry.example/other", false, true},
	} {
		first := httptest.NewRequest(http.MethodGet, "https://registry.example"+c.from, nil)
		first.Header = http.Header{"Authorization": {"Basic x"}, "X-Token": {"t"}}
		next := httptest.NewRequest(http.MethodGet, c.to, nil)
		next.Header = first.Header.Clone()
		err := h.follow(next, []*http.Request{first})
		if c.refused != errors.Is(err, errRedirect) {
			t.Errorf("%s to %s: %v", c.from, c.to, err)
		}
		if kept := next.Header.Get("Authorization") != "" && next.Header.Get("X-Token") != ""; err == nil && kept != c.keeps {
			t.Errorf("%s to %s: headers %v", c.from, c.to, next.Header)
		}
		if !c.keeps && err == nil && len(next.Header) > 0 {
			t.Errorf("%s to %s: headers %v", c.from, c.to, next.Header)
		}
	}
}
