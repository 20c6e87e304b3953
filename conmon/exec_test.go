package conmon

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExec(t *testing.T) {
	tests := map[string]struct {
		argv   []string
		input  string
		kill   unix.Signal
		want   Exit
		stdout string
	}{
		"success":   {argv: shell("echo out"), stdout: "out\n"},
		"exit code": {argv: shell("exit 42"), want: Exit{Code: 42}},
		"signal":    {argv: shell("kill -9 $$"), want: Exit{Code: 137, Signal: unix.SIGKILL}},
		"stdin":     {argv: []string{"/bin/busybox", "rev"}, input: "abc\n", stdout: "cba\n"},
		"killed":    {argv: []string{"/bin/busybox", "sleep", "1000"}, kill: unix.SIGTERM, want: Exit{Code: 143, Signal: unix.SIGTERM}},
		"no fds":    {argv: shell("ls /proc/self/fd | wc -l"), stdout: "4\n"},
	}
	each(t, func(t *testing.T, bin *Binary) {
		m := started(t, bin, newBox(t).launch(initProgram("/bin/busybox", "sleep", "1000")))
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				b, ctx := newBox(t), testContext(t)
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				e, err := m.Exec(ctx, ExecRequest{Program: execProgram(test.argv...), Stdin: b.file("in", test.input), Stdout: w})
				w.Close()
				if err != nil {
					t.Fatal(err)
				}
				if test.kill != 0 {
					if err := e.Kill(ctx, test.kill); err != nil {
						t.Fatal(err)
					}
				}
				out, err := io.ReadAll(r)
				if err != nil || string(out) != test.stdout {
					t.Errorf("%q, %v", out, err)
				}
				got, err := e.Wait(ctx)
				if err != nil || e.PID() <= 0 || got.StartedAt == 0 || got.FinishedAt < got.StartedAt {
					t.Error(e.PID(), got, err)
				}
				got.StartedAt, got.FinishedAt = 0, 0
				if got != test.want {
					t.Errorf("got %+v, want %+v", got, test.want)
				}
				if err := e.Kill(ctx, unix.SIGKILL); !errors.Is(err, ErrState) || !errors.Is(err, unix.ESRCH) {
					t.Error("kill after the end:", err)
				}
			})
		}
	})
}

func TestExecFails(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		m := created(t, bin, b.launch(initProgram("/bin/busybox", "sleep", "1000")))
		if _, err := m.Exec(ctx, ExecRequest{Program: execProgram("/bin/busybox", "true")}); !errors.Is(err, ErrState) {
			t.Error("before START:", err)
		}
		if _, err := m.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Start(ctx); !errors.Is(err, ErrState) {
			t.Error("second START:", err)
		}
		if err := m.Shutdown(ctx); !errors.Is(err, ErrState) || !errors.Is(err, unix.EBUSY) {
			t.Error("SHUTDOWN while running:", err)
		}
		if err := m.Kill(ctx, 65); !errors.Is(err, unix.EINVAL) {
			t.Error("signal 65:", err)
		}
		for path, code := range map[string]int32{"/nonexistent": 127, "/etc/passwd": 126, "/etc/passwd/x": 127} {
			var step *StepError
			_, err := m.Exec(ctx, ExecRequest{Program: execProgram(path)})
			if !errors.As(err, &step) || step.ExitCode() != code || !strings.Contains(err.Error(), "execve "+path) {
				t.Errorf("%s: %v", path, err)
			}
		}
		if _, err := m.Exec(ctx, ExecRequest{Program: newProgram().ready().execve("/bin/busybox")}); !errors.Is(err, ErrProtocol) {
			t.Error("READY in an exec program:", err)
		}
		if err := m.Kill(ctx, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		b.finish(m)
		if _, err := m.Exec(ctx, ExecRequest{Program: execProgram("/bin/busybox", "true")}); !errors.Is(err, ErrState) && !errors.Is(err, ErrGone) {
			t.Error("after the exit:", err)
		}
	})
}

