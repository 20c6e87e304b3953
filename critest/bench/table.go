package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// samples are durations of the same thing.
type samples []time.Duration

func (s samples) quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Clone(s)
	slices.Sort(sorted)
	return float64(sorted[int(q*float64(len(sorted)-1)+0.5)]) / float64(time.Millisecond)
}

// row is one line of the table: a figure for each runtime.
type row struct {
	what, unit string
	values     []float64 // p50, or the only value
	tails      []float64 // p90, nil when there is none
	goal       string    // of the project's own runtime
	rising     bool      // more is better
}

type table struct{ rows []row }

// durations adds a row of latencies.
func (t *table) durations(what, goal string, of []samples) {
	r := row{what: what, unit: "ms", goal: goal}
	for _, s := range of {
		r.values = append(r.values, s.quantile(0.5))
		r.tails = append(r.tails, s.quantile(0.9))
	}
	t.rows = append(t.rows, r)
}

func (t *table) figure(what, unit, goal string, rising bool, values []float64) {
	t.rows = append(t.rows, row{what: what, unit: unit, goal: goal, rising: rising, values: values})
}

func (t *table) print(out io.Writer, names []string) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprint(w, "what\tunit")
	for _, n := range names {
		fmt.Fprintf(w, "\t%s p50\tp90", n)
	}
	fmt.Fprintln(w, "\ttimes better\tgoal")
	for _, r := range t.rows {
		fmt.Fprintf(w, "%s\t%s", r.what, r.unit)
		for i := range names {
			tail := ""
			if i < len(r.tails) {
				tail = fmt.Sprintf("%.2f", r.tails[i])
			}
			if i < len(r.values) {
				fmt.Fprintf(w, "\t%.2f\t%s", r.values[i], tail)
			} else {
				fmt.Fprint(w, "\t\t")
			}
		}
		fmt.Fprintf(w, "\t%s\t%s\n", r.ratio(), r.goal)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	return nil
}

func (r row) ratio() string {
	if len(r.values) < 2 || r.values[0] <= 0 || r.values[1] <= 0 {
		return ""
	}
	if r.rising {
		return fmt.Sprintf("%.1f", r.values[0]/r.values[1])
	}
	return fmt.Sprintf("%.1f", r.values[1]/r.values[0])
}
