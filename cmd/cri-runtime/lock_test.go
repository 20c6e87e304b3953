package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestLockDir(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	lock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if at, statErr := os.Stat(dir); statErr != nil || at.Mode().Perm() != 0o700 {
		t.Errorf("mode of the directory: %v, %v, want 0700", at.Mode(), statErr)
	}
	_, err = lockDir(dir)
	if !errors.Is(err, errInUse) || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second lock: got %v, want %v with process and directory", err, errInUse)
	}
	if err = lock.Close(); err != nil {
		t.Fatal(err)
	}
	lock, err = lockDir(dir)
	if err != nil {
		t.Fatalf("after the first was closed: %v", err)
	}
	if err = lock.Close(); err != nil {
		t.Fatal(err)
	}
}

// What is in a lock file is for people: whatever it is, the lock can be taken.
func TestMutilatedLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, content := range []string{"", "\n", "12", "-1\n", "\x00\xff", "99999999999999999999\n", strings.Repeat("7", 1<<20)} {
		if err := os.WriteFile(filepath.Join(dir, lockName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		lock, err := lockDir(dir)
		if err != nil {
			t.Fatalf("%.20q: %v", content, err)
		}
		if err := os.WriteFile(lock.Name(), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if name := holder(lock); strings.ContainsAny(name, "\n\x00") || len(name) > 20 {
			t.Errorf("%.20q: the holder is %q", content, name)
		}
		if err := lock.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// CVE-2024-25621: state in directories open to every user.
func TestLockDirMode(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		mode  os.FileMode
		files []string
		want  error
	}{
		{"empty and open", 0o755, nil, nil},
		{"ours and open", 0o755, []string{lockName, "images"}, nil},
		{"private", 0o700, []string{"something"}, nil},
		{"somebody else's", 0o755, []string{"something"}, errNotOurs},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			files := map[string]string{}
			for _, name := range test.files {
				files[name] = ""
			}
			dir := writeFiles(t, files)
			if err := os.Chmod(dir, test.mode); err != nil {
				t.Fatal(err)
			}
			lock, err := lockDir(dir)
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			want := os.FileMode(0o700)
			if err != nil {
				want = test.mode
			} else if err = lock.Close(); err != nil {
				t.Fatal(err)
			}
			if at, err := os.Stat(dir); err != nil || at.Mode().Perm() != want {
				t.Errorf("mode is %v, %v, want %v", at.Mode(), err, want)
			}
		})
	}
}

func TestLockDirBadPlaces(t *testing.T) {
	t.Parallel()
	dir := writeFiles(t, map[string]string{"file": "", "linked/x": ""})
	if err := os.Remove(filepath.Join(dir, "linked", "x")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "file"), filepath.Join(dir, "linked", lockName)); err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{"file", "file/below", "linked"} {
		if lock, err := lockDir(filepath.Join(dir, place)); err == nil {
			t.Errorf("%s: locked", place)
			lock.Close()
		}
	}
}

func TestHolder(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"12\n": "12", "": "unknown", "\xff\xfe": "unknown", strings.Repeat("9", 4096): "9999999999999999"} {
		dir := writeFiles(t, map[string]string{"lock": text})
		f, err := os.Open(filepath.Join(dir, "lock"))
		if err != nil {
			t.Fatal(err)
		}
		if got := holder(f); got != want {
			t.Errorf("%.20q: got %s, want %s", text, got, want)
		}
		f.Close()
	}
}
