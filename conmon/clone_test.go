package conmon

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A program that goes on in a clone is one container: its pid, its exit and its
// signals are those of the clone.
func TestCloneStep(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		p := newProgram().stdio()
		p.call("clone", opClone, value(unix.CLONE_NEWPID|unix.CLONE_NEWUTS))
		p.ready().execve(shell("echo I am $$; exec sleep 1000")...)
		m := started(t, bin, b.launch(p))
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.PID()))
		if err != nil || !strings.Contains(string(text), fmt.Sprintf("\nNSpid:\t%d\t1\n", m.PID())) {
			t.Errorf("%v: %s", err, text)
		}
		awaitLog(b, "I am 1\n")
		if err := m.Kill(testContext(t), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if exit := b.finish(m); exit.Code != 137 {
			t.Errorf("%+v", exit)
		}
		if got := b.logged(); got != "I am 1\n" {
			t.Errorf("%q", got)
		}
	})
}

// What fails after the clone fails the launch and leaves nothing.
func TestCloneStepFails(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		p := newProgram()
		p.call("clone", opClone, value(unix.CLONE_NEWPID))
		p.call("go nowhere", unix.SYS_CHDIR, p.text("/no/such/directory"))
		p.ready().execve("/bin/busybox", "true")
		var step *StepError
		if _, err := bin.Launch(testContext(t), b.launch(p)); !errors.As(err, &step) || step.Step != 1 || step.Errno != unix.ENOENT {
			t.Error(err)
		}
	})
}

// A reaper may be born in a PID namespace by its program's own step.
func TestPauseInClone(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		if os.Geteuid() != 0 {
			t.Skip("needs root")
		}
		p := newProgram()
		p.call("clone", opClone, value(unix.CLONE_NEWPID))
		p.ready().call("reap", opReap)
		pid, err := bin.Pause(testContext(t), &Pause{Program: p, Clones: true})
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || !strings.Contains(string(text), fmt.Sprintf("\nNSpid:\t%d\t1\n", pid)) {
			t.Errorf("%v: %s", err, text)
		}
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			t.Error(err)
		}
		var status unix.WaitStatus
		if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || status.ExitStatus() != 0 {
			t.Errorf("%v, %v", status, err)
		}
	})
}

func TestHalt(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		if os.Geteuid() != 0 {
			t.Skip("needs root")
		}
		p := newProgram()
		halt := func() {
			p.ready()
			p.call("halt", unix.SYS_READ, slot(slotFiles), p.text(" "), value(1), value(0), value(0), value(1)).flags = flagExact
		}
		p.call("make user namespace", unix.SYS_UNSHARE, value(unix.CLONE_NEWUSER))
		halt()
		p.call("become its root", unix.SYS_SETRESUID, value(0), value(0), value(0))
		halt()
		h, err := bin.Halt(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/uid_map", h.PID), []byte("0 100000 10\n"), 0o600); err != nil {
			t.Error(err)
		}
		if err := h.Resume(); err != nil {
			t.Error(err)
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.PID))
		if err != nil || !strings.Contains(string(text), "\nUid:\t100000\t") {
			t.Errorf("%v: %s", err, text)
		}
		if err := h.End(); err != nil {
			t.Error(err)
		}
		// Without a mapping it cannot become root, and says so.
		if h, err = bin.Halt(p); err != nil {
			t.Fatal(err)
		}
		var step *StepError
		if err := h.Resume(); !errors.As(err, &step) || step.Errno != unix.EINVAL {
			t.Error(err)
		}
		if err := h.End(); err != nil {
			t.Error(err)
		}
	})
}
