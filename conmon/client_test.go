package conmon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestConnectAgain(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		first, err := bin.Launch(ctx, b.launch(initProgram(shell("echo on; exec sleep 1000")...)))
		if err != nil {
			t.Fatal(err)
		}
		ended := watchEnd(t, first.child)
		pid := first.PID()
		first.Close()
		<-first.Done()
		if _, err := first.Exit(); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
		if _, err := first.Status(ctx); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
		// As a daemon that was killed and started again.
		m, err := bin.Connect(ctx, b.dir)
		if err != nil {
			t.Fatal(err)
		}
		if m.State() != StateCreated || m.PID() != pid || m.CreatedAt() != first.CreatedAt() {
			t.Error(m.State(), m.PID(), m.CreatedAt())
		}
		at, err := m.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var others []*Monitor
		for range 10 {
			o, err := bin.Connect(ctx, b.dir)
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			if o.State() != StateRunning || o.PID() != pid || o.StartedAt() != at {
				t.Error(o.State(), o.PID(), o.StartedAt())
			}
			others = append(others, o)
		}
		if err := m.Kill(ctx, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		want := b.finish(m)
		for _, o := range others {
			if got := b.finish(o); got != want {
				t.Error(got)
			}
		}
		ended()
		first.reap()
		m.Close()
		if _, err := bin.Connect(ctx, b.dir); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
		if err := m.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
}

// Nobody is connected when the container exits; the record tells.
func TestExitAlone(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		m, err := bin.Launch(ctx, b.launch(initProgram(shell("read x; echo end; exit 9")...)))
		if err != nil {
			t.Fatal(err)
		}
		ended := watchEnd(t, m.child)
		if _, err := m.Start(ctx); err != nil {
			t.Fatal(err)
		}
		m.Close()
		ended()
		m.reap()
		if e, err := ReadExit(b.dir); err != nil || e.Code != 9 || b.logged() != "end\n" {
			t.Error(e, err, b.logged())
		}
	})
}

// The record cannot be written: the monitor stays until it has told somebody.
func TestExitWithoutRecord(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		// Where the temporary file should be.
		if err := os.Mkdir(filepath.Join(b.dir, "exit.new"), 0o700); err != nil {
			t.Fatal(err)
		}
		fifo := filepath.Join(b.dir, "fifo")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := bin.Launch(ctx, b.launch(initProgram(shell("read x < "+fifo+"; exit 9")...)))
		if err != nil {
			t.Fatal(err)
		}
		ended := watchEnd(t, m.child)
		conn := rawDial(t, b.dir) // says no HELLO, so it is told nothing
		defer unix.Close(conn.fd)
		init := watchEnd(t, m.PID())
		if _, err := m.Start(ctx); err != nil {
			t.Fatal(err)
		}
		open := openFDs(t, m.child)
		m.Close()
		settle(t, m.child, open-1)
		if err := os.WriteFile(fifo, []byte("x\n"), 0); err != nil {
			t.Fatal(err)
		}
		init()
		again, err := bin.Connect(ctx, b.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		<-again.Done()
		if e, err := again.Exit(); err != nil || e.Code != 9 {
			t.Error(e, err)
		}
		ended()
		m.reap()
	})
}

// Where the directory of the record was removed so was the container: nobody
// will ask how it ended, and its monitor does not wait for them.
func TestExitOfRemoved(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		gone := filepath.Join(b.dir, "gone")
		if err := os.Mkdir(gone, 0o700); err != nil {
			t.Fatal(err)
		}
		dir, err := os.Open(gone)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		l := b.launch(initProgram(shell("true")...))
		l.ExitDir = dir
		m, err := bin.Launch(ctx, l)
		if err != nil {
			t.Fatal(err)
		}
		ended := watchEnd(t, m.child)
		if err := os.Remove(gone); err != nil {
			t.Fatal(err)
		}
		init := m.PID()
		m.Close()
		if err := unix.Kill(init, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		ended()
		m.reap()
		if ctx.Err() != nil {
			t.Error(ctx.Err())
		}
	})
}

