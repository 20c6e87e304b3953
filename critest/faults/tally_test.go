package faults

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Lines of the table that is printed at the end. A test may count under any
// other name, too.
const (
	pointsCovered    = "fault points at which the daemon was killed"
	pointsImpossible = "fault points that cannot be reached"
	daemonKills      = "kills of the daemon"
	monitorKills     = "kills of monitors"
	recordsMutilated = "records mutilated"
	podsRun          = "pods run"
	execsRun         = "execs run"
	fullChecks       = "full checks"
	logLinesChecked  = "log lines checked"
	// The last two are found by the checks and must be 0.
	logLinesLost = "log lines lost or doubled"
	thingsLeaked = "things left behind"
)

// tally is what was tried, by name. It is safe for concurrent use.
type tally struct {
	mu    sync.Mutex
	count map[string]int
	notes []string
}

var figures = tally{count: map[string]int{logLinesLost: 0, thingsLeaked: 0}}

// count adds n to a line of the table.
func count(what string, n int) {
	figures.mu.Lock()
	defer figures.mu.Unlock()
	figures.count[what] += n
}

// of is what was counted under a name.
func (t *tally) of(what string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count[what]
}

// note adds a sentence below the table, once.
func note(format string, args ...any) {
	figures.mu.Lock()
	defer figures.mu.Unlock()
	if line := fmt.Sprintf(format, args...); !slices.Contains(figures.notes, line) {
		figures.notes = append(figures.notes, line)
	}
}

func (t *tally) print(w io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(t.count)) {
		fmt.Fprintf(w, "%8d  %s\n", t.count[what], what)
	}
	if len(t.notes) > 0 {
		fmt.Fprintln(w, strings.Join(t.notes, "\n"))
	}
}
