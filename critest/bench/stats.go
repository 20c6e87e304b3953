package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// statsCall is one list of statistics.
type statsCall struct {
	name, goal string
	call       func(ctx context.Context, r *runtime) error
}

func statsCalls() []statsCall {
	return []statsCall{
		{"ListContainerStats", "<= 10", func(ctx context.Context, r *runtime) error {
			_, err := r.CRI.ListContainerStats(ctx, nil)
			return err
		}},
		{"ListPodSandboxStats", "<= 10", func(ctx context.Context, r *runtime) error {
			_, err := r.CRI.ListPodSandboxStats(ctx, nil)
			return err
		}},
		{"ListPodSandboxMetrics", "<= 30", func(ctx context.Context, r *runtime) error {
			_, err := r.CRI.ListPodSandboxMetrics(ctx)
			return err
		}},
	}
}

// stats measures lists of statistics over many running pods of one container
// each, interleaved. A call that a runtime does not have is left out for it.
func (b *bench) stats(ctx context.Context) error {
	pods := make([][]*pod, len(b.runtimes))
	for k, r := range b.runtimes {
		group, inner := errgroup.WithContext(ctx)
		group.SetLimit(4)
		for range b.options.pods {
			p, err := b.newPod(r, false)
			if err != nil {
				return err
			}
			pods[k] = append(pods[k], p)
			group.Go(func() error { return p.up(inner, []string{"sleep", "3600"}) })
		}
		if err := group.Wait(); err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
	}
	for _, c := range statsCalls() {
		taken := make([]samples, len(b.runtimes))
		for range b.options.n {
			for k, r := range b.runtimes {
				if err := idle(ctx, b.options.gap); err != nil {
					return err
				}
				begin := time.Now()
				err := c.call(ctx, r)
				if status.Code(err) == codes.Unimplemented {
					continue
				}
				if err != nil {
					return fmt.Errorf("%s: %s: %w", r.Name, c.name, err)
				}
				taken[k] = append(taken[k], time.Since(begin))
			}
		}
		b.table.durations(fmt.Sprintf("%s, %d pods", c.name, b.options.pods), c.goal, taken)
		if err := b.statsTime(ctx, c, taken); err != nil {
			return err
		}
	}
	for k, r := range b.runtimes {
		for _, p := range pods[k] {
			if err := p.down(ctx); err != nil {
				return fmt.Errorf("%s: %w", r.Name, err)
			}
		}
	}
	return nil
}

// statsTime measures the processor time of one call. Unlike how long it takes,
// that says the same on a busy machine.
func (b *bench) statsTime(ctx context.Context, c statsCall, taken []samples) error {
	values := make([]float64, len(b.runtimes))
	for k, r := range b.runtimes {
		if len(taken[k]) == 0 {
			continue
		}
		before, err := processorTime(r.Runtime)
		if err != nil {
			return err
		}
		for range b.options.n {
			if err := c.call(ctx, r); err != nil {
				return fmt.Errorf("%s: %s: %w", r.Name, c.name, err)
			}
		}
		after, err := processorTime(r.Runtime)
		if err != nil {
			return err
		}
		values[k] = (after - before).Seconds() * 1000 / float64(b.options.n)
	}
	b.table.figure("processor time of "+c.name, "ms", "", false, values)
	return nil
}
