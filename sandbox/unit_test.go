package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

func TestStopSignal(t *testing.T) {
	for _, c := range []struct {
		request runtimeapi.Signal
		image   string
		want    int
	}{
		{0, "", 15},
		{runtimeapi.Signal_SIGNAL_SIGTERM, "SIGKILL", 15},
		{runtimeapi.Signal_SIGNAL_SIGABRT, "", 6},
		{runtimeapi.Signal_SIGNAL_SIGXFSZ, "", 25},
		{runtimeapi.Signal_SIGNAL_SIGUSR1, "", 10},
		{runtimeapi.Signal_SIGNAL_SIGRTMIN, "", 34},
		{runtimeapi.Signal_SIGNAL_SIGRTMINPLUS15, "", 49},
		{runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14, "", 50},
		{runtimeapi.Signal_SIGNAL_SIGRTMAX, "", 64},
		{0, "SIGQUIT", 3},
		{0, "quit", 3},
		{0, "3", 3},
		{0, "SIGRTMIN+3", 37},
		{0, "rtmax-1", 63},
		{0, "SIGRTMIN+99", 15},
		{0, "0", 15},
		{0, "65", 15},
		{0, "-9", 15},
		{0, "x\x00", 15},
	} {
		image := &imagespec.Image{Config: imagespec.ImageConfig{StopSignal: c.image}}
		got, err := stopSignal(&runtimeapi.ContainerConfig{StopSignal: c.request}, image)
		if err != nil || got != c.want {
			t.Errorf("request %v, image %q: %d, want %d (%v)", c.request, c.image, got, c.want, err)
		}
	}
	if _, err := stopSignal(&runtimeapi.ContainerConfig{StopSignal: 99}, &imagespec.Image{}); !errors.Is(err, ErrInvalid) {
		t.Error("unknown number:", err)
	}
}

func TestStateTable(t *testing.T) {
	for _, c := range []struct {
		from, to runtimeapi.ContainerState
		legal    bool
	}{
		{stateCreated, stateRunning, true},
		{stateCreated, stateExited, true},
		{stateRunning, stateExited, true},
		{stateRunning, stateCreated, false},
		{stateExited, stateRunning, false},
		{stateExited, stateExited, false},
		{stateUnknown, stateRunning, true},
		{stateRunning, stateUnknown, false},
	} {
		ctr := &Container{store: &Store{}}
		ctr.status.Store(&ContainerStatus{State: c.from})
		if got := ctr.update(func(s *ContainerStatus) { s.State = c.to }); got != c.legal {
			t.Errorf("%s to %s: %v", stateText(c.from), stateText(c.to), got)
		}
	}
}

func TestVerbLock(t *testing.T) {
	l := newVerbLock()
	if err := l.lock(context.Background(), "stop sandbox"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	err := l.lock(ctx, "create container")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "stop sandbox") {
		t.Error("the waiting verb does not name the one in its way:", err)
	}
	l.unlock()
	if err := l.lock(context.Background(), "create container"); err != nil {
		t.Error(err)
	}
}

