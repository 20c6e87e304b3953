package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// throughput starts pods on the host's network, 1, 4 and 10 at once.
func (b *bench) throughput(ctx context.Context) error {
	for _, width := range []int{1, 4, 10} {
		rates := make([]samples, len(b.runtimes))
		for range 3 {
			for k, r := range b.runtimes {
				took, err := b.burst(ctx, r, width)
				if err != nil {
					return err
				}
				rates[k] = append(rates[k], took)
			}
		}
		values := make([]float64, len(b.runtimes))
		for k := range rates {
			values[k] = float64(b.options.burst) / rates[k].quantile(0.5) * 1000
		}
		goal := ""
		if width == 10 {
			goal = ">= 120"
		}
		b.table.figure(fmt.Sprintf("pods up, %d at once", width), "1/s", goal, true, values)
	}
	return nil
}

func (b *bench) burst(ctx context.Context, r *runtime, width int) (took time.Duration, err error) {
	pods := make([]*pod, b.options.burst)
	for i := range pods {
		if pods[i], err = b.newPod(r, false); err != nil {
			return 0, err
		}
	}
	begin := time.Now()
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(width)
	for _, p := range pods {
		group.Go(func() error { return p.up(inner, []string{"sleep", "3600"}) })
	}
	if err := group.Wait(); err != nil {
		return 0, fmt.Errorf("%s: %w", r.Name, err)
	}
	took = time.Since(begin)
	group, inner = errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, p := range pods {
		group.Go(func() error { return p.down(inner) })
	}
	if err := group.Wait(); err != nil {
		return 0, fmt.Errorf("%s: %w", r.Name, err)
	}
	return took, idle(ctx, 20*b.options.gap)
}
