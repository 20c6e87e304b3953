package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

const mebi = 1 << 20

// table has a block of rows for each image.
type table struct{ blocks []block }

type block struct {
	image *image
	rows  []row
}

// row is what one contestant reached.
type row struct {
	who   string
	taken []sample
}

func (t *table) image(i *image, all []contestant, taken [][]sample) {
	b := block{image: i}
	for k, c := range all {
		if len(taken[k]) > 0 {
			b.rows = append(b.rows, row{who: c.name(), taken: taken[k]})
		}
	}
	t.blocks = append(t.blocks, b)
}

// of returns the least and the middle of one value of the samples.
func of[T cmp.Ordered](taken []sample, value func(sample) T) (least, middle T) {
	all := make([]T, 0, len(taken))
	for _, s := range taken {
		all = append(all, value(s))
	}
	slices.Sort(all)
	return all[0], all[len(all)/2]
}

func (t *table) print(out io.Writer) error {
	for _, b := range t.blocks {
		fmt.Fprintf(out, "\n%s: %s; %d layers, %d entries, %.0f MiB compressed, %.1f MiB in 4 KiB blocks\n", b.image.name, b.image.what,
			b.image.layers, b.image.entries, float64(b.image.compressed)/mebi, float64(b.image.unpacked)/mebi)
		w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, "\twall min\tp50 s\tours/it min\tp50\tgoal\tCPU min\tp50 s\tours/it\tworst peak +MiB\tdisk MiB\tmachine busy\tI/O wait\tunpack alone s\t")
		for _, r := range b.rows {
			fmt.Fprintf(w, "%s\t%s\n", r.who, r.line(b))
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("print the table: %w", err)
		}
	}
	return nil
}

func (r row) line(b block) string {
	wall, wallMid := of(r.taken, func(s sample) time.Duration { return s.wall })
	cpu, cpuMid := of(r.taken, func(s sample) time.Duration { return s.cpu })
	negative, _ := of(r.taken, func(s sample) int64 { return -s.memory })
	_, disk := of(r.taken, func(s sample) int64 { return s.disk })
	_, busy := of(r.taken, func(s sample) float64 { return s.busy })
	_, waiting := of(r.taken, func(s sample) float64 { return s.waiting })
	unpack, _ := of(r.taken, func(s sample) time.Duration { return s.unpack })
	ratio, ratioMid, ratioCPU, goal, alone := "", "", "", "", ""
	if first := b.rows[0]; first.who != r.who {
		own, ownMid := of(first.taken, func(s sample) time.Duration { return s.wall })
		ratio = fmt.Sprintf("%.2f", own.Seconds()/wall.Seconds())
		ratioMid = fmt.Sprintf("%.2f", ownMid.Seconds()/wallMid.Seconds())
		ownCPU, _ := of(first.taken, func(s sample) time.Duration { return s.cpu })
		if cpu > 0 {
			ratioCPU = fmt.Sprintf("%.2f", ownCPU.Seconds()/cpu.Seconds())
		}
		goal = b.image.goal
	}
	if unpack > 0 {
		alone = fmt.Sprintf("%.2f", unpack.Seconds())
	}
	return fmt.Sprintf("%.2f\t%.2f\t%s\t%s\t%s\t%.2f\t%.2f\t%s\t%.0f\t%.1f\t%.0f%%\t%.0f%%\t%s\t",
		wall.Seconds(), wallMid.Seconds(), ratio, ratioMid, goal, cpu.Seconds(), cpuMid.Seconds(), ratioCPU,
		float64(-negative)/mebi, float64(disk)/mebi, 100*busy, 100*waiting, alone)
}
