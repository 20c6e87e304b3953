package imageservice

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInspectHosts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ file, text, want string }{
		"good":        {"a.example/hosts.toml", `server = "https://b.example"`, ""},
		"port":        {"a.example_5000_/hosts.toml", `server = "https://b.example"`, ""},
		"default":     {"_default/hosts.toml", "[host.\"https://m.example\"]\n", ""},
		"syntax":      {"a.example/hosts.toml", "server = \"https://b.example\"\n\nserver =\n", "line 3: "},
		"unknown key": {"a.example/hosts.toml", "\npowers = []\n", `line 2: unknown key "powers"`},
		"no CA":       {"a.example/hosts.toml", `ca = "absent.pem"`, "absent.pem: no such file"},
		"bad CA":      {"a.example/ca.crt", "words", "holds no certificate"},
		"bad client":  {"a.example/client.cert", "words", "client certificate"},
		"not UTF-8":   {"a.example/hosts.toml", "server = \"\xff\"", "hosts.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, c.file)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, c.file), []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			n, problems := InspectHosts(root)
			if n != 1 || (c.want == "") != (len(problems) == 0) {
				t.Fatalf("%d registries, %v", n, problems)
			}
			if c.want != "" && !strings.Contains(problems[0].Error(), c.want) {
				t.Errorf("%v, want %q", problems[0], c.want)
			}
		})
	}
	if n, problems := InspectHosts(filepath.Join(t.TempDir(), "absent")); n != 0 || problems != nil {
		t.Errorf("no directory: %d, %v", n, problems)
	}
}
