package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRate(t *testing.T) {
	var r rate
	const s = int64(time.Second)
	start := time.Unix(0, 0) // without a monotonic reading, as if the clock's were the only one
	for i, step := range []struct {
		at    int64
		usage uint64
		cores uint64
		known bool
	}{
		{1000 * s, 5e9, 0, false},       // the first
		{1001 * s, 6e9, 1e9, true},      // one core
		{1001*s + 1e6, 7e9, 1e9, true},  // too soon: the last one again
		{1003 * s, 6.5e9, .25e9, true},  // the window begins at the last that counted
		{1004 * s, 1e9, 0, false},       // a new counter
		{1014 * s, 200e9, 19.9e9, true}, // many cores
		{2000 * s, 201e9, 0, false},     // too long ago
		{1000 * s, 202e9, 0, false},     // before the last: never negative, and not the old rate for ever
		{1001 * s, 203e9, 1e9, true},
	} {
		if cores, known := r.add(start.Add(time.Duration(step.at)), step.usage); cores != step.cores || known != step.known {
			t.Errorf("step %d: %d, %v", i, cores, known)
		}
	}
}

func TestParseNetDev(t *testing.T) {
	const heading = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n"
	got := parseNetDev([]byte(heading +
		"    lo:      10       1    0    0    0     0          0         0       20       2    0    0    0     0       0          0\n" +
		"  eth0: 18446744073709551615 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n" +
		"bad\xff: 9 8 7 6 0 0 0 0 5 4 3 2 0 0 0 0\n" + "short: 1 2 3\nwrong: x 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\n:\n"))
	want := []Interface{
		{Name: "lo", RxBytes: 10, RxPackets: 1, TxBytes: 20, TxPackets: 2},
		{Name: "eth0", RxBytes: 18446744073709551615, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 9, TxPackets: 10, TxErrors: 11, TxDropped: 12},
		{Name: "bad\uFFFD", RxBytes: 9, RxPackets: 8, RxErrors: 7, RxDropped: 6, TxBytes: 5, TxPackets: 4, TxErrors: 3, TxDropped: 2},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}

func FuzzNetDev(f *testing.F) {
	data, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("a:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if list := parseNetDev(data); len(list) > strings.Count(string(data), ":") {
			t.Errorf("%+v", list)
		}
	})
}

func TestUsage(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	b := f.pod()
	c := f.run(b, "c", "sh", "-c", "i=0; while test $i -lt 20000; do i=$((i+1)); done; echo counted; "+forever)
	deadline := time.After(20 * time.Second)
	for {
		log, err := os.ReadFile(c.Status().LogPath)
		if err == nil && strings.Contains(string(log), "counted") {
			break
		}
		select {
		case <-deadline:
			t.Fatal("it does not count")
		case <-time.After(10 * time.Millisecond):
		}
	}
	u, err := c.Usage(true)
	if err != nil {
		t.Fatal(err)
	}
	if !u.CPU.Known || u.CPU.Usage == 0 || !u.Memory.Known || u.Memory.Usage == 0 || u.Memory.PageFaults == 0 || u.Processes < 1 || u.Pids.Current < 1 || !strings.HasSuffix(u.Cgroup, c.id) {
		t.Errorf("%+v", u)
	}
	if files := CountFiles(u.PIDs); files.Files < 3 || !files.SocketsKnown {
		t.Errorf("%+v", files)
	}
	if limit, ok := FileLimit(c.Status().PID); !ok || limit == 0 {
		t.Error("no limit of files")
	}
	pod, err := b.Usage(u)
	if err != nil || pod.CPU.Usage < u.CPU.Usage || pod.Processes < u.Processes {
		t.Errorf("pod: %+v, %v", pod, err)
	}
	if list, err := b.Interfaces(); list != nil || err != nil {
		t.Errorf("a pod on the host's network: %v, %v", list, err)
	}
	// Looks at a container while it goes away see it, a part of it or ErrNotFound.
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for {
				_, err := c.Usage(true)
				if errors.Is(err, ErrNotFound) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	if openBelow(t, c.id) == 0 {
		t.Error("no file is kept open")
	}
	if err := c.Remove(ctx); err != nil {
		t.Error(err)
	}
	wait.Wait()
	if n := openBelow(t, c.id); n != 0 {
		t.Errorf("%d files of a container that has exited are open", n)
	}
	if err := b.Stop(ctx); err != nil {
		t.Error(err)
	}
	if n := openBelow(t, filepath.Base(pod.Cgroup)); n != 0 {
		t.Errorf("%d files of a stopped pod are open", n)
	}
}

// openBelow counts this process's open files of a cgroup with that name.
func openBelow(t *testing.T, name string) (n int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, "/sys/fs/cgroup/") && strings.Contains(to, name) {
			n++
		}
	}
	return n
}

