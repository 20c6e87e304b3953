package network

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestInspect(t *testing.T) {
	t.Parallel()
	dir, bin := t.TempDir(), t.TempDir()
	if i := Inspect(filepath.Join(dir, "absent"), nil); i.Problem != nil || i.File != "" {
		t.Errorf("no directory: %+v", i)
	}
	files := map[string]string{
		"05-broken.conflist": "{\n  \"name\": \"a\",\n  oops\n}\n",
		"06-empty.conflist":  `{"cniVersion":"1.0.0","name":"e","plugins":[]}`,
		"10-good.conflist": `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","bridge":"br9",
			"ipam":{"type":"host-local","ranges":[[{"subnet":"10.9.0.0/24"}]],"dataDir":"/leases"}},{"type":"portmap"}]}`,
		"90-other.conf": `{"cniVersion":"1.0.0","name":"o","type":"ptp"}`,
		"README":        "no configuration",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(bin, "bridge"), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "portmap"), nil, 0o600); err != nil { // nothing to execute
		t.Fatal(err)
	}
	i := Inspect(dir, []string{bin})
	if i.File != filepath.Join(dir, "10-good.conflist") || i.Name != "pods" || i.Problem != nil {
		t.Errorf("used: %+v", i)
	}
	if !slices.Equal(i.Missing, []string{"host-local", "portmap"}) {
		t.Errorf("missing: %q of %q", i.Missing, i.Plugins)
	}
	if len(i.Refused) != 2 || !strings.HasPrefix(i.Refused[0].Error(), filepath.Join(dir, "05-broken.conflist")+":3: ") {
		t.Errorf("refused: %v", i.Refused)
	}
	if !slices.Equal(i.Unused, []string{filepath.Join(dir, "90-other.conf")}) {
		t.Errorf("unused: %q", i.Unused)
	}
	if len(i.Bridges) != 1 || i.Bridges[0].Name != "br9" || !slices.Equal(i.Bridges[0].Subnets, []string{"10.9.0.0/24"}) ||
		!slices.Equal(i.DataDirs, []string{"/leases/pods"}) {
		t.Errorf("bridges %+v, leases %q", i.Bridges, i.DataDirs)
	}
}
