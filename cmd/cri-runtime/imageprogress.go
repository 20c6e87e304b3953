package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/imageservice"
)

const (
	barWidth    = 24
	shortDigits = 12 // of a digest, for people
)

// terminalSize returns the size of w if it is a terminal.
func terminalSize(w io.Writer) (columns, rows int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, false
	}
	return max(int(size.Col), 40), max(int(size.Row), 5), true
}

// screen draws the same lines over and over on a terminal.
type screen struct {
	w     io.Writer
	drawn int
}

func (s *screen) draw(lines []string) {
	columns, rows, _ := terminalSize(s.w)
	columns, rows = max(columns, 40), max(rows, 5)
	if len(lines) > rows-1 {
		more := len(lines) - rows + 2
		lines = append(lines[:rows-2:rows-2], fmt.Sprintf("  ... and %d more lines", more))
	}
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.drawn)
	}
	for _, line := range lines {
		if runes := []rune(line); len(runes) >= columns {
			line = string(runes[:columns-1])
		}
		b.WriteString("\r\x1b[K" + line + "\n")
	}
	b.WriteString("\x1b[J")
	s.drawn = len(lines)
	_, _ = io.WriteString(s.w, b.String())
}

// speedometer tells how fast a number grows.
type speedometer struct {
	last  int64
	at    time.Time
	speed float64 // smoothed, per second
}

func (m *speedometer) update(now time.Time, value int64) {
	const inertia = 0.7
	if m.at.IsZero() || value < m.last {
		m.last, m.at = value, now
		return
	}
	seconds := now.Sub(m.at).Seconds()
	if seconds <= 0 {
		return
	}
	current := float64(value-m.last) / seconds
	if m.speed == 0 {
		m.speed = current
	}
	m.speed = inertia*m.speed + (1-inertia)*current
	m.last, m.at = value, now
}

// pullLines shows a pull: what it is about, and each layer with a bar.
func pullLines(p *imageservice.PullProgress, speed float64) []string {
	head := fmt.Sprintf("%s: %s", printable(p.Reference), p.State)
	if len(p.Layers) > 0 {
		head += fmt.Sprintf(", %s of %s", size(p.Downloaded), size(p.Total-p.Reused))
	}
	if p.Reused > 0 {
		head += fmt.Sprintf(", %s reused", size(p.Reused))
	}
	if speed > 0 && p.Ended.IsZero() {
		head += fmt.Sprintf(", %s/s", size(int64(speed)))
	}
	if p.Clients > 1 {
		head += fmt.Sprintf(", %d clients", p.Clients)
	}
	if p.Error != "" {
		head += ": " + printable(p.Error)
	}
	lines := []string{head}
	for _, l := range p.Layers {
		lines = append(lines, layerLine(l))
	}
	return lines
}

func layerLine(l imageservice.LayerProgress) string {
	line := fmt.Sprintf("  %s %-11s", shortID(l.Digest.String()), l.State)
	switch l.State {
	case imageservice.LayerDownloading:
		return line + fmt.Sprintf(" [%s] %9s of %s, %s unpacked", bar(l.Downloaded, l.Total), size(l.Downloaded), size(l.Total), size(l.Unpacked))
	case imageservice.LayerDone:
		return line + fmt.Sprintf(" [%s] %9s", bar(1, 1), size(l.Total))
	case imageservice.LayerWaiting, imageservice.LayerPresent:
	}
	return line + fmt.Sprintf(" %s %9s", strings.Repeat(" ", barWidth+2), size(l.Total))
}

func bar(done, total int64) string {
	n := barWidth
	if total > 0 {
		n = int(min(max(done, 0), total) * barWidth / total)
	}
	return strings.Repeat("=", n) + strings.Repeat(" ", barWidth-n)
}

// plainProgress shows the same on what is no terminal: a line when a layer
// changes its state.
type plainProgress struct {
	w      io.Writer
	states map[string]imageservice.LayerState
}

func (p *plainProgress) show(now *imageservice.PullProgress) {
	for _, l := range now.Layers {
		key := l.Digest.String()
		if p.states[key] == l.State || l.State == imageservice.LayerWaiting {
			continue
		}
		p.states[key] = l.State
		fmt.Fprintf(p.w, "%s %s %s\n", shortID(key), l.State, size(l.Total))
	}
}

// summary says at the end what a pull has cost.
func summary(p *imageservice.PullProgress) string {
	took := p.Ended.Sub(p.Started)
	reused, downloaded := 0, 0
	for _, l := range p.Layers {
		if l.State == imageservice.LayerPresent {
			reused++
		} else {
			downloaded++
		}
	}
	text := fmt.Sprintf("%s in %s", size(p.Downloaded), took.Round(time.Millisecond))
	if seconds := took.Seconds(); seconds > 0 && p.Downloaded > 0 {
		text += fmt.Sprintf(" (%s/s)", size(int64(float64(p.Downloaded)/seconds)))
	}
	text += fmt.Sprintf(", layers: %d downloaded, %d reused", downloaded, reused)
	if p.Total > 0 {
		text += fmt.Sprintf("; reused %s of %s (%d %%)", size(p.Reused), size(p.Total), p.Reused*100/p.Total)
	}
	return text
}

// shortID shortens a digest for people.
func shortID(id string) string {
	_, digits, ok := strings.Cut(id, ":")
	if !ok {
		digits = id
	}
	return digits[:min(len(digits), shortDigits)]
}

// size writes a number of bytes for people: 1.5 MB.
func size[T int64 | uint64](bytes T) string {
	const step = 1000
	value, units := float64(bytes), []string{"B", "kB", "MB", "GB", "TB", "PB"}
	i := 0
	for value >= step && i < len(units)-1 {
		value /= step
		i++
	}
	if i == 0 || value >= 100 {
		return fmt.Sprintf("%.0f %s", value, units[i])
	}
	return fmt.Sprintf("%.1f %s", value, units[i])
}

// age writes how long ago something was, for people.
func age(at, now time.Time) string {
	const day = 24 * time.Hour
	d := now.Sub(at)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", max(int(d.Seconds()), 0))
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 2*day:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d/day))
}
