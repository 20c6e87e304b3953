package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

const (
	logRounds = 3
	logEnd    = "the end of the log"
	// clockTick is USER_HZ, the unit of the times in /proc/PID/stat.
	clockTick = time.Second / 100
)

// logs measures how fast lines of 100 bytes get from a container into its log,
// and what that costs the runtime, without the container's own part.
func (b *bench) logs(ctx context.Context) error {
	rate, used := make([]float64, len(b.runtimes)), make([]float64, len(b.runtimes))
	took, cost := make([]samples, len(b.runtimes)), make([]samples, len(b.runtimes))
	for range logRounds {
		for k, r := range b.runtimes {
			t, c, err := b.logRound(ctx, r)
			if err != nil {
				return fmt.Errorf("%s: %w", r.Name, err)
			}
			took[k], cost[k] = append(took[k], t), append(cost[k], c)
		}
	}
	for k := range b.runtimes {
		rate[k] = float64(b.options.logs) / took[k].quantile(0.5) * 1000
		used[k] = cost[k].quantile(0.5) / float64(b.options.logs) * 1024
	}
	b.table.figure("log of 100-byte lines", "MiB/s", "2 times the peer's", true, rate)
	b.table.figure("processor time of a GiB of log", "ms", "half the peer's", false, used)
	return nil
}

// logRound returns the time until everything is in the log, and the processor time of
// the daemon and whatever else of the runtime has a part in it.
func (b *bench) logRound(ctx context.Context, r *runtime) (took, used time.Duration, err error) {
	p, err := b.newPod(r, false)
	if err != nil {
		return 0, 0, err
	}
	// A file of 8 MiB, written again and again: next to nothing of the
	// container's own time goes into making lines.
	script := fmt.Sprintf("yes %099d | head -n 83886 > /tmp/lines; echo ready; read x < /tmp/go; i=0; while [ $i -lt %d ]; do cat /tmp/lines; i=$((i+1)); done; echo %s; exec sleep 3600", 0, b.options.logs/8, logEnd)
	if err := p.up(ctx, []string{"sh", "-c", "mkfifo /tmp/go; " + script}); err != nil {
		return 0, 0, err
	}
	if err := p.ready(ctx); err != nil {
		return 0, 0, err
	}
	if err := idle(ctx, 20*b.options.gap); err != nil {
		return 0, 0, err
	}
	before, err := runtimeTime(r)
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	if _, _, err := r.CRI.ExecSync(ctx, p.container, []string{"sh", "-c", "echo go > /tmp/go"}, time.Minute); err != nil {
		return 0, 0, err
	}
	log := filepath.Join(p.config.LogDirectory, "main.log")
	if err := harness.Until(ctx, 10*time.Minute, "the end of the log", func() bool { return endsWith(log, logEnd+"\n") }); err != nil {
		return 0, 0, err
	}
	took = time.Since(begin)
	after, err := runtimeTime(r)
	if err != nil {
		return 0, 0, err
	}
	return took, after - before, p.down(ctx)
}

// endsWith looks at the end of a file that somebody writes.
func endsWith(path, text string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	tail := make([]byte, len(text))
	if _, err := f.Seek(-int64(len(text)), io.SeekEnd); err != nil {
		return false
	}
	_, err = io.ReadFull(f, tail)
	return err == nil && bytes.Equal(tail, []byte(text))
}

// runtimeTime is the processor time so far of the daemon and of the other
// processes that it keeps for its pods, without the workloads.
func runtimeTime(r *runtime) (total time.Duration, err error) {
	all, err := harness.Table()
	if err != nil {
		return 0, err
	}
	for _, p := range harness.Descendants(all, os.Getpid()) {
		if p.PID != r.PID() && (r.Name == "containerd") != strings.HasPrefix(p.Command, "containerd-shim") {
			continue
		}
		if p.PID != r.PID() && r.Name != "containerd" && !strings.HasPrefix(p.Command, "cri-monitor") {
			continue
		}
		t, err := ownTime(p.PID)
		if errors.Is(err, os.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			return 0, err
		}
		total += t
	}
	return total, nil
}

// ownTime is the processor time of a process, without its children.
func ownTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	const user, system = 11, 12 // fields after the command's name
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) <= system {
		return 0, fmt.Errorf("processor time of process %d: %w", pid, errNoValue)
	}
	var ticks time.Duration
	for _, f := range fields[user : system+1] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
		}
		ticks += time.Duration(n)
	}
	return ticks * clockTick, nil
}
