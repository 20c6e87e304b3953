package conmon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// box is a container's place in a test.
type box struct {
	t       testing.TB
	dir     string
	exitDir *os.File
	log     *os.File
}

func newBox(t testing.TB) *box {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
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
	f, err := os.OpenFile(filepath.Join(b.dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	return f
}

func (b *box) launch(p Program) *Launch {
	return &Launch{Dir: b.dir, ExitDir: b.exitDir, Log: b.log, Program: p}
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestLaunchStartExit(t *testing.T) {
	bin, err := NewBinary()
	if err != nil {
		t.Fatal(err)
	}
	defer bin.Close()
	b := newBox(t)
	ctx := testContext(t)
	m, err := bin.Launch(ctx, b.launch(initProgram(shell("echo hello; echo there >&2; exit 7")...)))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.State() != StateCreated {
		t.Fatal(m.State())
	}
	if _, err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	e, err := m.Exit()
	t.Log(e, err)
	r, err := ReadExit(b.dir)
	t.Log(r, err)
	if r != e || e.Code != 7 {
		t.Fatal(r, e)
	}
	log, _ := os.ReadFile(filepath.Join(b.dir, "log"))
	t.Logf("%s", log)
	var step *StepError
	_, err = bin.Launch(ctx, newBox(t).launch(newProgram().execve("/nonexistent")))
	if !errors.As(err, &step) || step.Errno != unix.ENOENT {
		t.Fatal(err)
	}
	t.Log(err)
}
