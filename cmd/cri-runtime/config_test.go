package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/imageservice"
)

// writeFiles makes files below a new directory and returns it.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestConfigFiles(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		files map[string]string
		check func(*config) bool
	}{
		{"empty", map[string]string{"config.toml": ""}, func(c *config) bool { return c.Root == "/var/lib/cri-runtime" }},
		{"one key leaves the rest", map[string]string{"config.toml": "[network]\nconf_dir = '/a'"}, func(c *config) bool {
			return c.Network.ConfDir == "/a" && slices.Equal(c.Network.BinDirs, []string{"/opt/cni/bin"})
		}},
		{"an array replaces", map[string]string{
			"config.toml":              "[network]\nbin_dirs = ['/a', '/b']",
			"config.toml.d/50-up.toml": "[network]\nbin_dirs = ['/c']",
		}, func(c *config) bool { return slices.Equal(c.Network.BinDirs, []string{"/c"}) }},
		{"drop-ins in lexical order", map[string]string{
			"config.toml":             "log_level = 1",
			"config.toml.d/2.toml":    "log_level = 4",
			"config.toml.d/10.toml":   "log_level = 3\ncgroup_parent = '/x'",
			"config.toml.d/readme.md": "not read",
		}, func(c *config) bool { return c.LogLevel == 4 && c.CgroupParent == "/x" }},
		{"drop-ins alone", map[string]string{"config.toml.d/a.toml": "log_level = 5"}, func(c *config) bool { return c.LogLevel == 5 }},
		{"duration", map[string]string{"config.toml": "[image]\nno_progress_timeout = '1m30s'"}, func(c *config) bool {
			return c.Image.NoProgressTimeout.Seconds() == 90
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c, err := loadConfig(filepath.Join(writeFiles(t, test.files), "config.toml"), false)
			if err != nil {
				t.Fatal(err)
			}
			if !test.check(&c) {
				t.Errorf("got %+v", c)
			}
		})
	}
}

func TestConfigFileErrors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		file string
		want []string // parts of the error; the file's name stands in front of each ":"
	}{
		{"unknown key", "root = '/a'\nrooot = '/b'", []string{":2: unknown key rooot"}},
		{"unknown key in a table", "[network]\n\nfoo = 1", []string{":3: unknown key network.foo"}},
		{"unknown table", "[netwrk]\nconf_dir = '/a'", []string{"unknown key netwrk"}},
		{"two unknown keys", "a = 1\nb = 2", []string{":1: unknown key a", ":2: unknown key b"}},
		{"text for a number", "\nlog_level = 'high'", []string{":2:", "log_level"}},
		{"number for text", "root = 5", []string{":1:", "root"}},
		{"text for an array", "[network]\nbin_dirs = '/a'", []string{":2:", "network.bin_dirs"}},
		{"number in an array of text", "[image]\npinned = ['a', 1]", []string{":2:", "image.pinned"}},
		{"table for a value", "[root]\na = 1", []string{":1:"}},
		{"bad duration", "[image]\nno_progress_timeout = 'soon'", []string{":2:", "soon"}},
		{"short duration", "[image]\n\nno_progress_timeout = '1ms'", []string{":3:", "image.no_progress_timeout"}},
		{"syntax", "root = '/a'\nstate = ", []string{":2:"}},
		{"key twice", "root = '/a'\nroot = '/b'", []string{":2:"}},
		{"relative path", "state = '/s'\nroot = 'lib'", []string{":2: root:", "absolute"}},
		{"zero byte in a path", `root = "/a\u0000b"`, []string{":1: root:", "zero byte"}},
		{"root is state", "root = '/a'\nstate = '/a/'", []string{":2: state:"}},
		{"not a unix socket", "listen = 'tcp://127.0.0.1:1'", []string{":1: listen:", "unix://"}},
		{"socket path too long", "listen = 'unix:///" + strings.Repeat("a", 107) + "'", []string{":1: listen:", "107"}},
		{"level out of range", "log_level = 11", []string{":1: log_level:", "between 0 and 10"}},
		{"line in an inline table", "root = '/a'\nlog = {line_bytes = 1}", []string{":2: log.line_bytes"}},
		{"line by a dotted key", "root = '/a'\nlog.line_bytes = 1", []string{":2: log.line_bytes"}},
		{"cgroup driver", "cgroup_driver = 'none'", []string{":1: cgroup_driver:", "systemd"}},
		{"cgroup parent climbs", "cgroup_parent = '/a/../b'", []string{":1: cgroup_parent:"}},
		{"handler with a slash", "handlers = ['a/b']", []string{":1: handlers"}},
		{"subnet that is none", "[network]\nsubnets = ['10.0.0.1']", []string{":2: network.subnets"}},
		{"no plugin directory", "[network]\nbin_dirs = []", []string{":2: network.bin_dirs"}},
		{"relative plugin directory", "[network]\nbin_dirs = ['a']", []string{":2: network.bin_dirs"}},
		{"not UTF-8", "root = '/a'\n# \xff\xfe", []string{":2: not UTF-8"}},
		{"huge", strings.Repeat("#", maxConfigBytes+1), []string{"larger than"}},
	} {
		for _, place := range []string{"config.toml", "config.toml.d/a.toml"} {
			t.Run(test.name+" in "+place, func(t *testing.T) {
				t.Parallel()
				dir := writeFiles(t, map[string]string{place: test.file})
				_, err := loadConfig(filepath.Join(dir, "config.toml"), false)
				if !errors.Is(err, errConfig) {
					t.Fatalf("got error %v, want %v", err, errConfig)
				}
				for _, want := range test.want {
					if strings.HasPrefix(want, ":") {
						want = filepath.Join(dir, place) + want
					}
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error %q does not contain %q", err, want)
					}
				}
			})
		}
	}
}

