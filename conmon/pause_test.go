package conmon

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func pauseProgram() *testProgram {
	p := newProgram().ready()
	p.call("reap", opReap)
	return p
}

// pause starts a cri-pause that ends with the test.
func pause(t *testing.T, bin *Binary) int {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	pid, err := bin.Pause(testContext(t), &Pause{Program: pauseProgram()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
	})
	return pid
}

func TestPause(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
			pid := pause(t, bin)
			text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(text), "Name:\tcri-pause\n") || !strings.Contains(string(text), "\nNSpid:\t"+strconv.Itoa(pid)+"\t1\n") {
				t.Errorf("%s", text)
			}
			cmdline, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
			if string(cmdline) != "cri-pause\x000\x00" {
				t.Errorf("%q", cmdline)
			}
			settle(t, pid, 3)
			if err := unix.Kill(pid, sig); err != nil {
				t.Fatal(err)
			}
			var status unix.WaitStatus
			if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || !status.Exited() || status.ExitStatus() != 0 {
				t.Errorf("%v: %v, %v", sig, status, err)
			}
		}
	})
}

// Containers in the namespace of a cri-pause leave their orphans to it.
func TestPauseReaps(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		pid := pause(t, bin)
		ns, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/pid")
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		for range 3 {
			b := newBox(t)
			p := initProgram(shell("echo $$; for i in 1 2 3; do (sleep 0.01 &) ; done; exec sleep 0.1")...)
			p.pidns = 8
			l := b.launch(p)
			l.Files = []*os.File{ns}
			b.finish(started(t, bin, l))
			if n, err := strconv.Atoi(strings.TrimSpace(b.logged())); err != nil || n > 100 {
				t.Error("pid", n, err)
			}
		}
		ctx := testContext(t)
		path := "/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(pid) + "/children"
		for {
			children, err := os.ReadFile(path)
			if err != nil || ctx.Err() != nil {
				t.Fatalf("%s left, %v", children, err)
			}
			if len(children) == 0 {
				return
			}
		}
	})
}

func TestPauseFails(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	each(t, func(t *testing.T, bin *Binary) {
		missing := newProgram()
		missing.call("open it", unix.SYS_OPENAT, value(^uint64(99)), missing.text("/nonexistent"), value(0))
		var step *StepError
		_, err := bin.Pause(testContext(t), &Pause{Program: missing})
		if !errors.As(err, &step) || step.Errno != unix.ENOENT || !strings.Contains(err.Error(), "open it: no such file") {
			t.Error(err)
		}
		bad := newProgram().ready()
		bad.alter = func(b []byte) { b[0]++ }
		if _, err := bin.Pause(testContext(t), &Pause{Program: bad}); !errors.Is(err, ErrProtocol) {
			t.Error(err)
		}
		if _, err := bin.Pause(testContext(t), &Pause{Program: newProgram().execve("/bin/busybox", "true")}); err == nil {
			t.Error("a program that is never ready passes")
		}
		hangs := newProgram()
		hangs.call("hang", unix.SYS_PPOLL, value(0), value(0), value(0), value(0), value(0))
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := bin.Pause(ctx, &Pause{Program: hangs}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		files := newProgram()
		files.call("slot", unix.SYS_WRITE, slot(9), files.text("x"), value(1))
		files.ready()
		files.call("reap", opReap)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		pid, err := bin.Pause(testContext(t), &Pause{Program: files, Files: []*os.File{r, w}})
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		one := make([]byte, 2)
		if n, err := r.Read(one); n != 1 || err != nil {
			t.Error(n, err)
		}
		_ = unix.Kill(pid, unix.SIGTERM)
		_, _ = unix.Wait4(pid, nil, 0, nil)
	})
}

// With cgroup v1 a cri-pause has a file for each hierarchy; as many as there can be leave its executable alone.
func TestPauseWithManyFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	each(t, func(t *testing.T, bin *Binary) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		files := newProgram()
		files.call("last slot", unix.SYS_WRITE, slot(slots-1), files.text("x"), value(1))
		files.ready()
		files.call("reap", opReap)
		pid, err := bin.Pause(testContext(t), &Pause{Program: files, Files: slices.Repeat([]*os.File{w}, slots-slotFiles)})
		w.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = unix.Wait4(pid, nil, 0, nil) }()
		defer func() { _ = unix.Kill(pid, unix.SIGKILL) }()
		if n, err := r.Read(make([]byte, 2)); n != 1 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}
