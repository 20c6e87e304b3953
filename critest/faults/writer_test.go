package faults

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// writer is a container that prints 1, 2, 3... 200 times a second and must
// not notice any fault: no line is lost or doubled, and its process stays.
type writer struct {
	*container
	lines int // that the last check found
}

// writers starts one container in each of count pods of their own.
func (n *node) writers(ctx context.Context, count int, options ...podOption) ([]*writer, error) {
	var out []*writer
	for range count {
		p, err := n.run(ctx, options...)
		if err != nil {
			return out, err
		}
		c, err := n.start(ctx, p, `i=0; while :; do i=$((i+1)); echo $i; usleep 5000; done`)
		if err != nil {
			return out, err
		}
		out = append(out, &writer{container: c})
	}
	return out, nil
}

// check tells what is wrong with a writer; its log must have grown since the last check.
func (n *node) checkWriter(ctx context.Context, w *writer) error {
	st, err := n.status(ctx, w.id)
	if err != nil {
		return err
	}
	if st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("a writer that nobody stopped is %s: code %d, %s %s: %w", st.State, st.ExitCode, st.Reason, st.Message, errFault)
	}
	return harness.Until(ctx, patience, "new lines in "+w.logPath(), func() bool {
		var lines int
		if lines, err = checkLog(w.logPath()); err != nil {
			return true
		}
		grown := lines > w.lines
		if grown {
			count(logLinesChecked, lines-w.lines)
			w.lines = lines
		}
		return grown
	})
}

// checkLog checks that a log has the lines 1, 2, 3..., each once and with a
// time not before the last one's, and returns how many.
func checkLog(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	text, n, last := string(data), 0, time.Time{}
	text = text[:strings.LastIndexByte(text, '\n')+1] // the last one may still be in the writing
	for line := range strings.Lines(text) {
		n++
		f := strings.Fields(line)
		if len(f) != 4 || f[1] != "stdout" || f[2] != "F" || f[3] != strconv.Itoa(n) {
			count(logLinesLost, 1)
			return n, fmt.Errorf("line %d of %s is %q: %w", n, path, line, errFault)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil || at.Before(last) {
			return n, fmt.Errorf("line %d of %s, %q, after %s: %w", n, path, line, last, errFault)
		}
		last = at
	}
	return n, nil
}
