package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// becomeReaper makes orphans of the runtimes our children: whatever they
// leave behind can then be found without guessing by name.
func becomeReaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of orphans: %w", err)
	}
	return nil
}

// Process is a line of the process table.
type Process struct {
	PID, Parent int
	Command     string // as the kernel keeps it, at most 15 bytes
	State       byte
}

// Table reads the process table. Monitors of a daemon that is gone, which this
// process has got as the reaper of orphans, are buried if they have ended.
func Table() (map[int]Process, error) {
	all, err := names("/proc")
	if err != nil {
		return nil, err
	}
	out := map[int]Process{}
	for _, n := range all {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join("/proc", n, "stat"))
		if err != nil {
			continue // gone meanwhile
		}
		text := string(data)
		from, to := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
		rest := strings.Fields(text[to+1:])
		if from < 0 || len(rest) < 2 {
			continue
		}
		parent, err := strconv.Atoi(rest[1])
		if err != nil {
			continue
		}
		p := Process{PID: pid, Parent: parent, Command: text[from+1 : to], State: rest[0][0]}
		if p.State == 'Z' && parent == os.Getpid() && (p.Command == "cri-monitor" || p.Command == "cri-pause") {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // another goroutine may have done it
			continue
		}
		out[pid] = p
	}
	return out, nil
}

// Descendants lists all processes below pid.
func Descendants(table map[int]Process, pid int) []Process {
	var out []Process
	for p, entry := range table {
		for at, depth := p, 0; at > 1 && depth < 64; depth++ {
			parent := table[at].Parent
			if parent == pid {
				out = append(out, entry)
				break
			}
			at = parent
		}
	}
	slices.SortFunc(out, func(a, b Process) int { return a.PID - b.PID })
	return out
}

// processes lists the descendants of this process that can only come from
// the runtime, and reaps those that have ended.
func (r *Runtime) processes() ([]string, error) {
	table, err := Table()
	if err != nil {
		return nil, err
	}
	self := os.Getpid()
	var out []string
	for _, p := range Descendants(table, self) {
		if p.PID == r.PID() || p.Command == "nft" || p.Command == "ip" {
			continue
		}
		if p.State == 'Z' && p.Parent == self && !r.own(p.PID) {
			var status unix.WaitStatus
			_, _ = unix.Wait4(p.PID, &status, unix.WNOHANG, nil)
			continue
		}
		if p.State == 'Z' || r.foreign(table, p) {
			continue
		}
		out = append(out, fmt.Sprintf("%d (%s, parent %d)", p.PID, p.Command, p.Parent))
	}
	return out, nil
}

func (r *Runtime) own(pid int) bool { return pid == r.PID() }

// foreign tells whether p is a daemon that another Runtime of this test runs,
// or descends from one.
func (r *Runtime) foreign(table map[int]Process, p Process) bool {
	for at := p; at.PID > 1 && at.PID != os.Getpid(); at = table[at.Parent] {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", at.PID))
		if err == nil && strings.Contains(string(line), "config.toml") && !strings.Contains(string(line), r.Dir) {
			return true
		}
	}
	return false
}
