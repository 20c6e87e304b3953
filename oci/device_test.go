package oci

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func deviceConfig(hostPath string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{Devices: []*runtimeapi.Device{
		{HostPath: hostPath, ContainerPath: "/dev/x", Permissions: "rw"},
	}}
}

func TestReadDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make device nodes")
	}
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, kind := range map[string]uint32{"null": unix.S_IFCHR, "sub/blk": unix.S_IFBLK} {
		if err := unix.Mknod(filepath.Join(dir, name), kind|0o600, int(unix.Mkdev(240, 7))); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"link": dir + "/null", "linkdir": dir + "/sub", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path string
		want []string // type path
		err  error
	}{
		{"null", []string{"c null"}, nil},
		{"link", []string{"c link"}, nil},
		{"sub", []string{"b sub/blk"}, nil},
		{"sub/", []string{"b sub/blk"}, nil},
		{"linkdir", []string{"b linkdir/blk"}, nil},
		{".", nil, nil},
		{"file", nil, ErrInvalid},
		{"loop", nil, ErrNotFound},
		{"missing", nil, ErrNotFound},
		{"sub/../null", nil, ErrInvalid},
	} {
		hostPath := dir + "/" + tt.path
		got, err := ReadDevices(deviceConfig(hostPath))
		if !errors.Is(err, tt.err) {
			t.Errorf("%s: error %v, want %v", tt.path, err, tt.err)
			continue
		}
		var names []string
		for _, d := range got[hostPath] {
			if d.Major != 240 || d.Minor != 7 || *d.FileMode != 0o600 {
				t.Errorf("%s: %+v", tt.path, d)
			}
			names = append(names, d.Type+" "+strings.TrimPrefix(d.Path, dir+"/"))
		}
		if tt.want != nil && !slices.Equal(names, tt.want) {
			t.Errorf("%s: %q, want %q", tt.path, names, tt.want)
		}
	}
}

func TestHostDevices(t *testing.T) {
	list, err := HostDevices()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		if slices.Contains([]string{"/dev/null", "/dev/ptmx", "/dev/console", "/dev/tty"}, d.Path) || strings.HasPrefix(d.Path, "/dev/pts/") {
			t.Errorf("%s is every container's own", d.Path)
		}
		if d.Type != "c" && d.Type != "b" {
			t.Errorf("%s has type %q", d.Path, d.Type)
		}
	}
}

func TestReadHost(t *testing.T) {
	h, err := ReadHost()
	if err != nil {
		t.Fatal(err)
	}
	if h.Hostname == "" || h.Kernel == "" || len(h.Capabilities) == 0 || len(h.Rlimits) != len(rlimitTypes()) {
		t.Errorf("host %+v", h)
	}
	if os.Geteuid() == 0 && !slices.Contains(h.Bounding, "CAP_CHOWN") {
		t.Errorf("bounding set %v", h.Bounding)
	}
	// What is said to be possible is possible: the kernel takes the value.
	old := h.OOMScoreAdj
	for _, want := range []int{-1000, old, 1000} {
		if got := h.ClampOOMScoreAdj(want); !h.SysResource && got < old {
			t.Errorf("score %d would be lowered to %d", old, got)
		}
	}
}

func TestClampRlimits(t *testing.T) {
	h := &Host{Rlimits: map[string]uint64{"RLIMIT_NOFILE": 100}}
	in := []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Hard: 200, Soft: 150}, {Type: "RLIMIT_NOFILE", Hard: 50, Soft: 20}, {Type: "RLIMIT_OTHER", Hard: 7, Soft: 7},
	}
	got := h.ClampRlimits(in)
	want := []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Hard: 100, Soft: 100}, {Type: "RLIMIT_NOFILE", Hard: 50, Soft: 20}, {Type: "RLIMIT_OTHER", Hard: 7, Soft: 7},
	}
	if !slices.Equal(got, want) || in[0].Hard != 200 {
		t.Errorf("got %v, argument %v", got, in)
	}
	h.SysResource = true
	if got := h.ClampRlimits(in); !slices.Equal(got, in) {
		t.Errorf("with CAP_SYS_RESOURCE: %v", got)
	}
}