func TestMonitorKilled(t *testing.T) {
	for _, state := range []string{"created", "running"} {
		t.Run(state, func(t *testing.T) {
			b, ctx := newBox(t), testContext(t)
			m, err := testBinary(t).Launch(ctx, b.launch(initProgram("/bin/busybox", "sleep", "1000")))
			if err != nil {
				t.Fatal(err)
			}
			pid := m.PID()
			ended := watchEnd(t, pid)
			if state == "running" {
				if _, err := m.Start(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Kill(m.child, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-m.Done()
			if _, err := m.Exit(); !errors.Is(err, ErrGone) {
				t.Error(err)
			}
			if err := m.Kill(ctx, unix.SIGKILL); !errors.Is(err, ErrGone) {
				t.Error(err)
			}
			m.Close()
			if state == "running" { // what the daemon does through the cgroup
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			ended() // a created one has nobody to live for
			m.reap()
		})
	}
}

// A stopped monitor holds nobody up longer than the caller allows.
func TestMonitorStopped(t *testing.T) {
	b := newBox(t)
	m := started(t, testBinary(t), b.launch(initProgram("/bin/busybox", "sleep", "1000")))
	if err := unix.Kill(m.child, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	c, err := m.send(&packet{kind: typeStatus}, nil)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := m.wait(ctx, c); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for i := 0; !errors.Is(err, ErrBusy); i++ {
		if _, err = m.send(&packet{kind: typeStatus}, nil); i > 100_000 || (err != nil && !errors.Is(err, ErrBusy)) {
			t.Fatal(err)
		}
	}
	if err := unix.Kill(m.child, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// With so many answers at one time, it may take this client for a deaf one.
	for err = ErrBusy; errors.Is(err, ErrBusy) || errors.Is(err, ErrLost); {
		_, err = m.Status(testContext(t))
	}
	if err != nil {
		t.Error(err)
	}
}

// A monitor that drops a connection is found again.
func TestConnectionDropped(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		m := started(t, bin, b.launch(initProgram("/bin/busybox", "sleep", "1000")))
		e, err := m.Exec(ctx, ExecRequest{Program: execProgram("/bin/busybox", "sleep", "1000"), KillOnHangup: true})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := m.conn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Wait(ctx); !errors.Is(err, ErrLost) {
			t.Error(err)
		}
		if _, err = m.Status(ctx); err != nil {
			t.Fatal(err)
		}
		if err := m.Kill(ctx, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		b.finish(m)
	})
}

// Background processes of a container without a PID namespace end up with
// the monitor, which buries them, and SHUTDOWN does not wait for them.
func TestShutdownWithOrphans(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		m := created(t, bin, b.launch(initProgram(shell("sleep 1000 & echo $!; usleep 1 & exit 0")...)))
		ended := watchEnd(t, m.child)
		if _, err := m.Start(ctx); err != nil {
			t.Fatal(err)
		}
		b.finish(m)
		orphan, err := strconv.Atoi(strings.TrimSpace(b.logged()))
		if err != nil {
			t.Fatal(err)
		}
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(orphan) + "/stat")
		if err != nil || strings.Fields(string(stat))[3] != strconv.Itoa(m.child) {
			t.Errorf("%s, %v; want it with %d", stat, err, m.child)
		}
		if err := m.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		ended()
		_ = unix.Kill(orphan, unix.SIGKILL)
	})
}

func TestNothingLeaks(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		m := started(t, bin, b.launch(initProgram("/bin/busybox", "sleep", "1000")))
		join := execProgram("/bin/busybox", "true")
		join.pidns = 3
		programs := []Program{execProgram("/bin/busybox", "true"), execProgram("/nonexistent"), join}
		run := func(i int) {
			e, err := m.Exec(ctx, ExecRequest{Program: programs[i%3], Files: []*os.File{b.exitDir, b.log}})
			if err != nil {
				if !errors.Is(err, unix.ENOENT) {
					t.Error(err)
				}
				return
			}
			if _, err := e.Wait(ctx); err != nil {
				t.Error(err)
			}
		}
		for i := range 3 {
			run(i)
		}
		before, own := openFDs(t, m.child), openFDs(t, os.Getpid())
		var wg sync.WaitGroup
		for worker := range 10 {
			wg.Go(func() {
				for i := range 100 {
					run(worker + i)
				}
			})
		}
		wg.Wait()
		settle(t, m.child, before)
		if after := openFDs(t, os.Getpid()); after != own {
			t.Errorf("the client holds %d descriptors, %d before", after, own)
		}
		if n := len(m.calls); n != 0 {
			t.Errorf("%d calls are left", n)
		}
	})
}

// pss is the memory that a process accounts for, in KiB.
func pss(t testing.TB, pid int) float64 {
	t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps")
	if err != nil {
		t.Fatal(err)
	}
	total := 0.0
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
			n, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			total += n
		}
	}
	return total
}

// An idle monitor is small, also after a burst of output and of execs.
func TestMemory(t *testing.T) {
	bin, ctx := testBinary(t), testContext(t)
	const n, limit = 20, 16.0
	monitors := make([]*Monitor, n)
	for i := range monitors {
		b := newBox(t)
		monitors[i] = started(t, bin, b.launch(initProgram(shell("seq 1 100000; seq 1 100000 >&2; exec sleep 1000")...)))
		awaitLog(b, "\n100000\n")
		for range 5 {
			e, err := monitors[i].Exec(ctx, ExecRequest{Program: execProgram("/bin/busybox", "true")})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := e.Wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	for {
		sum := 0.0
		for _, m := range monitors {
			sum += pss(t, m.child)
		}
		if sum/n < limit {
			t.Logf("%.1f KiB PSS per monitor", sum/n)
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%.1f KiB PSS per monitor", sum/n)
		}
	}
}
