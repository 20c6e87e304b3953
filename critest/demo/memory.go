package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// memory tells what the daemon and its monitors take of the machine's memory.
func (d *demo) memory(context.Context) (string, error) {
	daemon := d.node.cmd.Process.Pid
	own, err := pss(daemon)
	if err != nil {
		return "", err
	}
	monitors, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return "", err
	}
	count, sum := 0, 0
	for _, name := range monitors {
		text, readErr := os.ReadFile(name)
		if readErr != nil {
			continue // it has ended meanwhile
		}
		command, parent, ok := parseStat(string(text))
		if !ok || command != "cri-monitor" || parent != daemon {
			continue
		}
		pid, convErr := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if convErr != nil {
			return "", convErr
		}
		if kib, pssErr := pss(pid); pssErr == nil {
			count, sum = count+1, sum+kib
		}
	}
	return fmt.Sprintf("runtime %.1f MiB, %d monitor(s) %d KiB together", float64(own)/1024, count, sum), nil
}

// parseStat returns the second and the fourth field of /proc/PID/stat.
func parseStat(text string) (command string, parent int, ok bool) {
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return "", 0, false
	}
	fields := strings.Fields(text[end+1:])
	if len(fields) < 2 {
		return "", 0, false
	}
	parent, err := strconv.Atoi(fields[1])
	return text[open+1 : end], parent, err == nil
}

// pss returns the proportional set size of a process in KiB.
func pss(pid int) (int, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // opened for reading only
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if text, found := strings.CutPrefix(lines.Text(), "Pss:"); found {
			return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(text), " kB"))
		}
	}
	return 0, fmt.Errorf("%w: no Pss line in smaps_rollup of %d", errShown, pid)
}
