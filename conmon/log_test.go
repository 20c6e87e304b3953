package conmon

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// entry is a line of a CRI log.
type entry struct {
	stream  string
	tag     byte
	content string
}

// readLog parses a log as strictly as its format can be read.
func readLog(t testing.TB, path string, each func(entry)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<17)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && len(line) == 0 {
			return
		}
		if len(line) < 41 || line[len(line)-1] != '\n' || line[30] != ' ' || line[37] != ' ' || line[39] != ' ' {
			t.Fatalf("line %q", line)
		}
		if _, err := time.Parse("2006-01-02T15:04:05.000000000Z", string(line[:30])); err != nil {
			t.Fatal(err)
		}
		each(entry{string(line[31:37]), line[38], string(line[40 : len(line)-1])})
	}
}

// expected is what the log of a text is.
func expected(stream, text string, limit int) []entry {
	var all []entry
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		for ; len(line) > limit; line = line[limit:] {
			all = append(all, entry{stream, 'P', line[:limit]})
		}
		all = append(all, entry{stream, 'F', line})
	}
	return all
}

func TestLogLines(t *testing.T) {
	for _, limit := range []int{1, 7, 80, 16384, 65536} {
		texts := map[string]string{
			"empty":           "",
			"newline":         "\n",
			"no newline":      "tail",
			"empty lines":     "\n\n\n",
			"carriage return": "a\r\nb\r\n",
			"binary":          "\x00\xff\xfe\n\x80\n",
			"shorter":         strings.Repeat("s", limit-1) + "\n",
			"exact":           strings.Repeat("e", limit) + "\n",
			"longer":          strings.Repeat("l", limit+1) + "\n",
			"twice":           strings.Repeat("t", 2*limit) + "\n",
			"twice and one":   strings.Repeat("o", 2*limit+1) + "\nnext\n",
			"exact tail":      "x\n" + strings.Repeat("e", limit),
			"long tail":       "x\n" + strings.Repeat("y", 3*limit+1),
			"huge":            strings.Repeat("h", 300_000) + "\nend\n",
			"mixed":           strings.Repeat(strings.Repeat("m", limit/2)+"\n"+strings.Repeat("n", limit+limit/2)+"\n", 5),
		}
		each(t, func(t *testing.T, bin *Binary) {
			for name, text := range texts {
				t.Run(fmt.Sprintf("%s/%d", name, limit), func(t *testing.T) {
					b := newBox(t)
					input := b.file("input", text)
					l := b.launch(initProgram(shell("cat " + input.Name() + "; cat " + input.Name() + " >&2")...))
					l.LogLineBytes = limit
					b.finish(started(t, bin, l))
					var got []entry
					readLog(t, b.log.Name(), func(e entry) { got = append(got, e) })
					compareStreams(t, got, map[string][]entry{
						"stdout": expected("stdout", text, limit), "stderr": expected("stderr", text, limit),
					})
				})
			}
		})
	}
}

func compareStreams(t *testing.T, got []entry, want map[string][]entry) {
	t.Helper()
	for _, e := range got {
		rest := want[e.stream]
		if len(rest) == 0 || rest[0] != e {
			t.Fatalf("got %s %c of %d bytes, %d more wanted", e.stream, e.tag, len(e.content), len(rest))
		}
		want[e.stream] = rest[1:]
	}
	for stream, rest := range want {
		if len(rest) > 0 {
			t.Fatalf("%d entries of %s are missing", len(rest), stream)
		}
	}
}

// A line that comes in pieces is one line, and a default limit applies.
func TestLogPieces(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		b.finish(started(t, bin, b.launch(initProgram(shell(
			"for i in 1 2 3; do printf a; usleep 2000; printf b >&2; done; echo; echo >&2; head -c 16385 /dev/zero")...))))
		var got []entry
		readLog(t, b.log.Name(), func(e entry) { got = append(got, e) })
		compareStreams(t, got, map[string][]entry{
			"stdout": {{"stdout", 'F', "aaa"}, {"stdout", 'P', strings.Repeat("\x00", 16384)}, {"stdout", 'F', "\x00"}},
			"stderr": {{"stderr", 'F', "bbb"}},
		})
	})
}

