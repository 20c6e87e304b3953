package conmon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLifeCycle(t *testing.T) {
	tests := map[string]struct {
		argv []string
		kill unix.Signal
		want Exit
	}{
		"success":             {argv: shell("exit 0")},
		"exit code":           {argv: shell("exit 7"), want: Exit{Code: 7}},
		"highest exit code":   {argv: shell("exit 255"), want: Exit{Code: 255}},
		"own signal":          {argv: shell("kill -SEGV $$"), want: Exit{Code: 139, Signal: unix.SIGSEGV}},
		"killed":              {argv: []string{"/bin/busybox", "sleep", "1000"}, kill: unix.SIGKILL, want: Exit{Code: 137, Signal: unix.SIGKILL}},
		"terminated":          {argv: []string{"/bin/busybox", "sleep", "1000"}, kill: unix.SIGTERM, want: Exit{Code: 143, Signal: unix.SIGTERM}},
		"handles the signal":  {argv: shell("trap 'exit 3' TERM; echo ok; sleep 1000 & wait"), kill: unix.SIGTERM, want: Exit{Code: 3}},
		"real-time signal 64": {argv: []string{"/bin/busybox", "sleep", "1000"}, kill: 64, want: Exit{Code: 192, Signal: 64}},
	}
	each(t, func(t *testing.T, bin *Binary) {
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				b, ctx := newBox(t), testContext(t)
				p := initProgram(test.argv...)
				p.cloneFlags = unix.CLONE_NEWPID
				if test.kill == 0 || test.want.Signal != 0 {
					p.cloneFlags = unix.CLONE_NEWIPC // no signal of its own kills a namespace's init
				}
				before := time.Now().UnixNano()
				m := created(t, bin, b.launch(p))
				if m.State() != StateCreated || m.PID() <= 0 || m.CreatedAt() < before {
					t.Fatalf("%v, pid %d, created %d", m.State(), m.PID(), m.CreatedAt())
				}
				at, err := m.Start(ctx)
				if err != nil || at < m.CreatedAt() || m.StartedAt() != at {
					t.Fatal(at, err)
				}
				if test.kill == unix.SIGTERM && test.want.Code == 3 {
					awaitLog(b, "ok")
				}
				if test.kill != 0 {
					if err := m.Kill(ctx, test.kill); err != nil {
						t.Fatal(err)
					}
				}
				got := b.finish(m)
				if got.StartedAt != at || got.FinishedAt < at {
					t.Errorf("started %d, %+v", at, got)
				}
				got.StartedAt, got.FinishedAt = 0, 0
				if got != test.want {
					t.Errorf("got %+v, want %+v", got, test.want)
				}
				if m.State() != StateExited || m.PID() != 0 {
					t.Error(m.State(), m.PID())
				}
			})
		}
	})
}

// awaitLog waits until the log holds text; asking the monitor takes its turns.
func awaitLog(b *box, text string) {
	b.t.Helper()
	ctx := testContext(b.t)
	for !strings.Contains(b.logged(), text) {
		if ctx.Err() != nil {
			b.t.Fatalf("log without %q: %q", text, b.logged())
		}
	}
}

func TestStartFails(t *testing.T) {
	dir := t.TempDir()
	notExecutable := filepath.Join(dir, "data")
	noFormat := filepath.Join(dir, "noformat")
	if os.WriteFile(notExecutable, nil, 0o600) != nil || os.WriteFile(noFormat, []byte("\x00\x01"), 0o700) != nil {
		t.Fatal("no files")
	}
	tests := map[string]struct {
		path  string
		errno unix.Errno
		code  int32
	}{
		"missing":        {"/nonexistent", unix.ENOENT, 127},
		"not executable": {notExecutable, unix.EACCES, 126},
		"no format":      {noFormat, unix.ENOEXEC, 126},
		"directory":      {dir, unix.EACCES, 126},
		"long":           {strings.Repeat("/x", 4000), unix.ENAMETOOLONG, 128},
	}
	each(t, func(t *testing.T, bin *Binary) {
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				b := newBox(t)
				m := created(t, bin, b.launch(initProgram(test.path)))
				_, err := m.Start(testContext(t))
				var step *StepError
				if !errors.As(err, &step) || step.Errno != test.errno || step.Step != 4 || step.ExitCode() != test.code {
					t.Fatalf("%v: %+v", err, step)
				}
				e := b.finish(m)
				if e.Code != test.code || !e.StartFailed || e.StartedAt != 0 || e.Signal != 0 {
					t.Errorf("%+v", e)
				}
			})
		}
	})
}

