package faults

import "testing"

// The helpers of this package, once: nothing breaks but the daemon is killed.
func TestKilledAtRest(t *testing.T) {
	n := begin(t)
	ctx := t.Context()
	writers, err := n.writers(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.check(ctx, writers...); err != nil {
		t.Fatal(err)
	}
	n.restart()
	if err := n.check(ctx, writers...); err != nil {
		t.Fatal(err)
	}
	for _, w := range writers {
		if err := n.remove(ctx, w.pod); err != nil {
			t.Error(err)
		}
	}
	n.settled("all pods are removed")
}
