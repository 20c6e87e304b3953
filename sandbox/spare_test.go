package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/conmon"
)

// awaitSpare waits for the spare monitor and returns it.
func (f *fixture) awaitSpare() *conmon.Pending {
	f.t.Helper()
	s := &f.store.spare
	end := time.Now().Add(time.Minute)
	for tick := time.NewTicker(time.Millisecond); ; <-tick.C {
		s.mu.Lock()
		p := s.pending
		s.mu.Unlock()
		if p != nil && exists(f.store.state(spareDir, "monitor.sock")) {
			return p
		}
		if time.Now().After(end) {
			f.t.Fatal("there is no spare monitor")
		}
	}
}

func (f *fixture) monitorOf(c *Container) int {
	f.t.Helper()
	pids, err := f.store.monitors.cgroup.Procs()
	if err != nil {
		f.t.Fatal(err)
	}
	var own unix.Stat_t
	if err := unix.Stat(c.root(), &own); err != nil {
		f.t.Fatal(err)
	}
	for _, pid := range pids {
		if holdsOpen(pid, c.id, &own) {
			return pid
		}
	}
	f.t.Fatal("the container has no monitor")
	return 0
}

// A container gets the monitor that is ready, which lives where the others do, and
// the next one is started when it is taken.
func TestSpare(t *testing.T) {
	f := setUp(t)
	b := f.pod()
	first := f.run(b, "first", "sh", "-c", forever)
	spare := f.awaitSpare()
	for _, kind := range []string{"memory", "pids"} {
		want := cgroupOf(t, f.monitorOf(first), kind)
		if got := cgroupOf(t, spare.PID(), kind); got != want || !strings.Contains(got, "/monitors-") {
			t.Errorf("%s: the spare is in %s, others in %s", kind, got, want)
		}
	}
	second := f.run(b, "second", "sh", "-c", forever)
	if pid := f.monitorOf(second); pid != spare.PID() {
		t.Errorf("the second container has monitor %d, the spare was %d", pid, spare.PID())
	}
	if next := f.awaitSpare(); next.PID() == spare.PID() {
		t.Error("no spare was started for the one that was taken")
	}
	// The next daemon finds it where it is now.
	f.restart()
	c, err := f.store.Container(second.id)
	if err != nil || c.Status().State != stateRunning {
		t.Error("after a restart:", err)
	}
}

// cgroupOf returns a process's place in the hierarchy of a controller, or in v2's.
func cgroupOf(t *testing.T, pid int, controller string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	unified := ""
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if strings.Contains(","+parts[1]+",", ","+controller+",") {
			return parts[2]
		}
		if parts[1] == "" {
			unified = parts[2]
		}
	}
	return unified
}

// A spare that has died is no container's, and nobody waits for it.
func TestSpareDies(t *testing.T) {
	f := setUp(t)
	b := f.pod()
	f.create(b, "first", "true")
	spare := f.awaitSpare()
	if err := unix.Kill(spare.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); spare.Alive(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("its end is not seen")
		}
	}
	second := f.run(b, "second", "sh", "-c", forever)
	if pid := f.monitorOf(second); pid == spare.PID() {
		t.Error("the second container has a dead monitor")
	}
	f.awaitSpare()
}

// Of a spare whose daemon was killed only the directory is left, until the next one starts.
func TestSpareOfLastDaemon(t *testing.T) {
	f := setUp(t)
	f.create(f.pod(), "first", "true")
	spare := f.awaitSpare()
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(spare.PID(), 0); !errors.Is(err, unix.ESRCH) {
		t.Error("after Close the spare is there:", err)
	}
	dir := f.store.state(spareDir)
	if exists(dir) {
		t.Error("after Close its directory is there")
	}
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "monitor.sock"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	f.open()
	if exists(dir) {
		t.Error("the last daemon's spare was not taken away")
	}
	f.create(f.pod(), "second", "true")
	f.awaitSpare()
}