func TestLaunchFails(t *testing.T) {
	tests := map[string]struct {
		program func() *testProgram
		errno   unix.Errno
		says    string
	}{
		"first step": {
			func() *testProgram { return newProgram().execve("/nonexistent") },
			unix.ENOENT, "execve /nonexistent: no such file or directory (step 1 of 1)",
		},
		"later step": {
			func() *testProgram {
				p := newProgram().stdio()
				p.call("mount /proc", unix.SYS_MOUNT, value(0), p.text("/nonexistent"), value(0), value(unix.MS_BIND))
				return p.ready()
			},
			unix.ENOENT, "mount /proc: no such file or directory (step 4 of 5)",
		},
		"runs off its end": {
			func() *testProgram { return newProgram().stdio() },
			unix.ENOEXEC, "the end: exec format error",
		},
		"execve without ready": {
			func() *testProgram { return newProgram().stdio().execve("/bin/busybox", "sleep", "1000") },
			unix.ECHILD, "process killed while it was set up: no child processes",
		},
		"killed": {
			func() *testProgram {
				p := newProgram()
				p.call("getpid", unix.SYS_GETPID).save = 20
				p.call("kill", unix.SYS_KILL, slot(20), value(uint64(unix.SIGKILL)))
				return p.ready()
			},
			unix.ECHILD, "process killed while it was set up: no child processes",
		},
		"no PID namespace": {
			func() *testProgram { p := initProgram("/bin/busybox"); p.pidns = 8; return p },
			unix.EINVAL, "monitor: enter the PID namespace: invalid argument",
		},
		"no cgroup": {
			func() *testProgram { p := initProgram("/bin/busybox"); p.cgroup = 8; return p },
			unix.EBADF, "monitor: clone the process: bad file descriptor",
		},
	}
	each(t, func(t *testing.T, bin *Binary) {
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				b := newBox(t)
				l := b.launch(test.program())
				l.Files = []*os.File{b.exitDir}
				m, err := bin.Launch(testContext(t), l)
				if err == nil {
					m.Close()
					t.Fatal("launched")
				}
				if !errors.Is(err, test.errno) || !strings.Contains(err.Error(), test.says) {
					t.Error(err)
				}
				left(t, b)
			})
		}
	})
}

// left checks that a launch which failed has left nothing.
func left(t *testing.T, b *box) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(b.dir, socketFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket is left: %v", err)
	}
	if _, err := ReadExit(b.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("exit record: %v", err)
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("process %d is left: %v", pid, err)
	}
}

func TestLaunchRefusesBadArguments(t *testing.T) {
	bin := testBinary(t)
	many := make([]*os.File, 249)
	b := newBox(t)
	for i := range many {
		many[i] = b.exitDir
	}
	tests := map[string]func(*Launch){
		"negative line":    func(l *Launch) { l.LogLineBytes = -1 },
		"huge line":        func(l *Launch) { l.LogLineBytes = lineMax + 1 },
		"too many files":   func(l *Launch) { l.Files = many },
		"too many places":  func(l *Launch) { l.Files, l.Place = many[:200], many[:50] },
		"no directory":     func(l *Launch) { l.Dir = filepath.Join(b.dir, "missing") },
		"place is no file": func(l *Launch) { l.Place = many[:1] },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			l := b.launch(initProgram("/bin/busybox", "true"))
			spoil(l)
			m, err := bin.Launch(testContext(t), l)
			if err == nil {
				m.Close()
				t.Fatal("launched")
			}
			left(t, b)
		})
	}
}

func TestLaunchCancelled(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		ctx, cancel := context.WithCancel(context.Background())
		p := newProgram()
		// The program tells that it runs, and then hangs.
		p.call("write", unix.SYS_WRITE, slot(8), p.text("x"), value(1))
		p.call("pause", unix.SYS_PPOLL, value(0), value(0), value(0), value(0), value(0))
		p.ready()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		go func() {
			var one [1]byte
			_, _ = r.Read(one[:])
			cancel()
		}()
		l := b.launch(p)
		l.Files = []*os.File{w}
		if _, err = bin.Launch(ctx, l); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		left(t, b)
	})
}

