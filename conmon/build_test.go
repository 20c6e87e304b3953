package conmon

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s", name)
	}
	return path
}

func build(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(testContext(t), "./build", args...).CombinedOutput(); err != nil {
		t.Fatalf("build %v: %v\n%s", args, err, out)
	}
}

// The C sources are small enough to be read in one sitting, and stay so.
func TestMonitorIsSmall(t *testing.T) {
	files, err := filepath.Glob("monitor/*.c")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	const most = 1520
	lines := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		comment := false
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			comment = comment || strings.HasPrefix(line, "/*")
			if !comment && line != "" {
				lines++
			}
			if strings.Contains(line, "*/") {
				comment = false
			}
		}
	}
	t.Logf("%d lines of code", lines)
	if lines > most {
		t.Errorf("%d lines of code, at most %d", lines, most)
	}
	for name, binary := range map[string][]byte{"embedded": monitorBinary} {
		if len(binary) > 20<<10 || bytes.Contains(binary, []byte("GLIBC")) {
			t.Errorf("%s: %d bytes", name, len(binary))
		}
	}
}

func TestFuzzTarget(t *testing.T) {
	tool(t, "clang")
	target := filepath.Join(t.TempDir(), "fuzz")
	build(t, "fuzz", target)
	cmd := exec.CommandContext(testContext(t), target, "-runs=20000", "-max_len=4096", "-artifact_prefix="+target)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The parsing and formatting code gives the same on the other architecture.
func TestArm64Check(t *testing.T) {
	cc, qemu := tool(t, "aarch64-linux-gnu-gcc"), tool(t, "qemu-aarch64-static")
	target := filepath.Join(t.TempDir(), "check")
	build(t, "check", cc, target)
	if out, err := exec.CommandContext(testContext(t), qemu, target).CombinedOutput(); err != nil || string(out) != "ok\n" {
		t.Errorf("%v\n%s", err, out)
	}
}

// What runs of the arm64 monitor where only user mode is emulated: everything
// but clone3, which the emulator does not have.
func TestArm64Monitor(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("needs amd64; elsewhere the other tests do this")
	}
	tool(t, "aarch64-linux-gnu-gcc")
	qemu := tool(t, "qemu-aarch64-static")
	b := newBox(t)
	listener, _, err := listen(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	conn := rawDial(t, b.dir)
	null := nullFDs(t, 5)
	pid, err := syscall.ForkExec(qemu, []string{qemu, "-0", "cri-monitor", "monitor_arm64"}, &syscall.ProcAttr{
		Files: []uintptr{uintptr(null[0]), uintptr(null[0]), uintptr(null[0]), uintptr(listener)},
	})
	unix.Close(listener)
	if err != nil {
		t.Fatal(err)
	}
	ended := watchEnd(t, pid)
	t.Cleanup(func() {
		unix.Close(conn.fd)
		_ = unix.Kill(pid, unix.SIGKILL)
		ended()
		_, _ = unix.Wait4(pid, nil, 0, nil)
	})
	conn.say(packet{kind: typeHello, id: 1, body: words(1, 1)})
	conn.want(typeHelloOK, 1)
	conn.say(packet{kind: typeStatus, id: 2})
	if p := conn.want(typeStatusReply, 2); p.status() != (Status{}) {
		t.Errorf("%+v", p.status())
	}
	conn.send([]byte{1, 2, 3})
	conn.wantFailed(0, whereProtocol, unix.EPROTO)
	conn.say(packet{kind: 99, id: 3}, null[:2]...)
	conn.wantFailed(3, whereProtocol, unix.ENOSYS)
	other := rawDial(t, b.dir)
	defer unix.Close(other.fd)
	other.hello()
	program, err := sealedFile("program", initProgram("/bin/busybox").Encode(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(program)
	conn.say(packet{kind: typeLaunch, id: 4, body: words(0, 0, 0, 0)}, program, int(b.exitDir.Fd()), int(b.log.Fd()), null[0])
	p := conn.want(typeFailed, 4)
	f := p.failed()
	if f.where != whereMonitor || f.err != uint32(unix.ENOSYS) || f.step != atClone {
		t.Errorf("%+v", f)
	}
	ended()
}

// cri-pause clones nothing, so the interpreter itself runs under emulation.
func TestArm64Interpreter(t *testing.T) {
	tool(t, "aarch64-linux-gnu-gcc")
	qemu := tool(t, "qemu-aarch64-static")
	const sysOpenat, sysWrite = 56, 64 // of arm64
	p := newProgram()
	p.call("write", sysWrite, slot(8), p.text("hello"), value(5))
	p.call("jump", opJump, value(1))
	p.call("write", sysWrite, slot(8), p.text("never"), value(5))
	s := p.call("open", sysOpenat, value(^uint64(99)), p.text("/nonexistent"), value(0))
	s.errnos1, s.skip1 = 1<<unix.ENOENT, 0
	p.call("open again", sysOpenat, value(^uint64(99)), p.text("/nonexistent"), value(0))
	program, err := sealedFile("program", p.Encode(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(program)
	out, outEnd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	report, reportEnd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer report.Close()
	null := uintptr(nullFDs(t, 1)[0])
	pid, err := syscall.ForkExec(qemu, []string{qemu, "-0", "cri-pause", "monitor_arm64", "1"}, &syscall.ProcAttr{
		Files: []uintptr{null, null, null, uintptr(program), reportEnd.Fd(), outEnd.Fd()},
	})
	reportEnd.Close()
	outEnd.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Wait4(pid, nil, 0, nil) }()
	var step *StepError
	if _, err := awaitReady(report, p, 1); !errors.As(err, &step) || step.Step != 4 || step.Errno != unix.ENOENT {
		t.Error(err)
	}
	text := make([]byte, 20)
	if n, err := out.Read(text); err != nil || string(text[:n]) != "hello" {
		t.Errorf("%q, %v", text[:n], err)
	}
}

// The same sources give the same bytes, wherever they lie.
func TestReproducible(t *testing.T) {
	tool(t, "cc")
	dir := t.TempDir()
	copyTo := filepath.Join(dir, "elsewhere", "conmon")
	if err := os.CopyFS(copyTo, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	name := "monitor_" + runtime.GOARCH
	if err := os.Remove(filepath.Join(copyTo, name)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(testContext(t), "./build")
	cmd.Dir = copyTo
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	again, err := os.ReadFile(filepath.Join(copyTo, name))
	if err != nil || !bytes.Equal(again, monitorBinary) {
		t.Errorf("%d bytes, %d before, %v", len(again), len(monitorBinary), err)
	}
}