// counter checks that a stream counts 1, 2, 3...
type counter struct {
	t    testing.TB
	last map[string]int
}

func (c *counter) add(e entry) {
	n, err := strconv.Atoi(e.content)
	if err != nil || e.tag != 'F' || n != c.last[e.stream]+1 {
		c.t.Fatalf("%s: %c %q after %d", e.stream, e.tag, e.content, c.last[e.stream])
	}
	c.last[e.stream] = n
}

func TestLogFullSpeed(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		const lines = 1_000_000
		b := newBox(t)
		script := fmt.Sprintf("seq 1 %d & seq 1 %d >&2; wait", lines, lines)
		b.finish(started(t, bin, b.launch(initProgram(shell(script)...))))
		c := &counter{t, map[string]int{}}
		readLog(t, b.log.Name(), c.add)
		if c.last["stdout"] != lines || c.last["stderr"] != lines {
			t.Error(c.last)
		}
	})
}

func TestLogReopenUnderLoad(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		t.Run(fmt.Sprintf("terminal=%v", terminal), func(t *testing.T) { testLogReopen(t, terminal) })
	}
}

func testLogReopen(t *testing.T, terminal bool) {
	each(t, func(t *testing.T, bin *Binary) {
		lines, rotations := 400_000, 50
		b, ctx := newBox(t), testContext(t)
		l := b.launch(nil)
		if l.Terminal = terminal; terminal {
			lines = 40_000
			l.Program = terminalProgram(shell(fmt.Sprintf("stty -opost; seq 1 %d; exec sleep 1000", lines))...)
		} else {
			l.Program = initProgram(shell(fmt.Sprintf("seq 1 %d; exec sleep 1000", lines))...)
		}
		m := started(t, bin, l)
		names := []string{b.log.Name()}
		for i := range rotations {
			next := b.openLog("log." + strconv.Itoa(i))
			if err := m.ReopenLog(ctx, next); err != nil {
				t.Fatal(err)
			}
			names = append(names, next.Name())
			next.Close()
		}
		end := fmt.Sprintf("stdout F %d\n", lines)
		for last := names[rotations]; ; {
			text, err := os.ReadFile(last)
			if err != nil || ctx.Err() != nil {
				t.Fatal(err, ctx.Err())
			}
			if bytes.HasSuffix(text, []byte(end)) {
				break
			}
			if s, err := os.ReadFile(names[0]); err == nil && bytes.HasSuffix(s, []byte(end)) {
				break // all of it was written before the first rotation
			}
		}
		c := &counter{t, map[string]int{}}
		for _, name := range names {
			readLog(t, name, c.add)
		}
		if c.last["stdout"] != lines {
			t.Error(c.last)
		}
		if s, err := m.Status(ctx); err != nil || s.DroppedBytes != 0 {
			t.Error(s, err)
		}
	})
}

// A log that cannot be written stops nobody and hides nothing.
func TestLogUnwritable(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer full.Close()
		l := b.launch(initProgram(shell("seq 1 100000; seq 1 1000 >&2; exec sleep 1000")...))
		l.Log = full
		m := started(t, bin, l)
		const want = 588_895 + 3_893 + 101_000*40
		for {
			s, err := m.Status(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if s.LogBytes != 0 || s.DroppedBytes > want {
				t.Fatalf("%+v, want %d", s, want)
			}
			if s.DroppedBytes == want {
				break
			}
		}
		if err := m.ReopenLog(ctx, b.log); err != nil {
			t.Fatal(err)
		}
	})
}

