package conmon

import (
	"bytes"
	"crypto/md5" //nolint:gosec // what md5sum of the workload says
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// attached is a client of the test's own.
type attached struct {
	t      testing.TB
	stdin  *os.File
	stdout *os.File
	stderr *os.File
	*Attachment
}

// attach attaches a client that wants everything that flags name.
func attach(t testing.TB, m *Monitor, flags uint16) *attached {
	t.Helper()
	a := &attached{t: t}
	var r AttachRequest
	var err error
	pair := func() (*os.File, *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		return r, w
	}
	if flags&attachStdin != 0 {
		r.Stdin, a.stdin = pair()
	}
	if flags&attachStdout != 0 {
		a.stdout, r.Stdout = pair()
	}
	if flags&attachStderr != 0 {
		a.stderr, r.Stderr = pair()
	}
	r.CloseStdin = flags&attachCloseStdin != 0
	if a.Attachment, err = m.Attach(testContext(t), r); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{r.Stdin, r.Stdout, r.Stderr} {
		if f != nil {
			f.Close()
		}
	}
	return a
}

func (a *attached) say(text string) {
	a.t.Helper()
	if _, err := io.WriteString(a.stdin, text); err != nil {
		a.t.Fatal(err)
	}
}

// hear reads exactly that text from f.
func (a *attached) hear(f *os.File, text string) {
	a.t.Helper()
	b := make([]byte, len(text))
	n, err := io.ReadFull(f, b)
	if err != nil || string(b) != text {
		a.t.Fatalf("%q, %v; want %q", b[:n], err, text)
	}
}

// rest reads f to its end.
func (a *attached) rest(f *os.File) string {
	a.t.Helper()
	b, err := io.ReadAll(f)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(b)
}

func (a *attached) ended() {
	a.t.Helper()
	select {
	case <-a.Done():
	case <-testContext(a.t).Done():
		a.t.Fatal("the attachment goes on")
	}
}

const everything = attachStdin | attachStdout | attachStderr

func interactive(t testing.TB, bin *Binary, script string) (*box, *Monitor) {
	t.Helper()
	b := newBox(t)
	l := b.launch(initProgram(shell(script)...))
	l.Stdin = true
	return b, started(t, bin, l)
}

const repeat = "while read -r x; do echo \"out $x\"; echo \"err $x\" >&2; done; echo end"

func TestAttach(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, m := interactive(t, bin, repeat)
		one, two := attach(t, m, everything), attach(t, m, attachStdout)
		one.say("1\n")
		one.hear(one.stdout, "out 1\n")
		one.hear(one.stderr, "err 1\n")
		two.hear(two.stdout, "out 1\n")
		two.stdout.Close()
		two.ended()
		// Input that ends is the client's alone: the next one types on.
		one.stdin.Close()
		three := attach(t, m, attachStdin|attachCloseStdin)
		three.say("2\n")
		one.hear(one.stdout, "out 2\n")
		one.hear(one.stderr, "err 2\n")
		three.stdin.Close()
		three.ended()
		if got := one.rest(one.stdout) + one.rest(one.stderr); got != "end\n" {
			t.Errorf("%q", got)
		}
		one.ended()
		if e := b.finish(m); e.Code != 0 || one.Err() != nil || two.Err() != nil {
			t.Error(e, one.Err(), two.Err())
		}
		if got := b.logged(); !strings.HasSuffix(got, "end\n") || strings.Count(got, "\n") != 5 {
			t.Errorf("%q", got)
		}
	})
}

// Input ends with its client, nobody has to say so; more than a pipe holds is not lost.
func TestAttachInputAtOnce(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		fifo := newBox(t).dir + "/fifo"
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		b, m := interactive(t, bin, "read x < "+fifo+"; busybox wc -c")
		a := attach(t, m, everything|attachCloseStdin)
		if _, err := unix.FcntlInt(a.stdin.Fd(), unix.F_SETPIPE_SZ, 1<<20); err != nil {
			t.Fatal(err)
		}
		a.say(strings.Repeat("x", 1<<20)) // the workload reads nothing yet
		a.stdin.Close()
		if err := os.WriteFile(fifo, []byte("go\n"), 0); err != nil {
			t.Fatal(err)
		}
		if got := a.rest(a.stdout); got != "1048576\n" {
			t.Errorf("%q", got)
		}
		b.finish(m)
	})
}

// A client that takes nothing loses its attachment, and neither the workload nor the
// log nor another client notices.
func TestAttachSlowClient(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		const lines = 200_000
		b, m := interactive(t, bin, "read x; seq 1 200000")
		slow, good := attach(t, m, everything), attach(t, m, attachStdout)
		if _, err := unix.FcntlInt(good.stdout.Fd(), unix.F_SETPIPE_SZ, 1<<20); err != nil {
			t.Fatal(err)
		}
		slow.say("go\n")
		read := make(chan int)
		go func() {
			n, _ := io.Copy(io.Discard, good.stdout)
			read <- int(n)
		}()
		slow.ended()
		if !errors.Is(slow.Err(), ErrSlow) {
			t.Error(slow.Err())
		}
		b.finish(m)
		c := &counter{t, map[string]int{}}
		readLog(t, b.log.Name(), c.add)
		if c.last["stdout"] != lines {
			t.Error(c.last)
		}
		if n := <-read; n != 1_288_895 && good.Err() == nil {
			t.Errorf("%d bytes", n)
		}
	})
}

