package critest

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

func TestLogStreamsAndTimes(t *testing.T) {
	begin(t)
	p := run(t)
	before := time.Now()
	c := p.start(`echo one; echo two >&2; echo; printf 'no end'`)
	r := c.wait()
	if peer {
		r.stdout += "\n" // it tags an unfinished last line P
	}
	if r.stdout != "one\n\nno end\n" || r.stderr != "two\n" {
		t.Errorf("%+v", r)
	}
	data, err := os.ReadFile(c.logPath())
	if err != nil {
		t.Fatal(err)
	}
	lines, err := parseLog(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		if l.at.Before(before.Add(-time.Millisecond)) || l.at.After(time.Now()) {
			t.Errorf("line %+v is not from now", l)
		}
	}
	if s, err := os.Stat(c.logPath()); err != nil || s.Mode().Perm()&0o022 != 0 {
		t.Errorf("the log's mode is %v, %v", s.Mode(), err)
	}
}

func TestLongLogLines(t *testing.T) {
	begin(t)
	p := run(t)
	for _, n := range []int{16383, 16384, 16385, 32768, 1_000_000} {
		c := p.start(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo; echo after", n))
		if r := c.wait(); r.stdout != strings.Repeat("x", n)+"\nafter\n" {
			t.Errorf("%d bytes: got %d", n, len(r.stdout))
		}
		data, err := os.ReadFile(c.logPath())
		if err != nil {
			t.Fatal(err)
		}
		lines, err := parseLog(data)
		if err != nil {
			t.Fatal(err)
		}
		for i, l := range lines {
			if len(l.text) > 16384 {
				t.Errorf("%d bytes: line %d has %d", n, i, len(l.text))
			}
		}
		if partial := lines[0].partial; partial != (n > 16384) && n != 16384 {
			t.Errorf("%d bytes: first line partial: %v", n, partial)
		}
		c.remove()
	}
}

func TestLogIsBinaryClean(t *testing.T) {
	begin(t)
	p := run(t)
	r := p.finish(`printf 'a\000b\377\033[0m\r\tc\n'`)
	if r.stdout != "a\x00b\xff\x1b[0m\r\tc\n" {
		t.Errorf("%q", r.stdout)
	}
}

func TestHundredThousandLogLines(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start(`(seq 1 50000 | sed 's/^/err /' >&2) & seq 1 50000 | sed 's/^/out /'; wait`)
	r := c.wait()
	for stream, text := range map[string]string{"out": r.stdout, "err": r.stderr} {
		var want bytes.Buffer
		for i := range 50000 {
			fmt.Fprintf(&want, "%s %d\n", stream, i+1)
		}
		if text != want.String() {
			t.Errorf("%s: %d bytes, want %d", stream, len(text), want.Len())
		}
	}
}

func TestReopenLogLosesNothing(t *testing.T) {
	differs(t, "loses lines")
	begin(t)
	p := run(t)
	c := p.start("seq 1 200000")
	rotated := make([]string, 0, 11)
	for i := range 10 {
		name := fmt.Sprintf("%s.%d", c.logPath(), i)
		if err := os.Rename(c.logPath(), name); err != nil {
			t.Fatal(err)
		}
		rotated = append(rotated, name)
		if err := node.CRI.ReopenContainerLog(t.Context(), c.id); err != nil {
			if c.status().State == runtimeapi.ContainerState_CONTAINER_EXITED {
				break
			}
			t.Fatalf("reopen %d: %v", i, err)
		}
		if _, err := os.Stat(c.logPath()); err != nil {
			t.Errorf("after reopening: %v", err)
		}
		if err := harness.Until(t.Context(), patience, "output in the new log", func() bool {
			s, err := os.Stat(c.logPath())
			return err == nil && s.Size() > 100_000 || c.status().State == runtimeapi.ContainerState_CONTAINER_EXITED
		}); err != nil {
			t.Fatal(err)
		}
	}
	c.config.LogPath = ""
	c.wait()
	last := strings.TrimSuffix(rotated[0], ".0")
	out, _, err := readLog(append(rotated, last)...)
	if err != nil && !strings.Contains(err.Error(), "no such file") {
		t.Fatal(err)
	}
	if err != nil {
		if out, _, err = readLog(rotated...); err != nil {
			t.Fatal(err)
		}
	}
	var want bytes.Buffer
	for i := range 200000 {
		fmt.Fprintf(&want, "%d\n", i+1)
	}
	if out != want.String() {
		t.Errorf("%d bytes in %d files, want %d", len(out), len(rotated)+1, want.Len())
	}
}

func TestReopenLogOfAnExitedContainer(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("true")
	c.wait()
	if err := node.CRI.ReopenContainerLog(t.Context(), c.id); err == nil {
		t.Error("no error")
	}
}

func TestNoLogPath(t *testing.T) {
	begin(t)
	p := run(t)
	r := p.finish("seq 1 100000; exit 5", func(c *runtimeapi.ContainerConfig) { c.LogPath = "" })
	if r.code != 5 {
		t.Errorf("code %d", r.code)
	}
}
