package conmon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = time.Minute

// box is a container's place in a test.
type box struct {
	t       testing.TB
	dir     string
	exitDir *os.File
	log     *os.File
}

func newBox(t testing.TB) *box { return newBoxIn(t, t.TempDir()) }

func newBoxIn(t testing.TB, dir string) *box {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	b := &box{t: t, dir: dir}
	var err error
	if b.exitDir, err = os.Open(dir); err != nil {
		t.Fatal(err)
	}
	b.log = b.openLog("log")
	t.Cleanup(func() { b.exitDir.Close(); b.log.Close() })
	return b
}

func (b *box) openLog(name string) *os.File {
	b.t.Helper()
	f, err := os.OpenFile(filepath.Join(b.dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	return f
}

func (b *box) launch(p Program) *Launch {
	return &Launch{Dir: b.dir, ExitDir: b.exitDir, Log: b.log, Program: p}
}

// file makes a file with text and opens it for reading.
func (b *box) file(name, text string) *os.File {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { f.Close() })
	return f
}

func (b *box) logText() string {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, "log"))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

// logged is the content of the log's lines, without time stamps and tags.
func (b *box) logged() string {
	var s strings.Builder
	for line := range strings.Lines(b.logText()) {
		if len(line) > 40 {
			s.WriteString(line[40:])
		}
	}
	return s.String()
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func testBinary(t testing.TB) *Binary {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	bin, err := NewBinary()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bin.Close() })
	return bin
}

// watchEnd waits, when called later, until the process of a pid that is valid
// now has ended.
func watchEnd(t testing.TB, pid int) func() {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return func() {}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return func() {
		t.Helper()
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n != 1 {
				t.Fatalf("process %d goes on: %v", pid, err)
			}
			return
		}
	}
}

// created launches a container and kills what is left of it after the test.
func created(t testing.TB, bin *Binary, l *Launch) *Monitor {
	t.Helper()
	m, err := bin.Launch(testContext(t), l)
	if err != nil {
		t.Fatal(err)
	}
	ended := watchEnd(t, m.child)
	t.Cleanup(func() {
		_ = m.Kill(testContext(t), unix.SIGKILL)
		<-m.Done()
		_ = m.Shutdown(testContext(t))
		m.Close()
		ended()
		m.reap()
	})
	return m
}

func started(t testing.TB, bin *Binary, l *Launch) *Monitor {
	t.Helper()
	m := created(t, bin, l)
	if _, err := m.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return m
}

// runningMonitor runs a script as a container's init until the test's end.
func runningMonitor(t testing.TB, script string) *Monitor {
	t.Helper()
	return started(t, testBinary(t), newBox(t).launch(initProgram(shell(script)...)))
}

// finish waits for the container's exit and compares it with its record.
func (b *box) finish(m *Monitor) Exit {
	b.t.Helper()
	select {
	case <-m.Done():
	case <-testContext(b.t).Done():
		b.t.Fatal("no exit")
	}
	told, err := m.Exit()
	if err != nil {
		b.t.Fatal(err)
	}
	read, err := ReadExit(b.dir)
	if err != nil || read != told {
		b.t.Fatalf("told %+v, recorded %+v, %v", told, read, err)
	}
	return told
}
