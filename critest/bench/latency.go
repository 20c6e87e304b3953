package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
)

func (b *bench) latency(ctx context.Context) error {
	return b.latencies(ctx, false, "")
}

// latencies measures n interleaved cycles of each runtime.
func (b *bench) latencies(ctx context.Context, network bool, suffix string) error {
	steps := (&pod{on: b.runtimes[0]}).steps(network)
	taken := make([][]samples, len(steps))
	up := make([]samples, len(b.runtimes))
	for i := range taken {
		taken[i] = make([]samples, len(b.runtimes))
	}
	for range b.options.n {
		for k, r := range b.runtimes {
			times, err := b.cycle(ctx, r, network, b.options.gap)
			if err != nil {
				return err
			}
			for i, d := range times {
				taken[i][k] = append(taken[i][k], d)
			}
			if !network {
				up[k] = append(up[k], times[1]+times[2])
			}
		}
	}
	for i, s := range steps {
		b.table.durations(s.name+suffix, s.goal, taken[i])
		if !network && s.name == "StartContainer" {
			b.table.durations("Create + Start", "<= 6", up)
		}
	}
	return nil
}

func (b *bench) cni(ctx context.Context) error {
	if err := b.latencies(ctx, true, ", CNI"); err != nil {
		return err
	}
	return b.plugins(ctx)
}

// plugins measures the plugins alone: what of RunPodSandbox is not the
// runtime's.
func (b *bench) plugins(ctx context.Context) error {
	r := b.runtimes[0]
	list, err := libcni.ConfListFromBytes([]byte(r.Conflist()))
	if err != nil {
		return fmt.Errorf("read the network configuration: %w", err)
	}
	bin := filepath.Join(filepath.Dir(b.options.binary), "cni")
	cni := libcni.NewCNIConfigWithCacheDir([]string{bin, "/usr/lib/cni"}, filepath.Join(r.Dir, "bench-cni"), nil)
	ns := r.Tag + "ns"
	var add, del samples
	for range b.options.n {
		if out, err := exec.CommandContext(ctx, "ip", "netns", "add", ns).CombinedOutput(); err != nil {
			return fmt.Errorf("make network namespace %s: %w: %s", ns, err, out)
		}
		conf := &libcni.RuntimeConf{ContainerID: ns, NetNS: "/run/netns/" + ns, IfName: "eth0"}
		if err := idle(ctx, b.options.gap); err != nil {
			return err
		}
		begin := time.Now()
		_, err := cni.AddNetworkList(ctx, list, conf)
		add = append(add, time.Since(begin))
		if err != nil {
			return fmt.Errorf("ADD: %w", err)
		}
		if err := idle(ctx, b.options.gap); err != nil {
			return err
		}
		begin = time.Now()
		err = cni.DelNetworkList(ctx, list, conf)
		del = append(del, time.Since(begin))
		if err != nil {
			return fmt.Errorf("DEL: %w", err)
		}
		if out, err := exec.CommandContext(ctx, "ip", "netns", "del", ns).CombinedOutput(); err != nil {
			return fmt.Errorf("remove network namespace %s: %w: %s", ns, err, out)
		}
	}
	b.table.durations("plugins alone, ADD", "", []samples{add})
	b.table.durations("plugins alone, DEL", "", []samples{del})
	return nil
}
