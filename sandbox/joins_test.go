package sandbox

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

func openSome(t *testing.T, n int) []*os.File {
	t.Helper()
	var files []*os.File
	for range n {
		f, err := os.CreateTemp(t.TempDir(), "tasks")
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

func isOpen(f *os.File) bool { _, err := f.Stat(); return err == nil }

func TestJoins(t *testing.T) {
	var budget atomic.Int32
	var j joins
	if files, done := j.use(); files != nil {
		t.Error("files from nowhere")
	} else {
		done()
	}
	first, second := openSome(t, 3), openSome(t, 3)
	j.keep(first, &budget)
	j.keep(second, &budget) // two execs at once
	if !isOpen(first[0]) || isOpen(second[0]) || budget.Load() != 3 {
		t.Errorf("%d files are kept", budget.Load())
	}
	files, done := j.use()
	j.close()
	if len(files) != 3 || !isOpen(files[2]) {
		t.Error("files were closed while an exec used them")
	}
	done()
	if isOpen(first[0]) || budget.Load() != 0 {
		t.Errorf("%d files are kept after the end", budget.Load())
	}
	late := openSome(t, 2)
	j.keep(late, &budget)
	if isOpen(late[0]) || budget.Load() != 0 {
		t.Error("an ended container keeps files")
	}
	var other joins
	many := openSome(t, 1)
	budget.Store(maxJoins)
	other.keep(many, &budget)
	if isOpen(many[0]) || budget.Load() != maxJoins {
		t.Error("more files are kept than may be")
	}
	if _, err := openJoins([]string{filepath.Join(t.TempDir(), "missing")}); err == nil {
		t.Error("a missing file is opened")
	}
}
