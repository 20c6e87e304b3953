package faults

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// census is what the daemon has at one moment: figures that must not grow with
// the number of things that it has done.
type census struct {
	goroutines, descriptors, threads  int
	heap, resident                    int // KiB; heap after a collection
	processes, mounts, links, cgroups int
	files, rules                      int
	processor                         float64 // seconds used so far
}

// control asks the daemon's own interface.
func (n *node) control(ctx context.Context, path string) ([]byte, error) {
	dialer := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.Dir, "state", "control.sock"))
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dialer, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://control"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %w", path, resp.Status, errFault)
	}
	return data, err
}

// metrics are the daemon's metrics without labels.
func (n *node) metrics(ctx context.Context) (map[string]float64, error) {
	data, err := n.control(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(data)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if f, err := strconv.ParseFloat(value, 64); ok && err == nil {
			out[name] = f
		}
	}
	return out, nil
}

// census counts, after a garbage collection.
func (n *node) census(ctx context.Context) (census, error) {
	var c census
	if _, err := n.control(ctx, "/debug/pprof/heap?gc=1"); err != nil {
		return c, err
	}
	// The metric of that name counts those that gather the metrics, too.
	stacks, err := n.control(ctx, "/debug/pprof/goroutine?debug=1")
	if err == nil {
		_, err = fmt.Sscanf(string(stacks), "goroutine profile: total %d", &c.goroutines)
	}
	if err != nil {
		return c, fmt.Errorf("count the goroutines: %w", err)
	}
	m, err := n.metrics(ctx)
	if err != nil {
		return c, err
	}
	r, err := n.Residue()
	if err != nil {
		return c, err
	}
	c = census{
		goroutines: c.goroutines, descriptors: int(m["process_open_fds"]), threads: int(m["go_threads"]),
		heap: int(m["go_memstats_heap_alloc_bytes"]) >> 10, resident: int(m["process_resident_memory_bytes"]) >> 10,
		processes: len(lasting(r.Processes)), mounts: len(r.Mounts), links: len(r.Links), cgroups: len(r.Cgroups),
		files: len(r.Files), rules: len(r.Rules), processor: m["process_cpu_seconds_total"],
	}
	return c, nil
}

// String is one line of figures.
func (c census) String() string {
	return fmt.Sprintf("goroutines %d, threads %d, descriptors %d, heap %d KiB, resident %d KiB, processes %d, mounts %d, links %d, cgroups %d, files %d, rules %d",
		c.goroutines, c.threads, c.descriptors, c.heap, c.resident, c.processes, c.mounts, c.links, c.cgroups, c.files, c.rules)
}

// above says what is more than in base, but for what a Go program keeps by
// design: threads, and memory in moderation.
func (c census) above(base census) []string {
	const moreHeap, mostThreads = 4 << 10, 200
	var out []string
	for _, f := range []struct {
		what        string
		have, allow int
	}{
		{"goroutines", c.goroutines, base.goroutines + 2}, // of the connection that asks
		{"descriptors", c.descriptors, base.descriptors + 2},
		{"threads", c.threads, max(base.threads, mostThreads)},
		{"KiB of heap", c.heap, base.heap + moreHeap},
		{"processes", c.processes, base.processes},
		{"mounts", c.mounts, base.mounts},
		{"links", c.links, base.links},
		{"cgroups", c.cgroups, base.cgroups},
		{"files", c.files, base.files},
		{"rules", c.rules, base.rules},
	} {
		if f.have > f.allow {
			out = append(out, fmt.Sprintf("%d %s, at most %d were expected", f.have, f.what, f.allow))
		}
	}
	return out
}

// monitors adds up what the monitors of this node take.
func (n *node) monitors() (count, resident, proportionate int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, 0, 0, err
	}
	for _, dir := range dirs {
		name, err := os.ReadFile(dir + "/comm")
		if err != nil || strings.TrimSpace(string(name)) != "cri-monitor" || !n.serves(dir) {
			continue
		}
		rss, pss, err := rollup(dir)
		if err != nil {
			continue // it has ended
		}
		count, resident, proportionate = count+1, resident+rss, proportionate+pss
	}
	return count, resident, proportionate, nil
}

// serves tells whether a monitor is in this node's cgroup for monitors.
func (n *node) serves(dir string) bool {
	data, err := os.ReadFile(dir + "/cgroup")
	return err == nil && strings.Contains(string(data), n.Parent+"/")
}

func rollup(dir string) (rss, pss int, err error) {
	f, err := os.Open(dir + "/smaps_rollup")
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var n int
		if _, err := fmt.Sscanf(s.Text(), "Rss: %d kB", &n); err == nil {
			rss = n
		}
		if _, err := fmt.Sscanf(s.Text(), "Pss: %d kB", &n); err == nil {
			pss = n
		}
	}
	return rss, pss, nil
}