func TestLongDirectory(t *testing.T) {
	dir := t.TempDir()
	for range 4 {
		dir = filepath.Join(dir, strings.Repeat("d", 200))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b := newBoxIn(t, dir)
	bin := testBinary(t)
	m := started(t, bin, b.launch(initProgram("/bin/busybox", "sleep", "1000")))
	again, err := bin.Connect(testContext(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.PID() != m.PID() {
		t.Errorf("pid %d, want %d", again.PID(), m.PID())
	}
}

func TestSocketMode(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	b := newBox(t)
	created(t, testBinary(t), b.launch(initProgram("/bin/busybox", "true")))
	info, err := os.Lstat(filepath.Join(b.dir, socketFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
}

// The workload starts with nothing of the monitor's or the daemon's.
func TestWorkloadIsClean(t *testing.T) {
	b := newBox(t)
	m := started(t, testBinary(t), b.launch(initProgram(shell(
		"echo fds $(ls /proc/self/fd | wc -l); grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; echo args $0; env")...)))
	b.finish(m)
	got := b.logged()
	// ls itself opens the directory; inside $() its stdout is a pipe.
	for _, want := range []string{"fds 4\n", "SigBlk:\t0000000000000000\n", "SigIgn:\t0000000000000000\n", "PATH=/bin\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
}

func TestStdin(t *testing.T) {
	tests := map[string]struct {
		stdin bool
		want  string
	}{
		"null": {false, "/dev/null"},
		"pipe": {true, "pipe:"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			l := b.launch(initProgram(shell("readlink /proc/self/fd/0; [ -p /dev/stdin ] || cat")...))
			l.Stdin = test.stdin
			b.finish(started(t, testBinary(t), l))
			if got := b.logged(); !strings.HasPrefix(got, test.want) {
				t.Error(got)
			}
		})
	}
}

func TestMonitorProcess(t *testing.T) {
	b := newBox(t)
	l := b.launch(initProgram("/bin/busybox", "sleep", "1000"))
	l.OOMScoreAdj = 17 // raising needs no privilege
	m := started(t, testBinary(t), l)
	proc := "/proc/" + strconv.Itoa(m.child)
	read := func(name string) string {
		text, err := os.ReadFile(proc + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if got := read("/comm"); got != "cri-monitor\n" {
		t.Error("comm", got)
	}
	if got := read("/cmdline"); got != "cri-monitor\x00" {
		t.Errorf("cmdline %q", got)
	}
	if got := read("/oom_score_adj"); got != "17\n" {
		t.Error("oom_score_adj", got)
	}
	if exe, err := os.Readlink(proc + "/exe"); err != nil || !strings.HasPrefix(exe, "/memfd:cri-monitor") {
		t.Error(exe, err)
	}
	if sid, err := unix.Getsid(m.child); err != nil || sid != m.child {
		t.Error("session", sid, err)
	}
	if cwd, err := os.Readlink(proc + "/cwd"); err != nil || cwd != "/" {
		t.Error(cwd, err)
	}
}

func TestOOMCounter(t *testing.T) {
	tests := map[string]struct {
		text string
		want bool
	}{
		"v2 none":          {"low 0\nhigh 0\nmax 4\noom 2\noom_kill 0\noom_group_kill 0\n", false},
		"v2 killed":        {"low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n", true},
		"v1 none":          {"oom_kill_disable 1\nunder_oom 0\noom_kill 0\n", false},
		"v1 killed":        {"oom_kill_disable 0\nunder_oom 0\noom_kill 12\n", true},
		"empty":            {"", false},
		"other key":        {"xoom_kill 3\noom_killer 4\n", false},
		"cut short":        {"oom_kill ", false},
		"no number":        {"oom_kill x\n", false},
		"first":            {"oom_kill 5", true},
		"huge":             {"oom_kill 99999999999999999999999999\n", true},
		"multiple of 2^32": {"oom_kill 4294967296\n", true},
	}
	each(t, func(t *testing.T, bin *Binary) {
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				b := newBox(t)
				l := b.launch(initProgram("/bin/busybox", "true"))
				l.OOM = b.file("events", test.text)
				if e := b.finish(started(t, bin, l)); e.OOMKilled != test.want {
					t.Errorf("%+v", e)
				}
			})
		}
	})
}
