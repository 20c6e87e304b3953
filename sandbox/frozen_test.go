package sandbox

import (
	"context"
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// hold stops a process so that no SIGCONT helps, as a debugger does, until the
// test ends.
func hold(t *testing.T, pid int) {
	t.Helper()
	held, release, released := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(released)
		runtime.LockOSThread() // never unlocked: the tracer is a thread, and ends here
		err := unix.PtraceSeize(pid)
		if err == nil {
			err = unix.PtraceInterrupt(pid)
		}
		held <- err
		<-release
	}()
	if err := <-held; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(release)
		<-released
	})
}

func freeze(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
}

// A monitor that was stopped goes on when it is needed, one that cannot ends
// with its container; nobody waits for the client's patience to end.
func TestFrozenMonitor(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	b := f.pod()
	for _, c := range []struct {
		name   string
		freeze func(*testing.T, int)
		grace  int64
		code   int32
		reason string
	}{
		{"stopped", freeze, 30, 7, reasonError},
		{"killed", freeze, 0, 137, reasonError},
		{"traced", hold, 1, 137, reasonMonitorLost},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctr := f.run(b, c.name, "sh", "-c", "echo up; "+forever)
			awaitLog(t, ctr, "up")
			c.freeze(t, parent(t, ctr.Status().PID))
			if err := errors.Join(ctr.Stop(ctx, c.grace), ctr.Stop(ctx, c.grace)); err != nil {
				t.Fatal(err)
			}
			if st := ctr.Status(); st.ExitCode != c.code || st.Reason != c.reason {
				t.Errorf("%+v", st)
			}
			if err := ctr.Remove(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// So it is with one that has not answered since the daemon started.
func TestFrozenMonitorAfterRestart(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	b := f.pod()
	stopped, traced := f.run(b, "stopped", "sh", "-c", forever), f.run(b, "traced", "sh", "-c", forever)
	freeze(t, parent(t, stopped.Status().PID))
	hold(t, parent(t, traced.Status().PID))
	f.restart()
	for id, reason := range map[string]string{stopped.id: reasonError, traced.id: reasonMonitorLost} {
		c, err := f.store.Container(id)
		if err != nil {
			t.Fatal(err)
		}
		if st := c.Status(); st.State != stateUnknown {
			t.Errorf("%+v", st)
		}
		if err := c.Stop(ctx, 30); err != nil {
			t.Fatal(err)
		}
		if st := c.Status(); st.ExitCode != 137 || st.Reason != reason {
			t.Errorf("%+v", st)
		}
		if err := c.Remove(ctx); err != nil {
			t.Error(err)
		}
	}
}
