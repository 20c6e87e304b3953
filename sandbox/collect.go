package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/network"
)

const (
	collectInterval = time.Hour
	collectAgain    = time.Minute // when pods came and went at the same time
)

// collectNetwork has the network drop what belongs to no sandbox, once what was
// left half made is undone and then now and again, until ctx ends.
func (s *Store) collectNetwork(ctx context.Context, tidied <-chan struct{}) {
	select {
	case <-tidied:
	case <-ctx.Done():
		return
	}
	for {
		pause := collectInterval
		switch err := s.net.GC(ctx, s.attachable); {
		case ctx.Err() != nil:
			return
		case errors.Is(err, network.ErrBusy):
			pause = collectAgain
			klog.V(2).InfoS("Leftovers of the network are collected later", "in", pause, "reason", err.Error())
		case err != nil:
			klog.ErrorS(err, "Leftovers of the network are kept", "againIn", pause)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// attachable returns the ids of all sandboxes that may be attached to the network. A
// sandbox has its directory from before its ADD until after its DEL, whatever
// becomes of the daemon; one of a later version's has it too.
func (s *Store) attachable() ([]string, error) {
	entries, err := os.ReadDir(s.root("sandboxes"))
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	ids := make([]string, 0, len(entries))
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, nil
}

// CheckNetwork asks the network whether the pod is still attached as it was. It changes
// nothing, and does not wait for a verb that may be changing the network.
func (b *Sandbox) CheckNetwork(ctx context.Context) error {
	if b.verb.busy() {
		return fmt.Errorf("check the network of pod %s: another request is at work on it: %w", b.id, ErrState)
	}
	if err := b.verb.lock(ctx, "check the network"); err != nil {
		return err
	}
	defer b.verb.unlock()
	if b.Status().State != sandboxReady || b.record.Attachment == nil {
		return fmt.Errorf("check the network of pod %s: it is not attached: %w", b.id, ErrState)
	}
	return b.store.net.Check(ctx, b.pod(), b.record.Attachment)
}
