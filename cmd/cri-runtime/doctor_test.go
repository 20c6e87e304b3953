package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/cmd/cri-runtime/doctor"
)

// The command looks at the machine that runs the tests: whatever is found, its
// exit code, text and JSON tell the same, and the directories stay as they are.
func TestDoctor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	text := "root = \"" + dir + "/root\"\nstate = \"" + dir + "/state\"\ncgroup_driver = \"cgroupfs\"\n" +
		"[network]\nconf_dir = \"" + dir + "/net.d\"\nbuiltin = false\n[image]\nregistry_config_dir = \"" + dir + "/certs.d\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	code := run([]string{"doctor", "--config", file, "-o", "json"}, &out, &errOut)
	var got struct{ Results []doctor.Result }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s%s", err, &out, &errOut)
	}
	levels := map[string]doctor.Level{}
	for _, r := range got.Results {
		levels[r.Check] = r.Level
	}
	if want := map[bool]doctor.Level{true: doctor.Fail, false: doctor.Skipped}[os.Geteuid() == 0]; levels["network.cni"] != want {
		t.Errorf("no network at all: %q, want %q", levels["network.cni"], want)
	}
	if os.Geteuid() == 0 && (code != 1 || !strings.Contains(errOut.String(), "checks failed")) {
		t.Errorf("exit code %d: %s", code, &errOut)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("something was made in the directories: %v, %v", entries, err)
	}
	if code := run([]string{"doctor", "--config", file, "-o", "xml"}, &out, &errOut); code != 1 {
		t.Errorf("-o xml: exit code %d", code)
	}
}

func TestPrintResults(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := printResults(&out, []doctor.Result{
		{Check: "a.b", Level: doctor.OK, Seen: "well"},
		{Check: "c.d", Level: doctor.Fail, Seen: "bad \x1b[31m", Cost: "much", Change: "that"},
	})
	want := "ok    a.b                     well\nfail  c.d                     bad \uFFFD[31m\n      costs: much\n      change: that\n1 ok, 0 warn, 1 fail, 0 skip\n"
	if err != nil || out.String() != want {
		t.Errorf("%v:\n%s\nwant:\n%s", err, &out, want)
	}
}