func TestConfigFileMissing(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "config.toml")
	if _, err := loadConfig(file, false); err != nil {
		t.Errorf("default file: %v", err)
	}
	if _, err := loadConfig(file, true); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), file) {
		t.Errorf("file of --config: got %v, want that %s does not exist", err, file)
	}
	if _, err := loadConfig(filepath.Dir(file), true); err == nil {
		t.Error("a directory was read as a file")
	}
}

// A drop-in directory whose path is a pattern is taken literally.
func TestConfigFileGlob(t *testing.T) {
	t.Parallel()
	dir := writeFiles(t, map[string]string{
		"[a]*/config.toml.d/a.toml": "log_level = 7",
		"a/config.toml.d/a.toml":    "log_level = 8",
	})
	c, err := loadConfig(filepath.Join(dir, "[a]*", "config.toml"), false)
	if err != nil || c.LogLevel != 7 {
		t.Errorf("got level %d, %v, want 7", c.LogLevel, err)
	}
}

func TestConfigDefaultIsComplete(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	if code := run([]string{"config", "default"}, &out, &errs); code != 0 {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	dir := writeFiles(t, map[string]string{"config.toml": out.String()})
	c, err := loadConfig(filepath.Join(dir, "config.toml"), true)
	if err != nil {
		t.Fatal(err)
	}
	want, err := loadConfig(filepath.Join(dir, "none"), false)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("the printed file means %+v, the defaults are %+v", c, want)
	}
	for _, key := range tomlKeys(reflect.TypeFor[config]()) {
		if !strings.Contains(out.String(), "\n"+key+" = ") && !strings.Contains(out.String(), "\n["+key+"]") &&
			!strings.Contains(out.String(), "."+key+"]") {
			t.Errorf("key %s is not in the printed file", key)
		}
	}
}

