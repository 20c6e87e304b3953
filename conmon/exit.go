package conmon

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Exit is how a process ended.
type Exit struct {
	Code        int32       // exit status, or 128 + Signal
	Signal      unix.Signal // what killed it, 0 when it exited by itself
	OOMKilled   bool        // the kernel has killed in its cgroup for want of memory
	StartFailed bool        // its command was never run
	StartedAt   int64       // ns since the epoch, 0: never
	FinishedAt  int64       // ns since the epoch
}

const (
	exitFile      = "exit"
	exitRecordMax = 4096
)

// ReadExit reads the exit record that a monitor has left in dir. The error is
// os.ErrNotExist when there is none, ErrExitRecord when it makes no sense.
func ReadExit(dir string) (Exit, error) {
	f, err := os.Open(filepath.Join(dir, exitFile))
	if err != nil {
		return Exit{}, fmt.Errorf("exit record: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, exitRecordMax+1))
	if err != nil {
		return Exit{}, fmt.Errorf("exit record %s: %w", f.Name(), err)
	}
	e, err := parseExit(text)
	if err != nil {
		return Exit{}, fmt.Errorf("exit record %s: %w", f.Name(), err)
	}
	return e, nil
}

// sumKey begins the last line of a record, the CRC-32C of all before it. Monitors
// of before it was there leave it out.
const sumKey = "crc32c "

// checkSum verifies the sum of a record that has one.
func checkSum(text []byte) error {
	at := bytes.LastIndex(text[:max(0, len(text)-1)], []byte("\n")) + 1
	value, found := bytes.CutPrefix(text[at:], []byte(sumKey))
	if !found {
		return nil
	}
	sum := crc32.Checksum(text[:at], crc32.MakeTable(crc32.Castagnoli))
	if want := strconv.FormatUint(uint64(sum), 10) + "\n"; string(value) != want {
		return fmt.Errorf("%w: its checksum is %.12q, that of its content %q", ErrExitRecord, value, want)
	}
	return nil
}

// parseExit reads lines of "key value". Unknown keys are those of a later
// version and left out; a known one that is missing or repeated is an error.
func parseExit(text []byte) (Exit, error) {
	if len(text) > exitRecordMax || !bytes.HasSuffix(text, []byte("\n")) {
		return Exit{}, fmt.Errorf("%w: %d bytes", ErrExitRecord, len(text))
	}
	if err := checkSum(text); err != nil {
		return Exit{}, err
	}
	keys := [...]string{"version", "code", "signal", "oom_killed", "flags", "started_ns", "finished_ns"}
	limits := [len(keys)]uint64{math.MaxUint32, 255, 64, math.MaxUint32, math.MaxUint32, math.MaxInt64, math.MaxInt64}
	var values [len(keys)]uint64
	var seen [len(keys)]bool
	for line := range bytes.Lines(text) {
		key, value, found := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
		if !found {
			return Exit{}, fmt.Errorf("%w: line %q", ErrExitRecord, line)
		}
		for i := range keys {
			if keys[i] != string(key) {
				continue
			}
			n, err := strconv.ParseUint(string(value), 10, 64)
			if err != nil || n > limits[i] || seen[i] {
				return Exit{}, fmt.Errorf("%w: line %q", ErrExitRecord, line)
			}
			values[i], seen[i] = n, true
		}
	}
	for i := range keys {
		if !seen[i] {
			return Exit{}, fmt.Errorf("%w: no %s", ErrExitRecord, keys[i])
		}
	}
	if values[0] != protocolVersion {
		return Exit{}, fmt.Errorf("%w: version %d: %w", ErrExitRecord, values[0], errors.ErrUnsupported)
	}
	return Exit{
		Code:        int32(values[1]),
		Signal:      unix.Signal(values[2]),
		OOMKilled:   values[3] > 0,
		StartFailed: values[4]&exitStartFailed != 0,
		StartedAt:   int64(values[5]),
		FinishedAt:  int64(values[6]),
	}, nil
}
