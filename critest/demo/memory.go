package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// memory tells what the daemon and its monitors take of the machine's memory.
func (d *demo) memory(context.Context) (string, error) {
	daemon, err := pss(d.node.PID())
	if err != nil {
		return "", err
	}
	table, err := harness.Table()
	if err != nil {
		return "", err
	}
	count, sum := 0, 0
	for _, p := range harness.Descendants(table, os.Getpid()) {
		if p.Command != "cri-monitor" {
			continue
		}
		if kib, pssErr := pss(p.PID); pssErr == nil { // it may have ended meanwhile
			count, sum = count+1, sum+kib
		}
	}
	return fmt.Sprintf("runtime %.1f MiB, %d monitor(s) %d KiB", float64(daemon)/1024, count, sum), nil
}

// pss returns the proportional set size of a process in KiB.
func pss(pid int) (int, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if text, found := strings.CutPrefix(lines.Text(), "Pss:"); found {
			return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(text), " kB"))
		}
	}
	return 0, fmt.Errorf("%w: no Pss line in smaps_rollup of %d", errShown, pid)
}
