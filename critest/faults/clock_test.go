package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// shifted is a script that runs a daemon in a time namespace of its own if a file
// says by how many seconds the clocks since boot are to be off there.
const shifted = `#!/bin/sh
[ "$1" = serve ] && [ -s %[2]s ] || exec %[1]s "$@"
by=$(cat %[2]s)
exec unshare --time --boottime "$by" --monotonic "$by" %[1]s "$@"
`

// TestClocksSinceBootJump: the next daemon sees the kernel to have started ten days
// earlier, or a minute later. That is no reboot: all goes on, what an earlier daemon
// made is found and removed, and nothing takes ten days.
func TestClocksSinceBootJump(t *testing.T) {
	dir := t.TempDir()
	by, script := filepath.Join(dir, "by"), filepath.Join(dir, "shifted")
	if err := os.WriteFile(script, fmt.Appendf(nil, shifted, binary, by), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	n := begin(t, func(o *harness.Options) { o.Binary = script })
	ctx := t.Context()
	writers, err := n.writers(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	var made []*clocked
	for _, offset := range []string{"864000", "-60", "0", "864000"} {
		c, err := n.clocked(ctx)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, c)
		n.kill()
		if err := os.WriteFile(by, []byte(offset), 0o600); err != nil {
			t.Fatal(err)
		}
		n.again()
		count("jumps of the clocks since boot", 1)
		if err := n.check(ctx, writers...); err != nil {
			t.Errorf("clocks off by %s s: %v", offset, err)
		}
		for i, c := range made {
			if err := n.goesOn(ctx, c); err != nil {
				t.Errorf("clocks off by %s s: pod %d: %v", offset, i, err)
			}
		}
		if err := n.sharedProcessesGone(ctx, made[0]); err != nil {
			t.Errorf("clocks off by %s s: remove what an earlier daemon made: %v", offset, err)
		}
		made = made[1:]
	}
	log, err := os.ReadFile(filepath.Join(n.Dir, "daemon.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, took := range regexp.MustCompile(`took="?([^" \n]+)`).FindAllStringSubmatch(string(log), -1) {
		if d, err := time.ParseDuration(took[1]); err == nil && d.Abs() > time.Hour {
			t.Errorf("the daemon's log has a duration of %s", d)
		}
	}
	for _, w := range writers {
		if err := n.remove(ctx, w.pod); err != nil {
			t.Error(err)
		}
	}
	n.settled("all pods are removed")
}

// clocked is a pod with all that is told apart by a time since boot.
type clocked struct {
	*pod
	running, ended *container
	finished       int64
}

// clocked makes one, with a PID namespace that its containers share.
func (n *node) clocked(ctx context.Context) (*clocked, error) {
	p, err := n.run(ctx, sharedPID)
	if err != nil {
		return nil, err
	}
	c := &clocked{pod: p}
	if c.running, err = n.start(ctx, p, "sleep 1000"); err != nil {
		return nil, err
	}
	if c.ended, err = n.start(ctx, p, "exit 7"); err != nil {
		return nil, err
	}
	if err := n.lostOrEnded(ctx, c.ended); err != nil {
		return nil, err
	}
	st, err := n.status(ctx, c.ended.id)
	c.finished = st.GetFinishedAt()
	return c, err
}

// goesOn wants the pod as it was.
func (n *node) goesOn(ctx context.Context, c *clocked) error {
	answer, err := n.CRI.PodSandboxStatus(ctx, c.id, false)
	if err != nil {
		return err
	}
	running, err := n.status(ctx, c.running.id)
	if err != nil {
		return err
	}
	ended, err := n.status(ctx, c.ended.id)
	if err != nil {
		return err
	}
	if answer.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || running.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
		ended.State != runtimeapi.ContainerState_CONTAINER_EXITED || ended.ExitCode != 7 || ended.FinishedAt != c.finished {
		return fmt.Errorf("%v, %v, %v: %w", answer.Status.State, running, ended, errFault)
	}
	out, _, err := n.CRI.ExecSync(ctx, c.running.id, []string{"echo", "here"}, 20*time.Second)
	if err == nil && strings.TrimSpace(string(out)) != "here" {
		err = fmt.Errorf("exec printed %q: %w", out, errFault)
	}
	return err
}

// sharedProcessesGone stops and removes the pod, and wants the reaper of its PID
// namespace to be gone with it.
func (n *node) sharedProcessesGone(ctx context.Context, c *clocked) error {
	pid, err := n.init(ctx, c.running)
	if err != nil {
		return err
	}
	if err := errors.Join(n.CRI.StopContainer(ctx, c.running.id, 1), n.remove(ctx, c.pod)); err != nil {
		return err
	}
	return harness.Until(ctx, patience, "the end of the container's process", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d/ns", pid))
		return err != nil
	})
}
