package sandbox

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLogBelowNoLink(t *testing.T) {
	base := t.TempDir()
	dir, outside := filepath.Join(base, "pod"), filepath.Join(base, "outside")
	if err := makeLogDir(dir, "c/d"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"file": filepath.Join(outside, "x"), "out": outside, "in": "c"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]bool{"0.log": true, "c/d/0.log": true, "file": false, "out/x": false, "in/x": false, "../x": false, "c/d": false} {
		fd, err := openLogBelow(dir, name)
		if (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			_ = os.NewFile(uintptr(fd), name).Close()
		}
	}
	if err := makeLogDir(dir, "out/made"); err == nil {
		t.Error("a directory was made through a link")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside: %v, %v", left, err)
	}
}
