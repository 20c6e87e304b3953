package faults

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// A pod is half made when the daemon dies; while the next daemon undoes it, the
// kubelet asks for the same pod again: that waits, so that no plugin is told to
// add what it has still to delete, and then succeeds.
func TestRetryWaitsForUndo(t *testing.T) {
	p, writers := beginCNI(t)
	config := p.podConfig()
	door := filepath.Join(p.dir, "door")
	p.misbehave("second", "ADD", config, "sleep 1000")
	p.misbehave("second", "DEL", config, fmt.Sprintf("until [ -e '%s' ]; do sleep 0.01; done", door))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = p.runConfig(t.Context(), config) // the daemon dies
	}()
	called := func(what string) {
		t.Helper()
		if err := harness.Until(t.Context(), patience, what, func() bool {
			data, err := os.ReadFile(filepath.Join(p.dir, "calls-"+config.Metadata.Name))
			return err == nil && strings.Contains(string(data), what)
		}); err != nil {
			t.Fatal(err)
		}
	}
	called("second ADD")
	p.configure("[network]\nplugin_timeout = \"25s\"\n")
	<-ended
	called("second DEL")
	p.misbehave("second", "ADD", config, "")
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := p.raw.RunPodSandbox(short, &runtimeapi.RunPodSandboxRequest{Config: config})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("run while the first is being undone: %v", err)
	}
	if calls := p.calls(config); calls != "first ADD, second ADD, second DEL" {
		t.Errorf("calls before the undo has ended: %s", calls)
	}
	patiently(t, "everything else", func(ctx context.Context) error { return p.unaffected(ctx, writers[0]) })
	if err := os.WriteFile(door, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	patiently(t, "the retry", func(ctx context.Context) error {
		q, err := p.runConfig(ctx, config)
		if err != nil {
			return err
		}
		if calls := p.calls(config); calls != "first ADD, second ADD, second DEL, first DEL, first ADD, second ADD" {
			t.Errorf("calls: %s", calls)
		}
		return p.remove(ctx, q)
	})
	if err := p.check(t.Context(), writers...); err != nil {
		t.Error(err)
	}
}

// The daemon is killed at each point of a stop from its record on: the pod is
// not ready from the next start on, which finishes the stop.
func TestStopCutOff(t *testing.T) {
	n := begin(t)
	for _, point := range []string{
		"stoppod.recorded", "stoppod.unready", "release.detached", "release.pause.killed", "release.unmounting", "release.unmounted", "stoppod.released",
	} {
		p, err := n.run(t.Context(), sharedPID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.start(t.Context(), p, counting); err != nil {
			t.Fatal(err)
		}
		n.arm(point, 1)
		if err := n.CRI.StopPodSandbox(t.Context(), p.id); err == nil {
			t.Errorf("%s: the daemon has not died", point)
		}
		if err := harness.Until(t.Context(), patience, "the daemon's end", n.Ended); err != nil {
			t.Fatal(err)
		}
		count(daemonKills, 1)
		n.again()
		answer, err := n.CRI.PodSandboxStatus(t.Context(), p.id, false)
		if err != nil || answer.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("%s: the pod is %v %v", point, answer.GetStatus().GetState(), err)
		}
		var left []string
		if err := harness.Until(t.Context(), patience/4, "the stop to be finished", func() bool {
			now, err := n.Residue()
			left = append(now.Mounts, now.Leases...)
			return err == nil && len(left) == len(n.before.Mounts)+len(n.before.Leases)
		}); err != nil {
			t.Errorf("%s: %v: %q", point, err, left)
		}
		if err := n.remove(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	if err := n.check(t.Context()); err != nil {
		t.Error(err)
	}
}
