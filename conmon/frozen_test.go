package conmon

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const frozenProtocol = `monitors of containers that run speak it, and older daemons speak to new ones. What is there stays;
an addition that both can do without (a type, a flag announced in HELLO_OK) is added to testdata/protocol.txt, too`

// squeeze makes one line comparable: without comments, with single spaces.
func squeeze(line string) string {
	line = regexp.MustCompile(`/\*.*?(\*/|$)`).ReplaceAllString(line, "")
	return strings.Join(strings.Fields(line), " ")
}

// protocolLines are the lines of protocol.h that say numbers and layouts, each
// with what it belongs to, and those of PROTOCOL.md.
func protocolLines(t *testing.T) []string {
	t.Helper()
	header, err := os.ReadFile("monitor/protocol.h")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	within, member := "", 0
	for line := range strings.Lines(string(header)) {
		line = squeeze(line)
		switch {
		case strings.HasPrefix(line, "struct ") && strings.HasSuffix(line, "{"):
			within, member = strings.TrimSuffix(line, " {"), 0
		case strings.HasPrefix(line, "}"):
			within = ""
		case within != "" && line != "":
			member++
			lines = append(lines, within+" "+string(rune('a'+member-1))+" "+line)
		case regexp.MustCompile(`^[A-Z][A-Z0-9_]* = `).MatchString(line):
			lines = append(lines, line)
		case strings.HasPrefix(line, "#define PROGRAM_MAGIC"):
			lines = append(lines, line)
		}
	}
	text, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`^\| (0x)?[0-9]+ \|`)
	for line := range strings.Lines(string(text)) {
		if row.MatchString(line) || strings.HasPrefix(line, "    ") {
			lines = append(lines, "PROTOCOL.md "+squeeze(line))
		}
	}
	return lines
}

func TestFrozenProtocol(t *testing.T) {
	file := filepath.Join("testdata", "protocol.txt")
	golden, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want, got := strings.Split(strings.TrimSpace(string(golden)), "\n"), protocolLines(t)
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("gone or changed: %s\n%s", line, frozenProtocol)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("new: %s\n%s", line, frozenProtocol)
		}
	}
}

// What a monitor leaves is read by daemons of other versions.
func TestFrozenExitRecord(t *testing.T) {
	golden, err := os.ReadFile(filepath.Join("testdata", "exit.txt"))
	if err != nil {
		t.Fatal(err)
	}
	each(t, func(t *testing.T, bin *Binary) {
		b, ctx := newBox(t), testContext(t)
		m, err := bin.Launch(ctx, b.launch(initProgram(shell("exit 9")...)))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if _, err := m.Start(ctx); err != nil {
			t.Fatal(err)
		}
		b.finish(m)
		text, err := os.ReadFile(filepath.Join(b.dir, exitFile))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseExit(text); err != nil {
			t.Errorf("its sum: %v", err)
		}
		text = regexp.MustCompile(`(crc32c) [0-9]+`).ReplaceAll(text, []byte("$1 N"))
		golden := regexp.MustCompile(`(crc32c) [0-9]+`).ReplaceAll(golden, []byte("$1 N"))
		if got := regexp.MustCompile(`[0-9]{19}`).ReplaceAllString(string(text), "1234567890123456789"); got != string(golden) {
			t.Errorf("the exit record is not what testdata has: daemons of other versions read it, and leave out lines that they do not know: add at most\nwant\n%sgot\n%s", golden, got)
		}
	})
	want := Exit{Code: 9, StartedAt: 1234567890123456789, FinishedAt: 1234567890123456789}
	withoutSum, _, _ := strings.Cut(string(golden), sumKey) // of monitors of before
	for _, text := range []string{string(golden), withoutSum, withoutSum + "later 7 x\n"} {
		if got, err := parseExit([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}
