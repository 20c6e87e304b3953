package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// client is the far end of Streams.
type client struct {
	stdin          *io.PipeWriter
	stdout, stderr *sink
	resize         chan TerminalSize
	streams        Streams
}

// sink keeps what it is given, and can be waited on.
type sink struct {
	mu     sync.Mutex
	more   *sync.Cond
	text   bytes.Buffer
	closed bool
}

func newSink() *sink {
	s := &sink{}
	s.more = sync.NewCond(&s.mu)
	return s
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.more.Broadcast()
	return s.text.Write(p)
}

func (s *sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.more.Broadcast()
	return nil
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// await waits until the sink holds text.
func (s *sink) await(t testing.TB, text string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !strings.Contains(s.text.String(), text) {
		if s.closed {
			t.Fatalf("no %q in %q", text, s.text.String())
		}
		s.more.Wait()
	}
}

// newClient makes a client that wants everything.
func newClient(t testing.TB, terminal bool) *client {
	t.Helper()
	r, w := io.Pipe()
	c := &client{stdin: w, stdout: newSink(), stderr: newSink(), resize: make(chan TerminalSize)}
	c.streams = Streams{Stdin: r, Stdout: c.stdout, Stderr: c.stderr, Resize: c.resize, Terminal: terminal}
	if terminal {
		c.streams.Stderr = nil
	}
	t.Cleanup(func() { w.Close(); r.Close() })
	return c
}

func (c *client) say(t testing.TB, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(c.stdin, format, args...); err != nil {
		t.Fatal(err)
	}
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestExecStreams(t *testing.T) {
	f := setUp(t)
	c := f.run(f.pod(), "c", "sleep", "1000")
	for _, test := range []struct {
		name, script, in  string
		stdout, stderr    string
		code              int32
		noIn, noOut, noEr bool
	}{
		{name: "both outputs", script: "echo out; echo err >&2; exit 3", stdout: "out\n", stderr: "err\n", code: 3},
		{name: "input ends", script: "cat; echo end", in: "a\nb", stdout: "a\nbend\n"},
		{name: "no input wanted", script: "cat; echo end", noIn: true, stdout: "end\n"},
		{name: "no output wanted", script: "cat; echo out; echo err >&2", noOut: true, noEr: true, in: "x"},
		{name: "input is not read", script: "exit 4", in: strings.Repeat("x", 1<<20), code: 4},
		{name: "a signal", script: "kill -KILL $$", code: 137},
		{name: "much", script: "cat", in: strings.Repeat("0123456789abcde\n", 1<<16), stdout: strings.Repeat("0123456789abcde\n", 1<<16)},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, errs := newSink(), newSink()
			s := Streams{Stdin: strings.NewReader(test.in), Stdout: out, Stderr: errs}
			if test.noIn {
				s.Stdin = nil
			}
			if test.noOut {
				s.Stdout = nil
			}
			if test.noEr {
				s.Stderr = nil
			}
			code, err := c.Exec(testContext(t), []string{"sh", "-c", test.script}, s)
			if err != nil || code != test.code || out.String() != test.stdout || errs.String() != test.stderr {
				t.Errorf("code %d, %v, stdout %.100q, stderr %.100q", code, err, out, errs)
			}
			if out.closed == test.noOut || errs.closed == test.noEr {
				t.Error("closed:", out.closed, errs.closed)
			}
		})
	}
}

