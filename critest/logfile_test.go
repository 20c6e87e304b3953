package critest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// logLine is one line of a container's log file.
type logLine struct {
	at      time.Time
	stream  string
	partial bool
	text    string
}

var errLogFormat = errors.New("not the CRI log format")

// parseLog takes a log apart and checks every line; the last line may still
// be in the writing.
func parseLog(data []byte) ([]logLine, error) {
	end := bytes.LastIndexByte(data, '\n')
	if end < 0 {
		return nil, nil
	}
	var out []logLine
	for i, line := range strings.Split(string(data[:end]), "\n") {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 || (f[1] != "stdout" && f[1] != "stderr") || (f[2] != "F" && f[2] != "P") {
			return nil, fmt.Errorf("line %d %.80q: %w", i+1, line, errLogFormat)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil {
			return nil, fmt.Errorf("line %d %.80q: %w", i+1, line, err)
		}
		out = append(out, logLine{at: at, stream: f[1], partial: f[2] == "P", text: f[3]})
	}
	return out, nil
}

// join puts the lines of each stream together as they were written.
func join(lines []logLine) (stdout, stderr string) {
	var out, errOut strings.Builder
	for _, l := range lines {
		to := &out
		if l.stream == "stderr" {
			to = &errOut
		}
		to.WriteString(l.text)
		if !l.partial {
			to.WriteByte('\n')
		}
	}
	return out.String(), errOut.String()
}

func readLog(paths ...string) (stdout, stderr string, err error) {
	var all []logLine
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			return "", "", fmt.Errorf("read a log: %w", err)
		}
		lines, err := parseLog(data)
		if err != nil {
			return "", "", fmt.Errorf("log %s: %w", p, err)
		}
		all = append(all, lines...)
	}
	stdout, stderr = join(all)
	return stdout, stderr, nil
}

func TestParseLogRefusesOtherFormats(t *testing.T) {
	good := "2026-11-22T02:03:04.000000005Z stdout F x\n"
	for _, test := range []struct {
		log string
		ok  bool
	}{
		{good, true},
		{good + "2026-11-22T02:0", true}, // in the writing
		{"", true},
		{"2026-11-22T02:03:04.000000005Z stdout F \n", true},
		{"plain text\n", false},
		{"2026-11-22T02:03:04Z stdin F x\n", false},
		{"2026-11-22T02:03:04Z stdout X x\n", false},
		{"yesterday stdout F x\n", false},
		{"{\"log\":\"x\"}\n", false},
	} {
		if _, err := parseLog([]byte(test.log)); (err == nil) != test.ok {
			t.Errorf("%q: %v", test.log, err)
		}
	}
}
