package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// allFeatures are the names that Config.without knows.
func allFeatures() []string {
	names := []string{"appendLayers"}
	for _, o := range overlayOptions() {
		names = append(names, o.String())
	}
	return names
}

// TestProbe finds what this kernel has, does without each of it, and looks at
// the options that the kernel shows of a mount.
func TestProbe(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts overlays")
	}
	dir := filepath.Join(t.TempDir(), "probe")
	full, err := probe(dir, nil)
	if err != nil || full.Problem != "" {
		t.Fatal(full, err)
	}
	text, err := json.Marshal(Features{Overlay: full})
	t.Logf("this kernel: %s %v", text, err)
	for _, without := range append([][]string{allFeatures()}, each(allFeatures())...) {
		f, err := probe(dir, without)
		if err != nil || f.Problem != "" {
			t.Fatal(without, f, err)
		}
		want := slices.DeleteFunc(slices.Clone(full.Options), func(o string) bool { return slices.Contains(without, o) })
		if !slices.Equal(f.Options, want) || f.AppendLayers != (full.AppendLayers && !slices.Contains(without, "appendLayers")) {
			t.Errorf("without %v: %+v", without, f)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("without %v: the scratch directory stays: %v", without, err)
		}
	}
}

func each(names []string) [][]string {
	var out [][]string
	for _, n := range names {
		out = append(out, []string{n})
	}
	return out
}

// TestProbeNothing looks at what a file system says that holds no writable layer.
func TestProbeNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts overlays")
	}
	f, err := probe("/proc/self/probe", nil)
	if err == nil {
		t.Error("it can be probed below /proc:", f)
	}
	// An overlay holds no writable layer of another.
	m := mustOverlay(t, t.TempDir(), []string{t.TempDir()}, nil)
	f, err = probe("/proc/self/fd/"+strconv.Itoa(int(m.Fd()))+"/probe", nil)
	if err != nil || f.Problem == "" || f.AppendLayers {
		t.Errorf("it can be probed on an overlay: %+v, %v", f, err)
	}
}

func mustOverlay(t *testing.T, dir string, layers, without []string) *os.File {
	t.Helper()
	f, err := probe(filepath.Join(t.TempDir(), "probe"), without)
	if err != nil || f.Problem != "" {
		t.Fatal(f, err)
	}
	m, err := f.mount(dir, layers, f.chosen())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// TestOverlayLayers mounts one to 500 layers, in both ways and with paths of
// any length, and reads and writes through the mount.
func TestOverlayLayers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts overlays")
	}
	base := t.TempDir()
	long := filepath.Join(base, strings.Repeat("l", 200), strings.Repeat("m", 200)+",:\\")
	for _, c := range []struct {
		n       int
		dir     string
		without []string
	}{
		{1, base, nil},
		{127, base, nil},
		{128, base, []string{"appendLayers"}},
		{maxLowerLayers, base, nil},
		{maxLowerLayers, base, []string{"appendLayers"}},
		{127, long, nil},
	} {
		t.Run(fmt.Sprint(c.n, " layers without ", c.without, " at ", len(c.dir)), func(t *testing.T) {
			var layers []string
			for i := range c.n {
				l := filepath.Join(c.dir, strconv.Itoa(i))
				if err := os.MkdirAll(l, 0o755); err != nil {
					t.Fatal(err)
				}
				for _, name := range []string{strconv.Itoa(i), "top"} {
					if err := os.WriteFile(filepath.Join(l, "f"+name), []byte(strconv.Itoa(i)), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				layers = append(layers, l)
			}
			dir := filepath.Join(c.dir, "c"+strconv.Itoa(len(c.without))+strconv.Itoa(c.n))
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			root := "/proc/self/fd/" + strconv.Itoa(int(mustOverlay(t, dir, layers, c.without).Fd()))
			for name, want := range map[string]string{"f0": "0", "f" + strconv.Itoa(c.n-1): strconv.Itoa(c.n - 1), "ftop": "0"} {
				if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
					t.Errorf("%s: %q, %v", name, got, err)
				}
			}
			if err := os.WriteFile(filepath.Join(root, "new"), nil, 0o600); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(dir, "upper", "new")); err != nil {
				t.Error(err)
			}
		})
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(table), base) {
		t.Error("a mount is left", err)
	}
}

func TestOverlayRefuses(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts overlays")
	}
	for _, without := range [][]string{nil, {"appendLayers"}} {
		f, err := probe(filepath.Join(t.TempDir(), "probe"), without)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.mount(t.TempDir(), make([]string, maxLowerLayers+1), f.chosen()); !errors.Is(err, ErrUnsupported) {
			t.Errorf("too many layers: %v", err)
		}
		_, err = f.mount(t.TempDir(), []string{"/nonexistent/layer"}, f.chosen())
		if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "1 layers") && !strings.Contains(err.Error(), "/nonexistent/layer") {
			t.Errorf("a layer that is missing: %v", err)
		}
	}
}

// TestContainerWithoutFeatures runs a container as on an old kernel.
func TestContainerWithoutFeatures(t *testing.T) {
	f := setUp(t)
	f.config.without = allFeatures()
	f.restart()
	if got := f.store.Features().Overlay; got.AppendLayers || len(got.Options) > 0 || got.Problem != "" {
		t.Errorf("%+v", got)
	}
	c := f.run(f.pod(), "c", "sh", "-c", "echo x > /f && cat /f")
	if st := f.await(c); st.ExitCode != 0 {
		t.Errorf("exit %d: %s", st.ExitCode, st.Message)
	}
}

func BenchmarkProbe(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "probe")
	for b.Loop() {
		if f, err := probe(dir, nil); err != nil || f.Problem != "" {
			b.Fatal(f, err)
		}
	}
}