func TestExecTerminal(t *testing.T) {
	f := setUp(t)
	c := f.run(f.pod(), "c", "sleep", "1000")
	k := newClient(t, true)
	go func() {
		k.resize <- TerminalSize{Width: 90, Height: 30}
		k.stdout.await(t, "TERM=xterm\r\n")
		k.say(t, "until [ \"$(busybox stty size)\" = '30 90' ]; do :; done; echo first\n")
		k.stdout.await(t, "first\r\n")
		k.resize <- TerminalSize{Width: 132, Height: 43}
		k.say(t, "until [ \"$(busybox stty size)\" = '43 132' ]; do :; done; echo second\n")
		k.stdout.await(t, "second\r\n")
		k.say(t, "[ -t 2 ] && : > /dev/tty && echo err >&2\n")
		k.stdout.await(t, "err\r\n")
		k.say(t, "ls -l /proc/self/fd; exit 5\n")
	}()
	code, err := c.Exec(testContext(t), []string{"sh", "-c", "busybox stty -echo; busybox tty; echo TERM=$TERM; while read x; do eval \"$x\"; done"}, k.streams)
	got := k.stdout.String()
	if err != nil || code != 5 || !strings.Contains(got, "/dev/pts/0\r\n") {
		t.Fatalf("code %d, %v, %q", code, err, got)
	}
	if n := strings.Count(got, "-> /"); n != 3 {
		t.Errorf("descriptors: %q", got)
	}
}

// The first size is there before the command asks for it.
func TestExecTerminalFirstSize(t *testing.T) {
	f := setUp(t)
	c := f.run(f.pod(), "c", "sleep", "1000")
	k := newClient(t, true)
	sizes := make(chan TerminalSize, 1)
	sizes <- TerminalSize{Width: 77, Height: 11}
	k.streams.Resize = sizes
	if code, err := c.Exec(testContext(t), []string{"busybox", "stty", "size"}, k.streams); err != nil || code != 0 || k.stdout.String() != "11 77\r\n" {
		t.Errorf("code %d, %v, %q", code, err, k.stdout)
	}
}

// The end of the client's input is the end of the terminal's.
func TestExecTerminalInputEnds(t *testing.T) {
	f := setUp(t)
	c := f.run(f.pod(), "c", "sleep", "1000")
	for _, in := range []string{"", "line\n", "no newline"} {
		out := newSink()
		code, err := c.Exec(testContext(t), []string{"sh", "-c", "cat >/dev/null; echo end; exit 6"}, Streams{Stdin: strings.NewReader(in), Stdout: out, Terminal: true})
		if err != nil || code != 6 || !strings.HasSuffix(out.String(), "end\r\n") {
			t.Errorf("%q: code %d, %v, %q", in, code, err, out)
		}
	}
}

// What the container has put at /dev/pts/ptmx is not taken for a terminal.
func TestExecTerminalForged(t *testing.T) {
	f := setUp(t)
	for name, script := range map[string]string{
		"no file":   "busybox mount -t tmpfs none /dev/pts; ",
		"a file":    "busybox mount -t tmpfs none /dev/pts; echo x > /dev/pts/ptmx; ",
		"a pipe":    "busybox mount -t tmpfs none /dev/pts; busybox mkfifo /dev/pts/ptmx; ",
		"a link":    "busybox mount -t tmpfs none /dev/pts; busybox ln -s /proc/self/fd/8 /dev/pts/ptmx; ",
		"a null":    "busybox mount -t tmpfs none /dev/pts; busybox mknod /dev/pts/ptmx c 1 3; ",
		"directory": "busybox mount -t tmpfs none /dev/pts; busybox mkdir /dev/pts/ptmx; ",
	} {
		t.Run(name, func(t *testing.T) {
			config := containerConfig("c"+strings.ReplaceAll(name, " ", ""), 1, "sh", "-c", script+": > /tmp/r; busybox mv /tmp/r /tmp/ready; exec sleep 1000")
			config.Linux.SecurityContext.Privileged = true
			b := f.podNamed("pod-" + strings.ReplaceAll(name, " ", ""))
			b.Status().Config.Linux.SecurityContext.Privileged = true
			c, err := b.CreateContainer(testContext(t), config, f.image)
			if err == nil {
				err = c.Start(testContext(t))
			}
			if err != nil {
				t.Fatal(err)
			}
			awaitFile(t, fmt.Sprintf("/proc/%d/root/tmp/ready", c.Status().PID))
			k := newClient(t, true)
			if code, err := c.Exec(testContext(t), []string{"sh", "-c", "echo never"}, k.streams); err == nil || k.stdout.String() != "" {
				t.Errorf("code %d, %q", code, k.stdout)
			} else {
				t.Log(err)
			}
		})
	}
}

