package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

func (b *bench) latency(ctx context.Context) error {
	_, err := b.latencies(ctx, "", "", func() error { return nil })
	return err
}

// latencies measures n interleaved cycles of each runtime, and calls also
// once in each round; it returns the samples of the first step. Pods have a
// network if there is a goal for it.
func (b *bench) latencies(ctx context.Context, networkGoal, suffix string, also func() error) ([]samples, error) {
	network := networkGoal != ""
	steps := (&pod{on: b.runtimes[0]}).steps(network)
	if network {
		steps[0].goal = networkGoal
	}
	taken := make([][]samples, len(steps))
	up := make([]samples, len(b.runtimes))
	for i := range taken {
		taken[i] = make([]samples, len(b.runtimes))
	}
	for range b.options.n {
		for k, r := range b.runtimes {
			times, err := b.cycle(ctx, r, network, b.options.gap)
			if err != nil {
				return nil, err
			}
			for i, d := range times {
				taken[i][k] = append(taken[i][k], d)
			}
			if !network {
				up[k] = append(up[k], times[1]+times[2])
			}
		}
		if err := also(); err != nil {
			return nil, err
		}
	}
	for i, s := range steps {
		b.table.durations(s.name+suffix, s.goal, taken[i])
		if !network && s.name == "StartContainer" {
			b.table.durations("Create + Start", "<= 6", up)
		}
	}
	return taken[0], nil
}

// builtin measures pods with the runtime's own network beside the peer's with
// its plugins.
func (b *bench) builtin(ctx context.Context) (err error) {
	o := harness.Options{Registry: b.registry.Address, Builtin: true}
	if o.Binary, err = filepath.Abs(b.options.binary); err != nil {
		return fmt.Errorf("binary: %w", err)
	}
	own, err := harness.New(ctx, o)
	if err != nil {
		return err
	}
	with := *b
	with.runtimes = append([]*runtime{{Runtime: own, image: b.runtimes[0].image}}, b.runtimes[1:]...)
	defer func() {
		b.serial = with.serial
		err = errors.Join(err, own.Close(context.WithoutCancel(ctx)))
	}()
	if err := isolate(own); err != nil {
		return err
	}
	if _, err := with.cycle(ctx, with.runtimes[0], true, 0); err != nil { // makes the bridge
		return err
	}
	_, err = with.latencies(ctx, "<= 8", ", built-in network", func() error { return nil })
	return err
}

// cni measures pods with a network, and the plugins alone in the same rounds:
// what of RunPodSandbox is not the runtime's.
func (b *bench) cni(ctx context.Context) error {
	r := b.runtimes[0]
	list, err := libcni.ConfListFromBytes([]byte(r.Conflist()))
	if err != nil {
		return fmt.Errorf("read the network configuration: %w", err)
	}
	bin := filepath.Join(filepath.Dir(b.options.binary), "cni")
	p := &plugins{
		cni:  libcni.NewCNIConfigWithCacheDir([]string{bin, "/usr/lib/cni"}, filepath.Join(r.Dir, "bench-cni"), nil),
		list: list, ns: r.Tag + "ns", gap: b.options.gap,
	}
	run, err := b.latencies(ctx, "plugins + 8", ", CNI", func() error { return p.sample(ctx) })
	if err != nil {
		return err
	}
	b.table.durations("plugins alone, ADD", "", []samples{p.add})
	b.table.durations("plugins alone, DEL", "", []samples{p.del})
	beyond := make([]float64, len(run))
	for k := range run {
		beyond[k] = run[k].quantile(0.5) - p.add.quantile(0.5)
	}
	b.table.figure("RunPodSandbox, CNI, beyond the plugins", "ms", "<= 8", false, beyond)
	return nil
}

// plugins runs the plugins without a runtime.
type plugins struct {
	cni      *libcni.CNIConfig
	list     *libcni.NetworkConfigList
	ns       string
	gap      time.Duration
	add, del samples
}

func (p *plugins) sample(ctx context.Context) error {
	if out, err := exec.CommandContext(ctx, "ip", "netns", "add", p.ns).CombinedOutput(); err != nil {
		return fmt.Errorf("make network namespace %s: %w: %s", p.ns, err, out)
	}
	conf := &libcni.RuntimeConf{ContainerID: p.ns, NetNS: "/run/netns/" + p.ns, IfName: "eth0"}
	if err := idle(ctx, p.gap); err != nil {
		return err
	}
	begin := time.Now()
	_, err := p.cni.AddNetworkList(ctx, p.list, conf)
	p.add = append(p.add, time.Since(begin))
	if err != nil {
		return fmt.Errorf("ADD: %w", err)
	}
	if err := idle(ctx, p.gap); err != nil {
		return err
	}
	begin = time.Now()
	err = p.cni.DelNetworkList(ctx, p.list, conf)
	p.del = append(p.del, time.Since(begin))
	if err != nil {
		return fmt.Errorf("DEL: %w", err)
	}
	if out, err := exec.CommandContext(ctx, "ip", "netns", "del", p.ns).CombinedOutput(); err != nil {
		return fmt.Errorf("remove network namespace %s: %w: %s", p.ns, err, out)
	}
	return nil
}