// Where the disk was full, the log goes on with a line of its own.
func TestLogDiskFull(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		disk := filepath.Join(b.dir, "disk")
		if err := os.Mkdir(disk, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64k"); err != nil {
			t.Skip("needs the right to mount")
		}
		t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
		log := b.openLog("disk/log")
		defer log.Close()
		l := b.launch(initProgram(shell("while read n; do seq 1 $n; done; exec sleep 1000")...))
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		p := initProgram(shell("while read n; do seq 1 $n; done; exec sleep 1000")...)
		p.steps[0].args[0] = slot(8)
		l.Program, l.Files, l.Log = p, []*os.File{r}, log
		m := started(t, bin, l)
		r.Close()
		write := func(n int, done func(Status) bool) {
			t.Helper()
			if _, err := fmt.Fprintln(w, n); err != nil {
				t.Fatal(err)
			}
			for {
				s, err := m.Status(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if done(s) {
					return
				}
			}
		}
		write(5000, func(s Status) bool { return s.LogBytes+s.DroppedBytes == 5000*40+23893 })
		if s, _ := m.Status(ctx); s.LogBytes != 64<<10 {
			t.Fatalf("%+v", s)
		}
		// As a log rotation by copying does.
		text, err := os.ReadFile(log.Name())
		if err != nil || log.Truncate(0) != nil {
			t.Fatal(err)
		}
		before, _ := m.Status(ctx)
		write(3, func(s Status) bool { return s.LogBytes == before.LogBytes+1+3*42 })
		rest, err := os.ReadFile(log.Name())
		if err != nil || !bytes.HasPrefix(rest, []byte("\n2")) || bytes.HasSuffix(text, []byte("\n")) {
			t.Errorf("%q, %v", rest, err)
		}
		w.Close()
	})
}

func TestLogNone(t *testing.T) {
	b := newBox(t)
	l := b.launch(initProgram(shell("seq 1 100000")...))
	l.Log = nil
	if e := b.finish(started(t, testBinary(t), l)); e.Code != 0 {
		t.Error(e)
	}
}

// Init's exit is told although another process holds its output; the monitor
// copies that to its end and only then ends.
func TestLogOutlivesInit(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		fifo := filepath.Join(b.dir, "fifo")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		m := created(t, bin, b.launch(initProgram(shell("(read x < "+fifo+"; echo after $x) & echo before")...)))
		ended := watchEnd(t, m.child)
		if _, err := m.Start(testContext(t)); err != nil {
			t.Fatal(err)
		}
		b.finish(m)
		if got := b.logged(); got != "before\n" {
			t.Errorf("%q", got)
		}
		if s, err := m.Status(testContext(t)); err != nil || s.State != StateExited {
			t.Error(s, err)
		}
		if err := os.WriteFile(fifo, []byte("exit\n"), 0); err != nil {
			t.Fatal(err)
		}
		ended()
		if got := b.logged(); got != "before\nafter exit\n" {
			t.Errorf("%q", got)
		}
	})
}

func TestTerminal(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		l := b.launch(terminalProgram(shell("tty; [ -t 0 ] && echo terminal; echo err >&2")...))
		l.Terminal = true
		b.finish(started(t, bin, l))
		got := b.logged()
		if !strings.HasPrefix(got, "/dev/pts/") || !strings.HasSuffix(got, "terminal\r\nerr\r\n") {
			t.Errorf("%q", got)
		}
		readLog(t, b.log.Name(), func(e entry) {
			if e.stream != "stdout" {
				t.Error(e)
			}
		})
	})
}

// terminalProgram opens a terminal, makes it the session's and hands its
// master over.
func terminalProgram(argv ...string) *testProgram {
	const master, slave = 20, 21
	p := newProgram()
	at := value(^uint64(99)) // AT_FDCWD
	p.call("open ptmx", unix.SYS_OPENAT, at, p.text("/dev/ptmx"), value(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)).save = master
	p.call("unlock", unix.SYS_IOCTL, slot(master), value(unix.TIOCSPTLCK), p.text("\x00\x00\x00\x00"))
	p.call("peer", unix.SYS_IOCTL, slot(master), value(unix.TIOCGPTPEER), value(unix.O_RDWR)).save = slave
	p.call("setsid", unix.SYS_SETSID)
	p.call("controlling terminal", unix.SYS_IOCTL, slot(slave), value(unix.TIOCSCTTY), value(0))
	for i := range 3 {
		p.call("dup3", unix.SYS_DUP3, slot(slave), value(uint64(i)), value(0))
	}
	p.call("close", unix.SYS_CLOSE, slot(slave))
	p.call("ready", opReady, value(master))
	return p.execve(argv...)
}