// A client that leaves takes everything with it that the command had started.
func TestExecClientLeaves(t *testing.T) {
	f := setUp(t)
	c := f.run(f.pod(), "c", "sleep", "1000")
	for _, terminal := range []bool{false, true} {
		ctx, cancel := context.WithCancel(testContext(t))
		k := newClient(t, terminal)
		ended := make(chan error, 1)
		go func() {
			_, err := c.Exec(ctx, []string{"sh", "-c", "busybox setsid sleep 2000 & busybox nohup sleep 2000 & trap '' HUP TERM; echo up; while :; do sleep 2000; done"}, k.streams)
			ended <- err
		}()
		k.stdout.await(t, "up")
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if got := f.exec(c, "sh", "-c", "ps | busybox grep -c '[s]leep 2000' || :"); got != "0" {
			t.Errorf("terminal %v: %s processes are left", terminal, got)
		}
	}
	awaitNoSubCgroups(t, f)
}

// A client that takes nothing holds nobody but its own command.
func TestExecFrozenClient(t *testing.T) {
	f := setUp(t)
	c := f.run(f.pod(), "c", "sleep", "1000")
	ctx, cancel := context.WithCancel(testContext(t))
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := c.Exec(ctx, []string{"sh", "-c", "echo first; exec cat /dev/zero"}, Streams{Stdout: w})
		ended <- err
	}()
	if _, err := io.ReadFull(r, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	r.Close()
}

// A child of the command that holds its streams holds the exec for a bounded time.
func TestExecStreamsHeldOpen(t *testing.T) {
	f := setUp(t)
	c := f.run(f.pod(), "c", "sleep", "1000")
	for _, script := range []string{"sleep 1000 & echo out; exit 3", "busybox yes & echo out; exit 3"} {
		out := newSink()
		code, err := c.Exec(testContext(t), []string{"sh", "-c", script}, Streams{Stdout: out, Stderr: newSink()})
		if err != nil || code != 3 || !strings.Contains(out.String(), "out\n") {
			t.Errorf("code %d, %v, %.100q", code, err, out)
		}
	}
}

func TestManyExecsAtOnce(t *testing.T) {
	f := setUp(t)
	c := f.run(f.pod(), "c", "sleep", "1000")
	const many = 200
	var all sync.WaitGroup
	for i := range many {
		all.Go(func() {
			out := newSink()
			in := fmt.Sprintln("input", i)
			s := Streams{Stdin: strings.NewReader(in), Stdout: out, Terminal: i%4 == 0}
			code, err := c.Exec(testContext(t), []string{"sh", "-c", fmt.Sprintf("read x; echo got $x; exit %d", i%100)}, s)
			if err != nil || code != int32(i%100) || !strings.Contains(out.String(), "got "+strings.TrimSpace(in)) {
				t.Errorf("%d: code %d, %v, %q", i, code, err, out)
			}
		})
	}
	all.Wait()
	awaitNoSubCgroups(t, f)
}

// awaitNoSubCgroups waits until the cgroups of execs are gone, which are removed in the background.
func awaitNoSubCgroups(t *testing.T, f *fixture) {
	t.Helper()
	f.store.background.Wait()
	left, err := filepath.Glob("/sys/fs/cgroup/*" + f.config.CgroupParent + "/*/*/exec-*")
	if err != nil || len(left) > 0 {
		t.Error("cgroups of execs are left:", left, err)
	}
}

// Descriptors and goroutines end with the execs; TestMain looks at the goroutines.
func TestExecLeavesNoDescriptor(t *testing.T) {
	f := setUp(t)
	c := f.run(f.pod(), "c", "sleep", "1000")
	exec := func(terminal bool) {
		if _, err := c.Exec(testContext(t), []string{"true"}, Streams{Stdin: strings.NewReader("x"), Stdout: newSink(), Terminal: terminal}); err != nil {
			t.Fatal(err)
		}
	}
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	exec(false)
	exec(true)
	f.store.background.Wait()
	before := count()
	for i := range 20 {
		exec(i%2 == 0)
	}
	f.store.background.Wait()
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}
