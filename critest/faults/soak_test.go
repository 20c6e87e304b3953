package faults

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

const (
	podCycles = "pod cycles of the soak"
	soakWidth = 4 // at once
)

// TestSoak lets pods come and go, and commands run in some that stay, and
// wants everything back at the level of before.
func TestSoak(t *testing.T) {
	n := begin(t)
	ctx := t.Context()
	cycles, execs := 100, 1000
	if long {
		cycles, execs = 2000, 20000
	}
	writers, err := n.writers(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	// What is made once and kept is made by the first ones.
	if err := errors.Join(n.cycles(ctx, 5*soakWidth), n.execs(ctx, 25*soakWidth, writers)); err != nil {
		t.Fatal(err)
	}
	base, err := n.census(ctx)
	if err != nil {
		t.Fatal(err)
	}
	note("soak, before: %v", base)
	if err := errors.Join(n.cycles(ctx, cycles), n.execs(ctx, execs, writers)); err != nil {
		t.Error(err)
	}
	var now census
	var above []string
	if err := harness.Until(ctx, patience, "all counts to be as before", func() bool {
		now, err = n.census(ctx)
		above = now.above(base)
		return err != nil || len(above) == 0
	}); err != nil {
		count(thingsLeaked, len(above))
		stacks, _ := n.control(ctx, "/debug/pprof/goroutine?debug=1")
		t.Errorf("%v: %q\n%s", err, above, stacks)
	}
	note("soak, after %d pods and %d execs: %v", cycles, execs, now)
	if err := errors.Join(err, n.check(ctx, writers...)); err != nil {
		t.Error(err)
	}
}

// cycles runs pods from their first to their last call, every other one on the
// host's network.
func (n *node) cycles(ctx context.Context, total int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(soakWidth)
	for i := range total {
		group.Go(func() error {
			var options []podOption
			if i%2 == 0 {
				options = append(options, hostNetwork)
			}
			return n.cycle(ctx, i, options...)
		})
	}
	return group.Wait()
}

func (n *node) cycle(ctx context.Context, i int, options ...podOption) error {
	p, err := n.run(ctx, options...)
	if err != nil {
		return err
	}
	c, err := n.start(ctx, p, "trap 'exit 3' TERM; echo up; while :; do sleep 1; done")
	if err != nil {
		return err
	}
	if i%4 == 1 { // some are removed while they run
		count(podCycles, 1)
		return n.remove(ctx, p)
	}
	if err := n.CRI.StopContainer(ctx, c.id, int64(i%3)); err != nil {
		return fmt.Errorf("stop a container: %w", err)
	}
	if err := n.CRI.RemoveContainer(ctx, c.id); err != nil {
		return fmt.Errorf("remove a container: %w", err)
	}
	count(podCycles, 1)
	return n.remove(ctx, p)
}

// execs runs commands in the containers, some of which fail, or leave a child.
func (n *node) execs(ctx context.Context, total int, in []*writer) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(soakWidth)
	for i := range total {
		group.Go(func() error {
			return n.exec(ctx, in[i%len(in)].container, i)
		})
	}
	return group.Wait()
}

func (n *node) exec(ctx context.Context, c *container, i int) error {
	kinds := []struct {
		command []string
		stdout  string
		fails   bool
	}{
		{command: []string{"true"}},
		{command: []string{"echo", "here"}, stdout: "here\n"},
		{command: []string{"sh", "-c", "echo gone >&2; exit 3"}, fails: true},
		{command: []string{"no-such-command"}, fails: true},
	}
	kind := kinds[i%len(kinds)]
	stdout, _, err := n.CRI.ExecSync(ctx, c.id, kind.command, patience)
	count(execsRun, 1)
	if (err != nil) != kind.fails || string(stdout) != kind.stdout {
		return fmt.Errorf("exec %s: %q, %w", strings.Join(kind.command, " "), stdout, errors.Join(err, errFault))
	}
	return nil
}
