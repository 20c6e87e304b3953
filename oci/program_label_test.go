package oci

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// runSteps runs a program's steps on this thread, as the child of a monitor does, and
// returns the first that fails.
func runSteps(p *Program) (string, error) {
	slots := map[uint64]uintptr{}
	for i := range p.Steps {
		s := &p.Steps[i]
		var a [6]uintptr
		for k, arg := range s.args {
			a[k] = uintptr(arg.value)
			switch arg.kind {
			case argValue:
			case argData:
				a[k] = uintptr(unsafe.Pointer(&p.data[arg.value]))
			case argSlot:
				a[k] = slots[arg.value]
			}
		}
		r, _, errno := unix.RawSyscall6(uintptr(s.nr), a[0], a[1], a[2], a[3], a[4], a[5])
		if errno != 0 {
			return s.Name, errno
		}
		if s.save >= 0 {
			slots[uint64(s.save)] = r
		}
	}
	return "", nil
}

// What is written for LSMs goes through a procfs of its own and cannot leave it (CVE-2025-52881).
func TestWriteBelowOwnProc(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a file system")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	target := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) (string, error) {
		c := &process{builder: newBuilder(execSteps)}
		proc := c.ownProc("labels")
		c.writeBelow(proc, "label", path, text)
		c.close("labels", proc)
		p, err := c.program()
		if err != nil {
			t.Fatal(err)
		}
		return runSteps(p)
	}
	before, err := os.ReadFile("/proc/thread-self/comm")
	if err != nil {
		t.Fatal(err)
	}
	if step, err := write("thread-self/comm", "label"); err != nil {
		t.Fatalf("%s: %v", step, err)
	}
	got, err := os.ReadFile("/proc/thread-self/comm")
	if string(got) != "label\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if step, err := write("thread-self/comm", strings.TrimSpace(string(before))); err != nil {
		t.Errorf("%s: %v", step, err)
	}
	for _, path := range []string{"thread-self/root" + target, "../.." + target, target} {
		if step, err := write(path, "x"); err == nil || !strings.Contains(step, "open "+path) {
			t.Errorf("%s: step %q: %v", path, step, err)
		}
	}
	if text, err := os.ReadFile(target); len(text) != 0 || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

// Labels are written before the child has joined anything of a container.
func TestCompileLabels(t *testing.T) {
	spec := minimalSpec()
	spec.Process.SelinuxLabel, spec.Process.ApparmorProfile = "u:r:t:s0", "local"
	exec, err := CompileExec(spec, spec.Process, testOptions(false))
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*Program{"container": compileSpec(t, spec, testOptions(false)), "exec": exec} {
		var got []string
		for _, s := range p.Steps {
			if s.nr == unix.SYS_SETNS || s.nr == unix.SYS_MOVE_MOUNT {
				break
			}
			if s.nr == unix.SYS_OPENAT2 || s.nr == unix.SYS_WRITE {
				got = append(got, s.args[1].String())
			}
		}
		want := []string{`"thread-self/attr/exec"`, `"u:r:t:s0"`, `"thread-self/attr/keycreate"`, `"u:r:t:s0"`, `"thread-self/attr/apparmor/exec"`, `"exec local"`}
		if len(got) < len(want) || !slices.Equal(got[len(got)-len(want):], want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
