package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/oci"
)

func TestDebugProgram(t *testing.T) {
	t.Parallel()
	spec := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{
			Args: []string{"sh", "-c", "exit 3"}, Cwd: "/", Env: []string{"PATH=/bin", "BYTES=\xff"}, NoNewPrivileges: true,
		},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace, Path: "/run/ns/net"},
		}},
	}
	text, err := oci.EncodeSpec(spec)
	if err != nil {
		t.Fatal(err)
	}
	dir := writeFiles(t, map[string]string{"config.json": string(text)})
	var out bytes.Buffer
	if code := run([]string{"debug", "program", "--bundle", dir}, &out, &out); code != 0 {
		t.Fatalf("exit code %d: %s", code, &out)
	}
	for _, want := range []string{"clone3(", "CLONE_NEWPID", "/run/ns/net", "execve(", "exit 3"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the program does not contain %q:\n%s", want, &out)
		}
	}
}

func TestDebugProgramBadBundle(t *testing.T) {
	t.Parallel()
	huge := writeFiles(t, map[string]string{"config.json": ""})
	if err := os.Truncate(filepath.Join(huge, "config.json"), maxSpecBytes+1); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, dir, want string }{
		{"missing", t.TempDir(), "no such file"},
		{"a directory", writeFiles(t, map[string]string{"config.json/x": ""}), "is a directory"},
		{"huge", huge, "larger than"},
		{"not JSON", writeFiles(t, map[string]string{"config.json": "\xff"}), "config.json"},
		{"empty spec", writeFiles(t, map[string]string{"config.json": "{}"}), "config.json"},
	} {
		var out bytes.Buffer
		if code := run([]string{"debug", "program", "--bundle", test.dir}, &out, &out); code != 1 || !strings.Contains(out.String(), test.want) {
			t.Errorf("%s: exit code %d, output %q, want %q", test.name, code, &out, test.want)
		}
	}
	var out bytes.Buffer
	if code := run([]string{"debug", "program"}, &out, &out); code != 1 || !strings.Contains(out.String(), "bundle") {
		t.Errorf("no --bundle: exit code %d, output %q", code, &out)
	}
}
