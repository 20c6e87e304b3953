package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

const accounting = "/sys/fs/cgroup/cpuacct"

// isolate puts the daemon into a cgroup for processor time below its Parent,
// where its pods are, too: the Parent's total is then the cost of everything.
func isolate(r *harness.Runtime) error {
	top := accounting
	if _, err := os.Stat(top); errors.Is(err, fs.ErrNotExist) {
		top = "/sys/fs/cgroup"
	}
	dir := top + r.Parent + "/default/daemon"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the accounting cgroup: %w", err)
	}
	if err := os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(r.PID())), 0); err != nil {
		return fmt.Errorf("move the daemon to %s: %w", dir, err)
	}
	return nil
}

// processorTime is what r and all its pods have used.
func processorTime(r *harness.Runtime) (time.Duration, error) {
	if data, err := os.ReadFile(accounting + r.Parent + "/cpuacct.usage"); err == nil {
		n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
		return time.Duration(n), err
	}
	data, err := os.ReadFile("/sys/fs/cgroup" + r.Parent + "/cpu.stat")
	if err != nil {
		return 0, fmt.Errorf("read the processor time: %w", err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseInt(v, 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("usage_usec: %w", errNoValue)
}

// cpu measures the processor time of a pod's whole life, daemon, monitors,
// plugins and the container itself together.
func (b *bench) cpu(ctx context.Context) error {
	values := make([]float64, len(b.runtimes))
	idleUse := make([]float64, len(b.runtimes))
	const rounds = 5
	each := max(1, b.options.n/rounds)
	taken := make([]samples, len(b.runtimes))
	for range rounds {
		for k, r := range b.runtimes {
			before, err := processorTime(r.Runtime)
			if err != nil {
				return err
			}
			for range each {
				p, err := b.newPod(r, false)
				if err != nil {
					return err
				}
				// The lightest workload; it ends by SIGKILL.
				if err := p.up(ctx, []string{"sleep", "3600"}); err != nil {
					return fmt.Errorf("%s: %w", r.Name, err)
				}
				if err := r.CRI.StopContainer(ctx, p.container, 0); err != nil {
					return fmt.Errorf("%s: %w", r.Name, err)
				}
				if err := p.down(ctx); err != nil {
					return fmt.Errorf("%s: %w", r.Name, err)
				}
			}
			after, err := processorTime(r.Runtime)
			if err != nil {
				return err
			}
			taken[k] = append(taken[k], (after-before)/time.Duration(each))
		}
	}
	for k, r := range b.runtimes {
		values[k] = taken[k].quantile(0.5)
		before, err := processorTime(r.Runtime)
		if err != nil {
			return err
		}
		if err := idle(ctx, 3*time.Second); err != nil {
			return err
		}
		after, err := processorTime(r.Runtime)
		if err != nil {
			return err
		}
		idleUse[k] = float64(after-before) / float64(3*time.Second) * 1000
	}
	b.table.figure("processor time of a pod's life", "ms", "<= 12", false, values)
	b.table.figure("processor time when idle", "ms/s", "", false, idleUse)
	return nil
}

// quiet is how long nothing happens before memory is measured: daemons give some back.
const quiet = 8 * time.Second

// memory measures the daemon and everything else that a runtime keeps, with
// no pods and with many.
func (b *bench) memory(ctx context.Context) error {
	idleDaemon, busyDaemon := make([]float64, len(b.runtimes)), make([]float64, len(b.runtimes))
	perPod := make([]float64, len(b.runtimes))
	for k, r := range b.runtimes {
		if err := idle(ctx, quiet); err != nil {
			return err
		}
		daemon, _, err := footprint(r)
		if err != nil {
			return err
		}
		idleDaemon[k] = daemon / 1024
		pods := make([]*pod, b.options.pods)
		group, inner := errgroup.WithContext(ctx)
		group.SetLimit(4)
		for i := range pods {
			if pods[i], err = b.newPod(r, false); err != nil {
				return err
			}
			group.Go(func() error { return pods[i].up(inner, []string{"sleep", "3600"}) })
		}
		if err := group.Wait(); err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
		if err := idle(ctx, quiet); err != nil {
			return err
		}
		daemon, others, err := footprint(r)
		if err != nil {
			return err
		}
		busyDaemon[k], perPod[k] = daemon/1024, others/float64(b.options.pods)
		for _, p := range pods {
			if err := p.down(ctx); err != nil {
				return fmt.Errorf("%s: %w", r.Name, err)
			}
		}
	}
	b.table.figure("daemon, no pods (PSS)", "MiB", "<= 30", false, idleDaemon)
	b.table.figure(fmt.Sprintf("daemon, %d pods (PSS)", b.options.pods), "MiB", "<= 40", false, busyDaemon)
	b.table.figure("a pod besides the daemon and its workload (PSS)", "KiB", "<= 64", false, perPod)
	return nil
}

// footprint is the proportional set size in KiB of the daemon and of the
// other processes that r keeps for its pods, without the workloads.
func footprint(r *runtime) (daemon, others float64, err error) {
	all, err := harness.Table()
	if err != nil {
		return 0, 0, err
	}
	if daemon, err = pss(r.PID()); err != nil {
		return 0, 0, err
	}
	for _, p := range harness.Descendants(all, os.Getpid()) {
		own := strings.HasPrefix(p.Command, "cri-")
		if r.Name == "containerd" {
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
			if err != nil {
				continue // gone meanwhile
			}
			own = strings.HasPrefix(p.Command, "containerd-shim") || strings.Contains(string(line), "2147483647") && p.Command == "sleep"
		}
		if !own || p.State == 'Z' || strings.HasPrefix(p.Command, "cri-runtime") {
			continue
		}
		n, err := pss(p.PID)
		if err != nil {
			return 0, 0, err
		}
		others += n
	}
	return daemon, others, nil
}

func pss(pid int) (float64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, fmt.Errorf("memory of a process: %w", err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 1 && fields[0] == "Pss:" {
			return strconv.ParseFloat(fields[1], 64)
		}
	}
	return 0, fmt.Errorf("memory of process %d: %w", pid, errNoValue)
}