func TestConfigPolicy(t *testing.T) {
	t.Parallel()
	dir := writeFiles(t, map[string]string{"config.toml": `[image.proxy]
https = "http://me:s3cr3t@proxy.example:3128"
[image.policy]
default = "reject"
[[image.policy.rules]]
prefix = "docker.io/library"
type = "sigstore"
keys = ["/k"]
identity = "any"
`, "bad.toml": "[[image.policy.rules]]\nprefix = \"x.y\"\nfulcio = true\n"})
	c, err := loadConfig(filepath.Join(dir, "config.toml"), true)
	if err != nil {
		t.Fatal(err)
	}
	want := imageservice.Policy{Default: "reject", Rules: []imageservice.PolicyRule{
		{Prefix: "docker.io/library", Type: "sigstore", Keys: []string{"/k"}, Identity: "any"},
	}}
	if got := c.Image.Policy.policy(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	keys, err := c.effective()
	if err != nil || strings.Contains(fmt.Sprint(keys), "s3cr3t") || !strings.Contains(fmt.Sprint(keys), "proxy.example") {
		t.Errorf("shown: %v, %v", keys, err)
	}
	if _, err := loadConfig(filepath.Join(dir, "bad.toml"), true); err == nil || !strings.Contains(err.Error(), "fulcio") {
		t.Errorf("unknown key: %v", err)
	}
}

func TestConfigEffective(t *testing.T) {
	t.Parallel()
	c, err := loadConfig(filepath.Join(t.TempDir(), "none"), false)
	if err != nil {
		t.Fatal(err)
	}
	c.CgroupParent = "/flag"
	keys, err := c.effective()
	if err != nil {
		t.Fatal(err)
	}
	image, ok := keys["image"].(map[string]any)
	if !ok || image["no_progress_timeout"] != "1m0s" || keys["cgroup_parent"] != "/flag" {
		t.Errorf("got %v", keys)
	}
}

func tomlKeys(of reflect.Type) []string {
	var keys []string
	for field := range of.Fields() {
		if key := field.Tag.Get("toml"); key != "" {
			keys = append(keys, key)
			if field.Type.Kind() == reflect.Struct {
				keys = append(keys, tomlKeys(field.Type)...)
			}
		}
	}
	return keys
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	dir := writeFiles(t, map[string]string{"good.toml": "log_level = 3", "bad.toml": "log_level = 3\nlog_levl = 4"})
	for _, test := range []struct {
		file string
		code int
		want string
	}{
		{"good.toml", 0, "valid"},
		{"bad.toml", 1, "bad.toml:2: unknown key log_levl"},
		{"none.toml", 1, "no such file"},
	} {
		var out bytes.Buffer
		code := run([]string{"config", "validate", filepath.Join(dir, test.file)}, &out, &out)
		if code != test.code || !strings.Contains(out.String(), test.want) {
			t.Errorf("%s: exit code %d, output %q; want %d, %q", test.file, code, &out, test.code, test.want)
		}
	}
}

func TestFlagsWin(t *testing.T) {
	t.Parallel()
	dir := writeFiles(t, map[string]string{"config.toml": "root = '/file'\nstate = '/file-state'\nlog_level = 3"})
	c, err := loadConfig(filepath.Join(dir, "config.toml"), true)
	if err != nil {
		t.Fatal(err)
	}
	given := config{Root: "/flag", State: "/flag-state", LogLevel: 0}
	changed := func(name string) bool { return name == "root" || name == "log-level" }
	if err = c.apply(&given, changed); err != nil {
		t.Fatal(err)
	}
	if c.Root != "/flag" || c.State != "/file-state" || c.LogLevel != 0 {
		t.Errorf("got root %s, state %s, level %d", c.Root, c.State, c.LogLevel)
	}
	given.Root = "relative"
	if err = c.apply(&given, changed); !errors.Is(err, errConfig) || !strings.Contains(err.Error(), "root") {
		t.Errorf("relative --root: got %v, want %v", err, errConfig)
	}
}

// The tests and the benchmarks of others rely on these flags.
func TestServeFlags(t *testing.T) {
	t.Parallel()
	flags := serveCommand().Flags()
	for _, name := range []string{
		"config", "root", "state", "listen", "cni-conf-dir", "cni-bin-dir", "log-level", "cgroup-driver", "cgroup-parent",
	} {
		if flags.Lookup(name) == nil {
			t.Errorf("serve has no flag --%s", name)
		}
	}
}

func TestSocket(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ state, listen, want string }{
		{"/run/x", "", "/run/x/cri-runtime.sock"},
		{"/run/x", "unix:///y/z.sock", "/y/z.sock"},
		{"/run/x", "unix://y.sock", ""},
		{"/run/x", "/y.sock", ""},
		{"/" + strings.Repeat("s", 100), "", ""},
	} {
		c := config{State: test.state, Listen: test.listen}
		got, err := c.socket()
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("state %q, listen %q: got %q, %v, want %q", test.state, test.listen, got, err, test.want)
		}
	}
}

func TestCgroupDriver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, test := range []struct{ driver, systemd, want string }{
		{"auto", dir, "systemd"},
		{"auto", filepath.Join(dir, "none"), "cgroupfs"},
		{"cgroupfs", dir, "cgroupfs"},
		{"systemd", filepath.Join(dir, "none"), "systemd"},
	} {
		c := config{CgroupDriver: test.driver}
		if got := c.cgroupDriver(test.systemd); got != test.want {
			t.Errorf("%s with %s: got %s, want %s", test.driver, test.systemd, got, test.want)
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if code := run([]string{"version"}, &out, &out); code != 0 || !strings.HasPrefix(out.String(), "cri-runtime "+buildVersion()+" (CRI v1, go") {
		t.Errorf("exit code %d, output %q", code, &out)
	}
	if buildVersion() == "" {
		t.Error("no version: a kubelet refuses that")
	}
}

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"serv"}, {"serve", "extra"}, {"serve", "--log-level", "x"}, {"version", "extra"}, {"config", "validate", "a", "b"}} {
		var out bytes.Buffer
		if code := run(args, &out, &out); code != 1 || !strings.Contains(out.String(), "cri-runtime: ") {
			t.Errorf("%q: exit code %d, output %q", args, code, &out)
		}
	}
}

func FuzzConfigFile(f *testing.F) {
	f.Add([]byte(defaultTOML))
	f.Add([]byte("[log]\nline_bytes = -1\n"))
	f.Add([]byte("log = {line_bytes = 1}"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		var c config
		if c.decode("default.toml", []byte(defaultTOML)) == nil {
			_ = c.decode("fuzz.toml", data)
		}
	})
}