// An exec joins the PID namespace of init, and no other child does.
func TestExecJoinsNamespaces(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		ctx := testContext(t)
		p := initProgram("/bin/busybox", "sleep", "1000")
		p.cloneFlags = unix.CLONE_NEWPID | unix.CLONE_NEWUTS
		m := started(t, bin, newBox(t).launch(p))
		inside := newProgram().stdio()
		inside.pidns = 3
		inside.call("setns", unix.SYS_SETNS, slot(3), value(unix.CLONE_NEWUTS))
		inside.execve(shell("echo $$")...)
		outside := execProgram(shell("echo $$")...)
		for i := range 4 {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			program := inside
			if i%2 == 1 {
				program = outside
			}
			e, err := m.Exec(ctx, ExecRequest{Program: program, Stdout: w})
			w.Close()
			if err != nil {
				t.Fatal(err)
			}
			out, _ := io.ReadAll(r)
			r.Close()
			pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
			if err != nil || (pid == e.PID()) != (i%2 == 1) || (i%2 == 0 && pid > 10) {
				t.Errorf("pid %d is %q to itself", e.PID(), out)
			}
			if _, err := e.Wait(ctx); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestExecConcurrent(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		ctx := testContext(t)
		m := started(t, bin, newBox(t).launch(initProgram("/bin/busybox", "sleep", "1000")))
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				e, err := m.Exec(ctx, ExecRequest{Program: execProgram(shell("exit " + strconv.Itoa(i))...)})
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := e.Wait(ctx); err != nil || got.Code != int32(i) {
					t.Error(i, got, err)
				}
			})
		}
		wg.Wait()
	})
}

func TestExecLimit(t *testing.T) {
	ctx := testContext(t)
	p := initProgram("/bin/busybox", "sleep", "1000")
	m := started(t, testBinary(t), newBox(t).launch(p))
	sleep := ExecRequest{Program: execProgram("/bin/busybox", "sleep", "1000"), KillOnHangup: true}
	var all []*Exec
	for {
		e, err := m.Exec(ctx, sleep)
		if err != nil {
			if !errors.Is(err, unix.EAGAIN) || !strings.Contains(err.Error(), "too many exec") {
				t.Fatal(err)
			}
			break
		}
		all = append(all, e)
	}
	if len(all) != 256 {
		t.Error(len(all))
	}
	for _, e := range all {
		if err := e.Kill(ctx, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range all {
		if got, err := e.Wait(ctx); err != nil || got.Signal != unix.SIGKILL {
			t.Fatal(got, err)
		}
	}
	e, err := m.Exec(ctx, ExecRequest{Program: execProgram("/bin/busybox", "true")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Wait(ctx); err != nil {
		t.Error(err)
	}
}

func TestExecHangup(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		m := started(t, bin, b.launch(initProgram("/bin/busybox", "sleep", "1000")))
		other, err := bin.Connect(ctx, b.dir)
		if err != nil {
			t.Fatal(err)
		}
		sleep := execProgram("/bin/busybox", "sleep", "1000")
		stays, err := other.Exec(ctx, ExecRequest{Program: sleep})
		if err != nil {
			t.Fatal(err)
		}
		goes, err := other.Exec(ctx, ExecRequest{Program: sleep, KillOnHangup: true})
		if err != nil {
			t.Fatal(err)
		}
		ended := watchEnd(t, goes.PID())
		other.Close()
		if _, err := stays.Wait(ctx); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
		ended()
		if err := unix.Kill(stays.PID(), 0); err != nil {
			t.Error("killed without the flag:", err)
		}
		_ = unix.Kill(stays.PID(), unix.SIGKILL)
		if _, err := m.Status(ctx); err != nil {
			t.Error(err)
		}
	})
}

// A command that never comes to run ends with its request.
func TestExecCancelled(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		m := started(t, bin, b.launch(initProgram("/bin/busybox", "sleep", "1000")))
		fifo := filepath.Join(b.dir, "fifo")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		p := newProgram()
		p.call("getpid", unix.SYS_GETPID).save = 20
		p.call("write", unix.SYS_WRITE, slot(1), p.text("x"), value(1))
		p.call("open", unix.SYS_OPENAT, value(^uint64(99)), p.text(fifo), value(unix.O_RDONLY))
		p.execve("/bin/busybox", "true")
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			var one [1]byte
			_, _ = r.Read(one[:])
			cancel()
		}()
		if _, err := m.Exec(ctx, ExecRequest{Program: p, Stdout: w}); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		w.Close()
		if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 { // its end, when the process is dead
			t.Error(rest, err)
		}
	})
}
