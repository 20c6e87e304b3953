package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// asDaemon makes the test's binary behave as cri-runtime.
const asDaemon = "CRI_RUNTIME_TEST_AS_DAEMON"

func TestMain(m *testing.M) {
	if os.Getenv(asDaemon) != "" {
		if os.Getenv("LISTEN_FDS") != "" { // a supervisor knows whom it gives its sockets to
			_ = os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		}
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// daemonProcess is a cri-runtime serve with directories of its own.
type daemonProcess struct {
	cmd    *exec.Cmd
	output bytes.Buffer
	notes  *net.UnixConn // what it tells systemd
	socket string
}

func startDaemon(t *testing.T, dir string, args ...string) *daemonProcess {
	t.Helper()
	return startWith(t, nil, dir, args...)
}

// startWith starts the daemon with a socket that a supervisor holds, if there is one.
func startWith(t *testing.T, given *os.File, dir string, args ...string) *daemonProcess {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	notify := filepath.Join(t.TempDir(), "notify")
	p := &daemonProcess{socket: filepath.Join(dir, "cri.sock")}
	p.notes, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.notes.Close() })
	p.cmd = exec.CommandContext(context.Background(), program, append([]string{
		"serve", "--config", os.DevNull, "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"),
		"--listen", "unix://" + p.socket, "--cni-conf-dir", filepath.Join(dir, "net.d"), "--cni-bin-dir", filepath.Join(dir, "cni"),
		"--cgroup-driver", "cgroupfs",
	}, args...)...)
	p.cmd.Env = append(os.Environ(), asDaemon+"=1", "NOTIFY_SOCKET="+notify)
	if given != nil {
		p.cmd.ExtraFiles, p.cmd.Env = []*os.File{given}, append(p.cmd.Env, "LISTEN_FDS=1")
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	if err = p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	return p
}

// note waits for a notification that contains text.
func (p *daemonProcess) note(t *testing.T, text string) {
	t.Helper()
	if err := p.notes.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 256)
	n, err := p.notes.Read(got)
	if err != nil || !strings.Contains(string(got[:n]), text) {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		t.Fatalf("waiting for %s: got %q, %v; output:\n%s", text, got[:n], err, &p.output)
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startDaemon(t, dir)
	p.note(t, "READY=1")
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", p.socket)
	if err != nil {
		t.Fatalf("after READY=1: %v", err)
	}
	conn.Close()
	for _, name := range []string{"root", "state"} {
		if at, statErr := os.Stat(filepath.Join(dir, name)); statErr != nil || at.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v, want mode 0700", name, at.Mode(), statErr)
		}
	}

	second := startDaemon(t, dir, "--state", filepath.Join(dir, "other"), "--listen", "unix://"+filepath.Join(dir, "other.sock"))
	var exit *exec.ExitError
	if err = second.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(second.output.String(), errInUse.Error()) {
		t.Errorf("a second daemon on the same root: %v, output %q", err, &second.output)
	}

	if err = p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.note(t, "STOPPING=1")
	if err = p.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v; output:\n%s", err, &p.output)
	}
	if _, err = os.Lstat(p.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// A supervisor holds the socket: a client that comes while there is no daemon waits for the next one.
func TestServeOnAGivenSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "cri.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	given, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer given.Close()
	for range 2 {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		p := startWith(t, given, dir)
		p.note(t, "READY=1")
		// HTTP/2: the server speaks first, with its settings.
		if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
			t.Errorf("the client that waited: %v", err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 9)); err != nil || n == 0 {
			t.Errorf("the client that waited reads %d bytes, %v; output:\n%s", n, err, &p.output)
		}
		conn.Close()
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		p.note(t, "STOPPING=1")
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("%v; output:\n%s", err, &p.output)
		}
		if _, err := os.Lstat(p.socket); err != nil {
			t.Errorf("the supervisor's socket: %v", err)
		}
	}
}

// Killed and started again, the daemon takes its directories and its socket back.
func TestServeAfterKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startDaemon(t, dir)
	p.note(t, "READY=1")
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
	p = startDaemon(t, dir)
	p.note(t, "READY=1")
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("after SIGINT: %v; output:\n%s", err, &p.output)
	}
}
