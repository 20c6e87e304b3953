package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// killProcess ends a process that may have ended already.
func killProcess(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Error(err)
	}
}

// init finds the first process of a container.
func (n *node) init(ctx context.Context, c *container) (int, error) {
	answer, err := n.CRI.ContainerStatus(ctx, c.id, true)
	if err != nil {
		return 0, err
	}
	var said struct{ PID int }
	if err := json.Unmarshal([]byte(answer.Info["info"]), &said); err != nil || said.PID == 0 {
		return 0, fmt.Errorf("no pid in %q: %w", answer.Info, errors.Join(err, errFault))
	}
	return said.PID, nil
}

// monitor finds the monitor of a container.
func (n *node) monitor(c *container) int {
	n.t.Helper()
	pid, err := n.init(context.Background(), c)
	if err != nil {
		n.t.Fatal(err)
	}
	table, err := harness.Table()
	if err != nil {
		n.t.Fatal(err)
	}
	parent := table[table[pid].Parent]
	if parent.Command != "cri-monitor" {
		n.t.Fatalf("the parent of %d is %+v, not a monitor", pid, parent)
	}
	return parent.PID
}
