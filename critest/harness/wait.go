package harness

import (
	"context"
	"fmt"
	"time"
)

// Until asks done every few milliseconds until it is true, for at most limit on a machine of usual speed.
func Until(ctx context.Context, limit time.Duration, what string, done func() bool) error {
	limit *= Slowness()
	if done() {
		return nil
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(limit)
	defer end.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-end.C:
			if done() {
				return nil
			}
			return fmt.Errorf("%s, for %s: %w", what, limit, ErrTimeout)
		case <-tick.C:
			if done() {
				return nil
			}
		}
	}
}
