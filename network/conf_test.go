package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func listOf(name string, plugins ...string) string {
	var conf []string
	for _, plugin := range plugins {
		conf = append(conf, fmt.Sprintf(`{"type":%q}`, plugin))
	}
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[%s]}`, name, strings.Join(conf, ","))
}

// confAndBin returns two directories with plugins that are never run.
func confAndBin(t testing.TB, plugins ...string) Config {
	t.Helper()
	dir := t.TempDir()
	c := Config{ConfDir: filepath.Join(dir, "conf"), BinDirs: []string{filepath.Join(dir, "bin")}}
	for _, d := range []string{c.ConfDir, c.BinDirs[0]} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, plugin := range plugins {
		if err := os.WriteFile(filepath.Join(c.BinDirs[0], plugin), []byte("#!/bin/false\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestFirstValidFile(t *testing.T) {
	good := listOf("net", "p")
	for name, test := range map[string]struct {
		files   map[string]string
		want    string // file chosen
		refused int
		reason  []string // in the text of Ready's error
	}{
		"empty":                {reason: []string{"no *.conflist, *.conf or *.json in "}},
		"one":                  {files: map[string]string{"10.conflist": good}, want: "10.conflist"},
		"lexically first":      {files: map[string]string{"20.conflist": good, "10.conflist": good}, want: "10.conflist"},
		"conf":                 {files: map[string]string{"10.conf": `{"cniVersion":"0.4.0","name":"n","type":"p"}`}, want: "10.conf"},
		"json":                 {files: map[string]string{"10.json": `{"name":"n","type":"p"}`}, want: "10.json"},
		"list named conf":      {files: map[string]string{"10.conf": good}, want: "10.conf"},
		"other names":          {files: map[string]string{"10.yaml": good, "README": good}, reason: []string{"no *.conflist"}},
		"broken is passed by":  {files: map[string]string{"10.conflist": "{", "20.conflist": good}, want: "20.conflist", refused: 1},
		"plugins in a subdir":  {files: map[string]string{"10.conflist": `{"cniVersion":"1.1.0","name":"sub"}`, "sub/a.conf": `{"type":"p"}`}, want: "10.conflist"},
		"broken in the subdir": {files: map[string]string{"10.conflist": `{"cniVersion":"1.1.0","name":"sub"}`, "sub/a.conf": `{"type"`}, refused: 1, reason: []string{"10.conflist"}},
		"missing binary":       {files: map[string]string{"10.conflist": listOf("net", "p", "absent"), "20.conflist": good}, want: "10.conflist", reason: []string{"no executable absent in ", "/bin", "install it"}},
		"missing ipam binary":  {files: map[string]string{"10.conflist": `{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"p","ipam":{"type":"absent"}}]}`}, want: "10.conflist", reason: []string{"no executable absent in "}},
		"broken":               {files: map[string]string{"10.conflist": "{", "20.conflist": `{"name":"n"}`}, refused: 2, reason: []string{"10.conflist: ", "20.conflist: ", "mend or remove"}},
		"empty file":           {files: map[string]string{"10.conflist": ""}, refused: 1, reason: []string{"10.conflist"}},
		"traversing name":      {files: map[string]string{"10.conflist": listOf("../../etc/x", "p")}, refused: 1, reason: []string{"../../etc/x"}},
		"traversing type":      {files: map[string]string{"10.conflist": listOf("n", "../p")}, refused: 1, reason: []string{"../p"}},
		"type dot dot":         {files: map[string]string{"10.conflist": listOf("n", "..")}, refused: 1, reason: []string{"not the name of a binary"}},
		"long name":            {files: map[string]string{"10.conflist": listOf(strings.Repeat("n", 300), "p")}, refused: 1, reason: []string{"128"}},
		"not UTF-8":            {files: map[string]string{"10.conflist": strings.Replace(good, "net", "n\xff", 1)}, refused: 1, reason: []string{"not UTF-8"}},
		"huge":                 {files: map[string]string{"10.conflist": good + strings.Repeat(" ", maxConfBytes)}, refused: 1, reason: []string{"larger than 1048576 bytes"}},
		"future version":       {files: map[string]string{"10.conflist": `{"cniVersion":"9.0.0","name":"n","plugins":[{"type":"p"}]}`}, refused: 1, reason: []string{"9.0.0 is newer than"}},
		"no version number":    {files: map[string]string{"10.conflist": `{"cniVersion":"one","name":"n","plugins":[{"type":"p"}]}`}, refused: 1, reason: []string{"one"}},
		"null plugin":          {files: map[string]string{"10.conflist": `{"name":"n","plugins":[null]}`}, refused: 1, reason: []string{"10.conflist"}},
		"null":                 {files: map[string]string{"10.conf": `null`}, refused: 1, reason: []string{"10.conf"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := confAndBin(t, "p")
			for name, text := range test.files {
				name = filepath.Join(config.ConfDir, name)
				if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
					t.Fatal(err)
				}
				write(t, name, text)
			}
			n := open(t, config)
			s := n.Status()
			if got := strings.TrimPrefix(s.File, config.ConfDir+"/"); got != test.want {
				t.Errorf("file %q, want %q", got, test.want)
			}
			if len(s.Refused) != test.refused {
				t.Errorf("refused %q, want %d", s.Refused, test.refused)
			}
			err := n.Ready()
			if (err == nil) != (test.reason == nil) || s.Ready != (err == nil) {
				t.Fatalf("ready: %v, status %+v", err, s)
			}
			if err != nil && !errors.Is(err, ErrNotReady) {
				t.Errorf("not ErrNotReady: %v", err)
			}
			for _, part := range append(test.reason, map[bool]string{true: "", false: config.ConfDir}[err == nil]) {
				if err != nil && !strings.Contains(err.Error(), part) {
					t.Errorf("%q is not in: %v", part, err)
				}
			}
		})
	}
}

func TestNotAFile(t *testing.T) {
	config := confAndBin(t, "p")
	if err := unix.Mkfifo(filepath.Join(config.ConfDir, "10.conflist"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(config.ConfDir, "20.conflist")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(config.ConfDir, "30.conflist")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(config.ConfDir, "40.conflist"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(config.ConfDir, "50.conflist"), listOf("net", "p"))
	s := open(t, config).Status()
	if !s.Ready || filepath.Base(s.File) != "50.conflist" || len(s.Refused) != 3 {
		t.Errorf("%+v", s)
	}
}

// TestChangesAreSeen: each call sees what the files are at that moment,
// whether or not the kernel has told of the change.
func TestChangesAreSeen(t *testing.T) {
	config := confAndBin(t)
	if err := os.Remove(config.ConfDir); err != nil {
		t.Fatal(err)
	}
	n := open(t, config)
	file := filepath.Join(config.ConfDir, "10.conflist")
	binary := filepath.Join(config.BinDirs[0], "p")
	steps := []struct {
		name string
		do   func() error
		want string // in the error; "": ready
	}{
		{"no directory", func() error { return nil }, "does not exist"},
		{"directory", func() error { return os.Mkdir(config.ConfDir, 0o700) }, "no *.conflist"},
		{"broken file", func() error { return os.WriteFile(file, []byte("{"), 0o600) }, "10.conflist"},
		{"file", func() error { return os.WriteFile(file, []byte(listOf("one", "p")), 0o600) }, "no executable p"},
		{"binary that isn't one", func() error { return os.WriteFile(binary, nil, 0o600) }, "no executable p"},
		{"binary", func() error { return os.Chmod(binary, 0o700) }, ""},
		{"same size at once", func() error { return os.WriteFile(file, []byte(listOf("one", "q")), 0o600) }, "no executable q"},
		{"another name", func() error { return os.Rename(binary, filepath.Join(config.BinDirs[0], "q")) }, ""},
		{"directory replaced", func() error {
			if err := os.Rename(config.ConfDir, config.ConfDir+".old"); err != nil {
				return err
			}
			return os.Mkdir(config.ConfDir, 0o700)
		}, "no *.conflist"},
		{"directory back", func() error {
			if err := os.Remove(config.ConfDir); err != nil {
				return err
			}
			return os.Rename(config.ConfDir+".old", config.ConfDir)
		}, ""},
		{"a file before it", func() error {
			return os.WriteFile(filepath.Join(config.ConfDir, "00.conflist"), []byte(listOf("zero", "q")), 0o600)
		}, ""},
		{"directory gone", func() error { return os.RemoveAll(config.ConfDir) }, "does not exist"},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		err := n.Ready()
		if step.want == "" && err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if step.want != "" && (err == nil || !strings.Contains(err.Error(), step.want)) {
			t.Errorf("%s: %v, want %q", step.name, err, step.want)
		}
	}
}

// TestWatch: the change is read without anyone asking.
func TestWatch(t *testing.T) {
	config := confAndBin(t, "p")
	if err := os.Remove(config.ConfDir); err != nil {
		t.Fatal(err)
	}
	n := open(t, config)
	if err := os.Mkdir(config.ConfDir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(config.ConfDir, "10.conflist"), listOf("net", "p"))
	deadline := time.After(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n.conf.Load().list == nil {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the new file was not noticed")
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, config := range []Config{
		{},
		{ConfDir: "conf", CacheDir: dir},
		{ConfDir: dir},
		{ConfDir: dir, CacheDir: dir, BinDirs: []string{"bin"}},
		{ConfDir: dir, CacheDir: dir, BinDirs: []string{"/a:/b"}},
	} {
		if n, err := Open(config); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", config, err)
			if err == nil {
				n.Close()
			}
		}
	}
	if _, err := Open(Config{ConfDir: dir, CacheDir: "/proc/self/nothing"}); err == nil {
		t.Error("a cache directory that cannot be made")
	}
}

func BenchmarkReady(b *testing.B) {
	config := confAndBin(b, "bridge", "portmap")
	for i := range 3 {
		name := filepath.Join(config.ConfDir, fmt.Sprintf("1%d.conflist", i))
		write(b, name, listOf("net", "bridge", "portmap"))
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(name, old, old); err != nil {
			b.Fatal(err)
		}
	}
	n := open(b, config)
	for n.refresh().fresh { // until the files are old enough to be trusted
	}
	for b.Loop() {
		if err := n.Ready(); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte(listOf("net", "bridge")))
	f.Add([]byte(`{"name":"n","type":"p","ipam":{"type":"q"}}`))
	f.Add([]byte(`{"name":"n","cniVersions":["1.0.0",null],"plugins":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if one, err := listOfOne(data); err == nil {
			data = one
		}
		list, err := parseList(data)
		if err != nil {
			return
		}
		if strings.ContainsAny(list.Name, "/\x00") || list.Name == ".." {
			t.Errorf("name %q", list.Name)
		}
		for _, plugin := range list.Plugins {
			if strings.ContainsAny(plugin.Network.Type, "/\x00") {
				t.Errorf("type %q", plugin.Network.Type)
			}
		}
		if again, err := parseList(list.Bytes); err != nil || again.Name != list.Name {
			t.Errorf("bytes of the list are no list: %v", err)
		}
	})
}

// TestConfSetBack: a file whose times are of the future, as the clock was set back
// since, is read once, and so is one of long ago; a change of either is seen.
func TestConfSetBack(t *testing.T) {
	const s = int64(time.Second)
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		name    string
		changed int64
		fresh   bool
	}{
		{"just now", 1000 * s, true},
		{"a tick ago", 1000*s - 4e6, true},
		{"a tick in the future", 1000*s + 4e6, true},
		{"long ago", 1 * s, false},
		{"years in the future", 1 << 62, false},
		{"before 1970", -1 << 62, false},
	} {
		marks := "conf 1 2 3 4 5\nconf/10.conflist 1 2 3 4 " + strconv.FormatInt(c.changed, 10) + "\n"
		if got := changedNear(marks, now); got != c.fresh {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