// TestMakeInRoot makes mount points in trees that try to lead out.
func TestMakeInRoot(t *testing.T) {
	for name, c := range map[string]struct {
		links map[string]string // in the image
		path  string
		file  bool
		want  string
		err   error
	}{
		"plain":         {nil, "/a/b", false, "/a/b", nil},
		"file":          {nil, "/etc/hosts", true, "/etc/hosts", nil},
		"existing link": {map[string]string{"var": "/usr"}, "/var/x", false, "/usr/x", nil},
		"dangling file": {map[string]string{"etc/resolv.conf": "../run/x/resolv.conf"}, "/etc/resolv.conf", true, "/run/x/resolv.conf", nil},
		"climbs":        {map[string]string{"out": "../../../.."}, "/out/escaped", false, "/escaped", nil},
		"absolute out":  {map[string]string{"out": "/tmp/nowhere"}, "/out/x", false, "/tmp/nowhere/x", nil},
		// What the host has there must not be found.
		"absolute, the host's": {map[string]string{"out": "/tmp"}, "/out", false, "/tmp", nil},
		"climbs to the host's": {map[string]string{"out": strings.Repeat("../", 20) + "usr"}, "/out/bin", false, "/usr/bin", nil},
		"loop":                 {map[string]string{"a": "b", "b": "a"}, "/a/x", false, "", unix.ELOOP},
		"through a file":       {map[string]string{"l": "etc/passwd"}, "/l/x", false, "", unix.ENOTDIR},
		"dots":                 {nil, "/a/../../../b", false, "/b", nil},
		"magic link":           {map[string]string{"m": "/proc/self/root"}, "/m/x", false, "/proc/self/root/x", nil},
		"very long":            {nil, "/" + strings.Repeat("n", 300), false, "", unix.ENAMETOOLONG},
		"link to directory":    {map[string]string{"d": "etc"}, "/d", false, "/etc", nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			root := filepath.Join(dir, "root")
			for _, d := range []string{"etc", "usr"} {
				if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(root, "etc/passwd"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			for link, to := range c.links {
				if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
					t.Fatal(err)
				}
			}
			fd, err := os.Open(root)
			if err != nil {
				t.Fatal(err)
			}
			defer fd.Close()
			got, err := makeInRoot(int(fd.Fd()), c.path, c.file, owner{})
			got = strings.TrimPrefix(got, root)
			if !errors.Is(err, c.err) || (err == nil && got != c.want) {
				t.Errorf("got %q, %v; want %q, %v", got, err, c.want, c.err)
			}
			if err == nil && !exists(filepath.Join(root, got)) {
				t.Error(got, "was not made below the root")
			}
			outside, _ := os.ReadDir(dir)
			if len(outside) != 1 {
				t.Error("made outside the root:", outside)
			}
		})
	}
}

func TestLogPath(t *testing.T) {
	for _, c := range []struct {
		dir, file, want string
		bad             bool
	}{
		{"/var/log/pods/p", "c/0.log", "/var/log/pods/p/c/0.log", false},
		{"", "c.log", "", false},
		{"/l", "", "", false},
		{"/l", "../x", "", true},
		{"/l", "/etc/passwd", "", true},
		{"l", "x", "", true},
	} {
		got, err := logPath(&runtimeapi.PodSandboxConfig{LogDirectory: c.dir}, &runtimeapi.ContainerConfig{LogPath: c.file})
		if got != c.want || errors.Is(err, ErrInvalid) != c.bad {
			t.Errorf("%q + %q: %q, %v", c.dir, c.file, got, err)
		}
	}
}

func TestRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "container.json")
	want := containerRecord{ID: "x", StopSignal: 15, Config: []byte(`{"a":"b"}`)}
	for _, durable := range []bool{false, true} {
		if err := writeRecord(path, &want, durable); err != nil {
			t.Fatal(err)
		}
		var got containerRecord
		if err := ledger.Read(path, &got); err != nil || got.ID != want.ID || got.StopSignal != want.StopSignal || string(got.Config) != string(want.Config) {
			t.Errorf("%+v, %v", got, err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(data) - 2 {
		if err := os.WriteFile(path, data[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		var got containerRecord
		if err := ledger.Read(path, &got); err == nil {
			t.Errorf("a record cut after %d bytes is taken", n)
		}
	}
}

func TestLookup(t *testing.T) {
	all := map[string]int{"abc1": 1, "abc2": 2, "d": 3}
	for id, want := range map[string]struct {
		value int
		err   error
	}{"abc1": {1, nil}, "d": {3, nil}, "abc": {0, ErrInvalid}, "": {0, ErrNotFound}, "x": {0, ErrNotFound}} {
		if got, err := lookup(all, "container", id); got != want.value || !errors.Is(err, want.err) {
			t.Errorf("%q: %d, %v", id, got, err)
		}
	}
}
