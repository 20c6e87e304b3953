package faults

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestDensity runs many pods and prints what each costs as their number grows.
// It asserts nothing about time.
func TestDensity(t *testing.T) {
	n := begin(t)
	ctx := t.Context()
	total, block := 60, 10
	if long {
		total, block = 500, 50
	}
	var pods []*pod
	var up, down []cost
	for len(pods) < total {
		c, err := n.measure(ctx, block, func() error {
			p, err := n.sleeper(ctx)
			pods = append(pods, p)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		up = append(up, c)
	}
	n.density(t, total, up)
	for range 3 {
		n.kill()
		begun := time.Now()
		n.again()
		if err := n.running(ctx, total); err != nil {
			t.Error(err)
		}
		note("density, %d pods: the first list %v after the start of a daemon", total, time.Since(begun).Round(time.Millisecond))
	}
	for i := 0; i < total; i += block {
		next := pods[i : i+block]
		c, err := n.measure(ctx, block, func() error {
			p := next[0]
			next = next[1:]
			return n.remove(ctx, p)
		})
		if err != nil {
			t.Fatal(err)
		}
		down = append(down, c)
	}
	note("density, stop and remove: %v", perPod(down, block, total))
}

// sleeper is a pod with one container.
func (n *node) sleeper(ctx context.Context) (*pod, error) {
	p, err := n.run(ctx, hostNetwork)
	if err != nil {
		return nil, err
	}
	config := containerConfig(p.config, "")
	config.Command = []string{"sleep", "1000000"}
	c, err := n.createConfig(ctx, p, config)
	if err != nil {
		return p, err
	}
	return p, n.CRI.StartContainer(ctx, c.id)
}

// cost is what something took for each pod.
type cost struct{ wall, daemon time.Duration }

// measure does something as often as times says.
func (n *node) measure(ctx context.Context, times int, do func() error) (cost, error) {
	before, err := n.metrics(ctx)
	if err != nil {
		return cost{}, err
	}
	begun := time.Now()
	for range times {
		if err := do(); err != nil {
			return cost{}, err
		}
	}
	wall := time.Since(begun)
	after, err := n.metrics(ctx)
	const cpu = "process_cpu_seconds_total"
	used := time.Duration((after[cpu] - before[cpu]) * float64(time.Second))
	return cost{wall / time.Duration(times), used / time.Duration(times)}, err
}

// perPod shows how the cost develops: the first and the last part, and each.
func perPod(parts []cost, block, total int) string {
	text := make([]string, 0, len(parts))
	for _, p := range parts {
		text = append(text, fmt.Sprintf("%.1f/%.1f", p.wall.Seconds()*1000, p.daemon.Seconds()*1000))
	}
	first, last := parts[0], parts[len(parts)-1]
	return fmt.Sprintf("time of a pod, last %d of %d / first %d: %.2f wall, %.2f of the daemon's processor time; ms wall/processor of each part: %s",
		block, total, block, float64(last.wall)/float64(first.wall), float64(last.daemon)/float64(max(first.daemon, 1)), strings.Join(text, " "))
}

// density prints what the pods that run take, and how long lists of them are.
func (n *node) density(t *testing.T, total int, up []cost) {
	t.Helper()
	ctx := t.Context()
	note("density, run, create and start: %v", perPod(up, total/len(up), total))
	for what, list := range map[string]func() error{
		"ListPodSandbox": func() error { _, err := n.CRI.ListPodSandbox(ctx, nil); return err },
		"ListContainers": func() error { return n.running(ctx, total) },
		"ListContainerStats": func() error {
			_, err := n.CRI.ListContainerStats(ctx, nil)
			return err
		},
		"ListPodSandboxMetrics": func() error {
			_, err := n.CRI.ListPodSandboxMetrics(ctx)
			return err
		},
	} {
		c, err := n.measure(ctx, 10, list)
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		note("density, %d pods: %s %v, of the daemon's processor time %v", total, what, c.wall.Round(10*time.Microsecond), c.daemon.Round(10*time.Microsecond))
	}
	c, err := n.census(ctx)
	if err != nil {
		t.Error(err)
	}
	count, rss, pss, err := n.monitors()
	if err != nil || count < total {
		t.Errorf("%d monitors (%v), want %d", count, err, total)
	}
	note("density, %d pods: daemon resident %d KiB, heap %d KiB, %d descriptors; %d monitors %d KiB PSS, %d KiB resident", total, c.resident, c.heap, c.descriptors, count, pss, rss)
}

// running checks the list of containers.
func (n *node) running(ctx context.Context, want int) error {
	list, err := n.CRI.ListContainers(ctx, &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	})
	if err == nil && len(list) != want {
		err = fmt.Errorf("%d containers run, not %d: %w", len(list), want, errFault)
	}
	return err
}