func TestAttachRefused(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		m := started(t, bin, b.launch(initProgram(shell("exec sleep 1000")...)))
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		if _, err := m.Attach(ctx, AttachRequest{Stdin: r}); !errors.Is(err, ErrState) {
			t.Error("no stdin:", err)
		}
		if _, err := m.Attach(ctx, AttachRequest{}); !errors.Is(err, unix.EINVAL) {
			t.Error("nothing wanted:", err)
		}
		if err := m.Resize(ctx, 80, 25); !errors.Is(err, ErrState) {
			t.Error("no terminal:", err)
		}
		var all []*attached
		for range 16 {
			all = append(all, attach(t, m, attachStdout))
		}
		if _, err := m.Attach(ctx, AttachRequest{Stdout: w}); !errors.Is(err, unix.EAGAIN) {
			t.Error("too many:", err)
		}
		for _, a := range all {
			a.stdout.Close()
			a.ended()
		}
		attach(t, m, attachStdout)
	})
}

// An attachment outlives neither its client nor its container, but the daemon's connection.
func TestAttachLosesConnection(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, m := interactive(t, bin, repeat)
		again, err := bin.Connect(testContext(t), b.dir)
		if err != nil {
			t.Fatal(err)
		}
		a := attach(t, again, everything|attachCloseStdin)
		again.Close()
		a.ended() // as far as anybody can tell
		a.say("1\n")
		a.hear(a.stdout, "out 1\n")
		a.stdin.Close()
		if got := a.rest(a.stdout); got != "end\n" {
			t.Errorf("%q", got)
		}
		b.finish(m)
	})
}

func TestAttachTerminal(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		l := b.launch(terminalProgram(shell("stty -echo; echo ready; while read x; do stty size; echo got $x; done")...))
		l.Terminal, l.Stdin = true, true
		m := created(t, bin, l)
		a, watcher := attach(t, m, attachStdin|attachStdout), attach(t, m, attachStdout)
		if err := m.Resize(ctx, 132, 43); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Start(ctx); err != nil {
			t.Fatal(err)
		}
		a.hear(a.stdout, "ready\r\n")
		a.say("1\n")
		a.hear(a.stdout, "43 132\r\ngot 1\r\n")
		watcher.hear(watcher.stdout, "ready\r\n43 132\r\ngot 1\r\n")
		a.stdin.Close()
		a.stdout.Close()
		a.ended()
		// The terminal stays; a log of it is one stream.
		again := attach(t, m, attachStdin|attachStdout)
		again.say("2\n\x04")
		if got := again.rest(again.stdout); got != "43 132\r\ngot 2\r\n" {
			t.Errorf("%q", got)
		}
		if e := b.finish(m); e.Code != 0 {
			t.Error(e)
		}
		if got := b.logged(); got != "ready\r\n43 132\r\ngot 1\r\n43 132\r\ngot 2\r\n" {
			t.Errorf("%q", got)
		}
	})
}

// A big paste arrives whole although the reader is slow to take it.
func TestAttachTerminalPaste(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		fifo := filepath.Join(b.dir, "fifo")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		l := b.launch(terminalProgram(shell("stty raw -echo; read x < " + fifo + "; echo ready; head -c 300000 | md5sum; sleep 1000")...))
		l.Terminal, l.Stdin = true, true
		m := started(t, bin, l)
		a := attach(t, m, attachStdin|attachStdout)
		if err := os.WriteFile(fifo, []byte("go\n"), 0); err != nil {
			t.Fatal(err)
		}
		a.hear(a.stdout, "ready\n")
		paste := bytes.Repeat([]byte("0123456789"), 30_000)
		go func() { _, _ = a.stdin.Write(paste) }()
		a.hear(a.stdout, fmt.Sprintf("%x  -\n", md5.Sum(paste)))
	})
}

// A workload that closes its terminal altogether can open it again.
func TestTerminalStaysOpen(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		l := b.launch(terminalProgram(shell("exec <&- >&- 2>&-; busybox usleep 20000; exec </dev/tty >/dev/tty 2>&1; echo again")...))
		l.Terminal = true
		b.finish(started(t, bin, l))
		if got := b.logged(); got != "again\r\n" {
			t.Errorf("%q", got)
		}
	})
}

// A monitor that an older version has started says so, and is not asked.
func TestAttachOldMonitor(t *testing.T) {
	b := newBox(t)
	listener, _, err := listen(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	answer := func(fd int, p packet) {
		if _, err := unix.Write(fd, p.encode(nil)); err != nil {
			t.Error(err)
		}
	}
	go func() { // says what a monitor without ATTACH says
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}, int(patience.Milliseconds())); err != nil {
			t.Error(err)
		}
		fd, _, err := unix.Accept(listener)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		for {
			data := make([]byte, packetMax)
			n, err := unix.Read(fd, data)
			if err != nil || n == 0 {
				return
			}
			id := binary.LittleEndian.Uint32(data[4:])
			switch data[0] {
			case typeHello:
				answer(fd, packet{kind: typeHelloOK, id: id, body: words(1, 1)})
			case typeStatus:
				answer(fd, packet{kind: typeStatusReply, id: id, body: make([]byte, statusSize)})
			default:
				answer(fd, packet{kind: typeFailed, id: id, body: words(whereProtocol, uint32(unix.ENOSYS), 0, 0)})
			}
		}
	}()
	m, err := testBinary(t).Connect(testContext(t), b.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.Attach(testContext(t), AttachRequest{Stdout: b.log}); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
	if err := m.Resize(testContext(t), 80, 25); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
}