// However its processes are counted, a pod has as many as its containers.
func TestUsageProcesses(t *testing.T) {
	f := setUp(t)
	b := f.pod()
	one := f.run(b, "one", "sleep", "1000")
	two := f.run(b, "two", "sh", "-c", "sleep 1000 & exec sleep 1000")
	deadline := time.After(20 * time.Second)
	for {
		if u, err := two.Usage(true); err != nil {
			t.Fatal(err)
		} else if u.Processes == 2 {
			break
		}
		select {
		case <-deadline:
			t.Fatal("it has one process only")
		case <-time.After(10 * time.Millisecond):
		}
	}
	for _, detail := range []bool{true, false} {
		u1, err1 := one.Usage(detail)
		u2, err2 := two.Usage(detail)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if detail && (!slices.Equal(u1.PIDs, []int{one.Status().PID}) || !slices.Contains(u2.PIDs, two.Status().PID)) {
			t.Errorf("processes %v and %v", u1.PIDs, u2.PIDs)
		}
		for _, seen := range [][]*Usage{nil, {u1}, {u1, u2}} {
			if pod, err := b.Usage(seen...); err != nil || pod.Processes != 3 {
				t.Errorf("after a look at %d containers: %+v, %v", len(seen), pod, err)
			}
		}
	}
}

// A container that is frozen, and a monitor that is, don't hold up a look at them.
func TestUsageOfFrozen(t *testing.T) {
	f := setUp(t)
	b := f.pod()
	c := f.run(b, "c", "sh", "-c", forever)
	monitor := parent(t, c.Status().PID)
	for _, pid := range []int{monitor, c.Status().PID} {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGCONT) })
	}
	if err := b.verb.lock(context.Background(), "test"); err != nil {
		t.Fatal(err)
	}
	u, err := c.Usage(true)
	if err != nil || !u.Memory.Known || CountFiles(u.PIDs).Files == 0 {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := b.Usage(); err != nil {
		t.Error(err)
	}
	b.verb.unlock()
	for _, pid := range []int{monitor, c.Status().PID} {
		if err := unix.Kill(pid, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
}

func TestInterfaces(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	b, err := f.store.Run(ctx, f.podConfig("net", runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER), "")
	if err != nil {
		t.Fatal(err)
	}
	c := f.run(b, "c", "sh", "-c", forever)
	for range 2 {
		list, err := b.Interfaces()
		if err != nil || len(list) != 1 || list[0].Name != "lo" {
			t.Fatalf("%+v, %v", list, err)
		}
	}
	if n := f.store.netFiles.Load(); n != 1 {
		t.Errorf("%d files are kept open", n)
	}
	// Names sort as CRI wants them: the main one, the others, loopback.
	if rank("eth0") >= rank("net1") || rank("net1") >= rank("lo") {
		t.Error("order")
	}
	if err := errors.Join(c.Stop(ctx, 0), b.Stop(ctx)); err != nil {
		t.Fatal(err)
	}
	if list, err := b.Interfaces(); list != nil || err != nil {
		t.Errorf("after the stop: %+v, %v", list, err)
	}
	if n := f.store.netFiles.Load(); n != 0 {
		t.Errorf("%d files are kept open after the stop", n)
	}
}

// The exit that an event tells names the OOM kill, however the two race.
func TestOOMKilledInEvent(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	b := f.pod()
	sub := f.subscribe()
	const n = 4
	for i := range n {
		config := containerConfig("oom"+string(rune('a'+i)), runtimeapi.NamespaceMode_CONTAINER, "busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
		config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 24 << 20}
		c, err := b.CreateContainer(ctx, config, f.image)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for stopped := 0; stopped < n; {
		e := f.next(sub)
		if e.Kind != eventStopped {
			continue
		}
		stopped++
		for _, st := range e.Containers {
			if st.ID == e.ID && (st.Reason != reasonOOMKilled || st.ExitCode != 137) {
				t.Errorf("%s, code %d", st.Reason, st.ExitCode)
			}
		}
	}
}

func TestVolume(t *testing.T) {
	f := setUp(t)
	v, err := f.store.Volume()
	if err != nil || v.Bytes == 0 || !strings.Contains(v.Device, ":") {
		t.Errorf("%+v, %v", v, err)
	}
}
