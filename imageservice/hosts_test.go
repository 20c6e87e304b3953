package imageservice

import (
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseHosts(t *testing.T) {
	got, err := parseHosts([]byte(`
server = "https://origin.example"
ca = "/etc/ca.pem"

[host."https://b.example:5000/prefix"]
  capabilities = ["pull"]
  client = [["c.pem", "/k.pem"], "both.pem"]
  dial_timeout = "3s"
  [host."https://b.example:5000/prefix".header]
    X-Token = ["one", "two"]
    X-Other = "three"

[host."http://a.example/v2"]
  capabilities = ["pull", "resolve", "push"]

[host."c.example/own/api"]
  override_path = true
  skip_verify = true
  ca = ["x.pem"]
`), "/dir", "registry.example")
	if err != nil {
		t.Fatal(err)
	}
	want := []endpoint{
		{
			scheme: "https", host: "b.example:5000", path: "/prefix/v2", pull: true, dialTimeout: 3 * time.Second,
			clients: [][2]string{{"/dir/c.pem", "/k.pem"}, {"/dir/both.pem", "/dir/both.pem"}},
			header:  map[string][]string{"X-Token": {"one", "two"}, "X-Other": {"three"}},
		},
		{scheme: "http", host: "a.example", path: "/v2", pull: true, resolve: true, dialTimeout: defaultDialer, header: map[string][]string{}},
		{
			scheme: "https", host: "c.example", path: "/own/api", pull: true, resolve: true, skipVerify: true,
			authorities: []string{"/dir/x.pem"}, dialTimeout: defaultDialer, header: map[string][]string{},
		},
		{
			scheme: "https", host: "origin.example", path: "/v2", server: true, pull: true, resolve: true,
			authorities: []string{"/etc/ca.pem"}, dialTimeout: defaultDialer, header: map[string][]string{},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for text, want := range map[string]string{
		"[host": "expected", "[host.\"https://x\"]\ncapabilities = [\"fly\"]": "fly",
		"[host.\"https://x\"]\nskip_verfy = true": "skip_verfy", "servr = \"x\"": "servr",
		"server = \"ftp://x\"": "scheme", "server = \"https://\"": "HOST", "server = \"https://u:p@x\"": "HOST",
		"server = \"https://x/?a=b\"": "HOST", "ca = 1": "ca", "client = [[\"a\", \"b\", \"c\"]]": "client",
		"client = 1": "client", "dial_timeout = \"soon\"": "dial_timeout", "dial_timeout = \"-1s\"": "dial_timeout",
		"header = { a = 1 }": "header", "host = { \"https://x\" = {} }": "order",
		strings.Repeat("#", maxHostsFile+1): "larger",
	} {
		if _, err := parseHosts([]byte(text), "/dir", "x.example"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", cut(text, 50), err, want)
		}
	}
}

// TestEndpoints finds the directory of a registry and its defaults.
func TestEndpoints(t *testing.T) {
	root := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a.example:5000/hosts.toml", `server = "https://colon.example"`)
	write("b.example_5000_/hosts.toml", `server = "https://underscore.example"`)
	write("b.example:5000/hosts.toml", `server = "https://second.example"`)
	write("certs.example/ca.crt", "")
	write("certs.example/me.cert", "")
	write("certs.example/me.key", "")
	for domain, want := range map[string]string{
		"a.example:5000": "https://colon.example", "b.example:5000": "https://underscore.example",
		"a.example": "https://a.example", "docker.io": "https://registry-1.docker.io",
		"localhost": "https://localhost", "localhost:80": "http://localhost:80", "127.0.0.1:5000": "://127.0.0.1:5000",
		"[::1]:5000": "://[::1]:5000", "localhost:443": "https://localhost:443", "certs.example": "https://certs.example",
	} {
		list, err := endpoints(root, domain)
		if err != nil || len(list) != 1 {
			t.Fatalf("%s: %+v, %v", domain, list, err)
		}
		e := list[0]
		if got := e.scheme + "://" + e.host; got != want || !e.server || e.path != "/v2" || !e.pull || !e.resolve {
			t.Errorf("%s: %+v, want %s", domain, e, want)
		}
		if domain == "certs.example" && (len(e.authorities) != 1 || len(e.clients) != 1 || e.clients[0][0] == e.clients[0][1]) {
			t.Errorf("certificates: %+v", e)
		}
	}
	write("_default/hosts.toml", "[host.\"https://mirror.example\"]\ncapabilities = [\"pull\"]\n")
	list, err := endpoints(root, "other.example")
	if err != nil || len(list) != 2 || list[0].host != "mirror.example" || list[0].resolve || list[1].host != "other.example" {
		t.Errorf("_default: %+v, %v", list, err)
	}
}

func FuzzHosts(f *testing.F) {
	f.Add([]byte("server = \"https://x\"\n[host.\"http://y\"]\nca = [\"a\"]\nclient = [[\"a\", \"b\"]]\n"))
	f.Add([]byte("[host.\"x\".header]\na = [\"b\"]\n"))
	f.Add([]byte("[[host]]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := parseHosts(text, "/dir", "registry.example")
		if err != nil {
			return
		}
		if len(list) == 0 || !list[len(list)-1].server {
			t.Errorf("%+v", list)
		}
		for _, e := range list {
			if e.host == "" || e.scheme != "http" && e.scheme != "https" || !strings.HasPrefix(e.path, "/") || e.dialTimeout <= 0 {
				t.Errorf("%+v", e)
			}
		}
	})
}

func TestParseChallenges(t *testing.T) {
	for text, want := range map[string][]challenge{
		`Basic realm="a b"`: {{"basic", map[string]string{"realm": "a b"}}},
		`Bearer realm="https://x/t",service="s",scope="repository:a/b:pull,push"`: {
			{"bearer", map[string]string{"realm": "https://x/t", "service": "s", "scope": "repository:a/b:pull,push"}},
		},
		`Basic realm=x, BEARER realm="y\"z"`: {
			{"basic", map[string]string{"realm": "x"}}, {"bearer", map[string]string{"realm": `y"z`}},
		},
		`Negotiate`: {{"negotiate", map[string]string{}}},
		``:          nil, `=`: nil, `,,,`: nil, `"`: nil,
		`Bearer realm="never closed`:                         {{"bearer", map[string]string{"realm": ""}}},
		`Bearer realm="` + strings.Repeat("x", 20_000) + `"`: nil,
	} {
		if got := parseChallenges([]string{text}); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, want %v", cut(text, 60), got, want)
		}
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://x/t",service="s"`, "Basic realm=x")
	f.Add(`a=b, c d="\`, "")
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, c := range parseChallenges([]string{a, b}) {
			if c.scheme == "" || c.params == nil {
				t.Errorf("%q %q: %v", a, b, c)
			}
		}
	})
}

func TestRetryAfter(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, "-3": 0, "soon": 0, "99999999999": (1 << 20) * time.Second, "1000000000": (1 << 20) * time.Second,
		time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	in := retryAfter(time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
	if in < 59*time.Minute || in > time.Hour {
		t.Errorf("in an hour: %s", in)
	}
}
