package faults

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// deadline is what a kubelet gives a request that should be quick, and more
// than any of those here may need although something hangs.
const deadline = 30 * time.Second

// patiently calls f with a deadline.
func patiently(t *testing.T, what string, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if err := f(ctx); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// lost waits for the end of a container whose monitor was killed, and checks
// what is told of it.
func (n *node) lost(ctx context.Context, c *container) error {
	var st *runtimeapi.ContainerStatus
	var err error
	waited := harness.Until(ctx, patience, "the end of a container without monitor", func() bool {
		st, err = n.status(ctx, c.id)
		return err != nil || st.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	if err = errors.Join(waited, err); err != nil {
		return err
	}
	if st.ExitCode == 0 || st.Reason == "" || st.Message == "" || st.FinishedAt < st.CreatedAt {
		return fmt.Errorf("of a container without monitor: %v: %w", st, errFault)
	}
	return nil
}

// Monitors are killed in each state of their containers, with and without a
// daemon: the containers end, with a reason, and can be removed.
func TestMonitorsKilled(t *testing.T) {
	n := begin(t)
	writers, err := n.writers(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, restart := range []bool{false, true} {
		var options []podOption
		if long { // the PID namespace waits for orphans until init reaps them
			options = append(options, sharedPID)
		}
		p, err := n.run(t.Context(), options...)
		if err != nil {
			t.Fatal(err)
		}
		all := n.inEveryState(p)
		if restart {
			var monitors []int
			for _, c := range all {
				monitors = append(monitors, n.monitor(c))
			}
			n.kill()
			for _, pid := range monitors {
				killProcess(t, pid)
			}
			n.again()
		} else {
			for _, c := range all {
				killProcess(t, n.monitor(c))
			}
		}
		count(monitorKills, len(all))
		for i, c := range all {
			if err := n.lost(t.Context(), c); err != nil {
				t.Errorf("container %d: %v", i, err)
			}
		}
		patiently(t, "the pod goes on", func(ctx context.Context) error {
			c, err := n.start(ctx, p, "exit 0")
			if err != nil {
				return err
			}
			return errors.Join(n.CRI.StopContainer(ctx, c.id, 1), n.CRI.RemoveContainer(ctx, c.id))
		})
		patiently(t, "stop and remove", func(ctx context.Context) error {
			c := all[0]
			return errors.Join(n.CRI.StopContainer(ctx, c.id, 10), n.CRI.RemoveContainer(ctx, c.id), n.remove(ctx, p))
		})
		if err := n.check(t.Context(), writers...); err != nil {
			t.Error(err)
		}
	}
}

// inEveryState makes containers that are created, run, are in an exec, have an
// attached client's stdin, and ignore the stop signal that they have just got.
func (n *node) inEveryState(p *pod) []*container {
	n.t.Helper()
	ctx := n.t.Context()
	created, err := n.create(ctx, p, "exit 0")
	if err != nil {
		n.t.Fatal(err)
	}
	all := []*container{created}
	for range 3 {
		c, err := n.start(ctx, p, "trap '' TERM; echo up; while :; do sleep 1000 & wait; done")
		if err == nil {
			err = n.prints(ctx, c, "up")
		}
		if err != nil {
			n.t.Fatal(err)
		}
		all = append(all, c)
	}
	answered := make(chan error, 2)
	go func() {
		_, err := n.raw.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: all[2].id, Cmd: []string{"sh", "-c", "echo in exec >/proc/1/fd/1; sleep 1000"}})
		answered <- err
	}()
	go func() { answered <- n.CRI.StopContainer(ctx, all[3].id, 1000) }()
	n.t.Cleanup(func() {
		for range 2 {
			<-answered // whatever it is; that there is an answer counts
		}
	})
	return all
}

// prints waits until a container has printed text.
func (n *node) prints(ctx context.Context, c *container, text string) error {
	return harness.Until(ctx, patience, fmt.Sprintf("%q in the log", text), func() bool {
		return strings.Contains(readLog(c), text)
	})
}

// Monitors are stopped: everything else goes on, and what is asked of their
// containers is done without them, also after a restart.
func TestMonitorsFrozen(t *testing.T) {
	n := begin(t)
	writers, err := n.writers(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		restart bool
		end     func(ctx context.Context, c *container) error
	}{
		{"stop", false, func(ctx context.Context, c *container) error { return n.CRI.StopContainer(ctx, c.id, 10) }},
		{"stop without grace", false, func(ctx context.Context, c *container) error { return n.CRI.StopContainer(ctx, c.id, 0) }},
		{"remove", false, func(ctx context.Context, c *container) error { return n.CRI.RemoveContainer(ctx, c.id) }},
		{"remove the pod", false, func(ctx context.Context, c *container) error { return n.CRI.RemovePodSandbox(ctx, c.pod.id) }},
		{"stop after a restart", true, func(ctx context.Context, c *container) error { return n.CRI.StopContainer(ctx, c.id, 10) }},
		{"remove the pod after a restart", true, func(ctx context.Context, c *container) error { return n.CRI.RemovePodSandbox(ctx, c.pod.id) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := n.run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c, err := n.start(t.Context(), p, "trap 'exit 7' TERM; echo up; sleep 1000 & wait")
			if err == nil {
				err = n.prints(t.Context(), c, "up")
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Kill(n.monitor(c), unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			count("monitors stopped", 1)
			if test.restart {
				n.restart()
			}
			patiently(t, "everything else", func(ctx context.Context) error { return n.unaffected(ctx, writers[0]) })
			patiently(t, test.name, func(ctx context.Context) error { return test.end(ctx, c) })
			patiently(t, "remove the pod", func(ctx context.Context) error { return n.remove(ctx, p) })
			if err := n.check(t.Context(), writers...); err != nil {
				t.Error(err)
			}
		})
	}
}

// unaffected asks for everything that must not wait for what hangs.
func (n *node) unaffected(ctx context.Context, w *writer) error {
	var errs []error
	_, err := n.CRI.ListContainers(ctx, nil)
	errs = append(errs, err)
	_, err = n.CRI.ListPodSandbox(ctx, nil)
	errs = append(errs, err)
	_, err = n.CRI.ListContainerStats(ctx, nil)
	errs = append(errs, err)
	_, err = n.CRI.ListPodSandboxStats(ctx, nil)
	errs = append(errs, err)
	_, err = n.CRI.ListPodSandboxMetrics(ctx)
	errs = append(errs, err)
	_, err = n.Images.ImageFsInfo(ctx)
	errs = append(errs, err)
	_, err = n.CRI.Status(ctx, true)
	errs = append(errs, err)
	_, err = n.CRI.ContainerStatus(ctx, w.id, true)
	errs = append(errs, err)
	_, err = n.CRI.PodSandboxStatus(ctx, w.pod.id, true)
	errs = append(errs, err)
	_, _, err = n.CRI.ExecSync(ctx, w.id, []string{"true"}, deadline)
	errs = append(errs, err)
	p, err := n.run(ctx)
	errs = append(errs, err)
	if err == nil {
		_, err = n.start(ctx, p, "exit 0")
		errs = append(errs, err, n.remove(ctx, p))
	}
	return errors.Join(append(errs, n.checkWriter(ctx, w))...)
}
