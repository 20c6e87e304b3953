package conmon

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// cgroup makes a cgroup for the test below the first of the mounts that is
// there.
func cgroup(t *testing.T, mounts ...string) (path, name string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, mount := range mounts {
		path, err := os.MkdirTemp(mount, "conmon-test-") //nolint:usetesting // a cgroup lies below its mount
		if err != nil {
			continue
		}
		t.Cleanup(func() {
			for err := unix.Rmdir(path); err != nil; err = unix.Rmdir(path) {
				if !errors.Is(err, unix.EBUSY) || t.Failed() {
					t.Errorf("remove %s: %v", path, err)
					return
				}
			}
		})
		return path, "/" + filepath.Base(path)
	}
	t.Skipf("needs a writable cgroup mount among %v", mounts)
	return "", ""
}

func inCgroup(t *testing.T, pid int, name string) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(text), name+"\n")
}

// v2: monitor and container are born in their cgroups, which costs no grace
// period.
func TestCgroupV2(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		own, ownName := cgroup(t, "/sys/fs/cgroup/unified", "/sys/fs/cgroup")
		if _, err := os.Stat(filepath.Join(own, "cgroup.procs")); err != nil {
			t.Skip("needs cgroup v2")
		}
		container, name := cgroup(t, filepath.Dir(own))
		b := newBox(t)
		p := initProgram("/bin/busybox", "sleep", "1000")
		p.cgroup = 8
		l := b.launch(p)
		var err error
		if l.MonitorCgroup, err = os.Open(own); err != nil {
			t.Fatal(err)
		}
		defer l.MonitorCgroup.Close()
		dir, err := os.Open(container)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		l.Files = []*os.File{dir}
		m := started(t, bin, l)
		if !inCgroup(t, m.child, ownName) || !inCgroup(t, m.PID(), name) {
			t.Error("not in their cgroups")
		}
		e, err := m.Exec(testContext(t), ExecRequest{Program: p.forExec(), Files: []*os.File{dir}})
		if err != nil {
			t.Fatal(err)
		}
		if !inCgroup(t, e.PID(), name) {
			t.Error("exec is not in the cgroup")
		}
		if err := e.Kill(testContext(t), unix.SIGKILL); err != nil {
			t.Error(err)
		}
	})
}

// forExec is the program without READY.
func (p *testProgram) forExec() *testProgram {
	q := *p
	q.steps = nil
	for _, s := range p.steps {
		if s.nr != opReady {
			q.steps = append(q.steps, s)
		}
	}
	return &q
}

// v1: the monitor moves itself, before its container is there.
func TestPlaceV1(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		path, name := cgroup(t, "/sys/fs/cgroup/pids", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/freezer")
		tasks, err := os.OpenFile(filepath.Join(path, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			t.Skip("needs cgroup v1")
		}
		defer tasks.Close()
		for range 2 { // the file is used again
			b := newBox(t)
			l := b.launch(initProgram("/bin/busybox", "sleep", "1000"))
			l.Place = []*os.File{tasks}
			m := started(t, bin, l)
			if !inCgroup(t, m.child, name) || !inCgroup(t, m.PID(), name) {
				t.Error("not in the cgroup")
			}
		}
	})
}

// The kernel's own word on who was killed for want of memory.
func TestOOMKill(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		path, _ := cgroup(t, "/sys/fs/cgroup/memory")
		if err := os.WriteFile(filepath.Join(path, "memory.limit_in_bytes"), []byte("8388608"), 0); err != nil {
			t.Skipf("needs a memory limit: %v", err)
		}
		tasks, err := os.OpenFile(filepath.Join(path, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer tasks.Close()
		oom, err := os.Open(filepath.Join(path, "memory.oom_control"))
		if err != nil {
			t.Fatal(err)
		}
		defer oom.Close()
		b := newBox(t)
		p := newProgram()
		p.call("join", unix.SYS_WRITE, slot(8), p.text("0"), value(1))
		p.stdio().ready().execve(shell("x=$(head -c 50000000 /dev/zero | tr '\\0' x); echo ${#x}")...)
		l := b.launch(p)
		l.Files, l.OOM = []*os.File{tasks}, oom
		if e := b.finish(started(t, bin, l)); !e.OOMKilled {
			t.Errorf("%+v, %q", e, b.logged())
		}
	})
}
