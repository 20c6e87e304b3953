package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// gcTimeout is how long GC may hold up those who want to attach.
const gcTimeout = 10 * time.Second

// Collect detaches what was attached for sandboxes that do not exist any more,
// as when somebody has removed a record by hand. Plugins are not asked for what
// else they have: it may be another runtime's.
func (n *Network) Collect(ctx context.Context, exists func(id string) bool) error {
	left, err := n.attached()
	if err != nil {
		return fmt.Errorf("collect leftovers of the network: %w", err)
	}
	var errs []error
	for id, netns := range left {
		if exists(id) {
			continue
		}
		if err := n.detach(ctx, Pod{ID: id, NetNS: netns}, nil); err != nil {
			errs = append(errs, fmt.Errorf("collect leftovers of the network: sandbox %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// GC detaches all that was attached for sandboxes other than those in keep,
// and then asks plugins that know the verb to drop what belongs to none of
// them; a network must therefore not be shared with another runtime. Plugins
// cannot tell an ADD under way from a leftover, so the answer is ErrBusy while
// pods are being attached.
func (n *Network) GC(ctx context.Context, keep []Pod) error {
	if !n.attaching.TryLock() {
		return fmt.Errorf("collect leftovers of the network: %w", ErrBusy)
	}
	defer n.attaching.Unlock()
	ctx, cancel := context.WithTimeout(ctx, gcTimeout)
	defer cancel()
	valid := make(map[string]bool, len(keep))
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, pod := range keep {
		valid[pod.ID] = true
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: pod.ID, IfName: ifName})
	}
	left, err := n.attached()
	if err != nil {
		return fmt.Errorf("collect leftovers of the network: %w", err)
	}
	var errs []error
	for id, netns := range left {
		if valid[id] || ctx.Err() != nil {
			continue
		}
		if err := n.detach(ctx, Pod{ID: id, NetNS: netns}, nil); err != nil {
			errs = append(errs, fmt.Errorf("sandbox %s: %w", id, err))
		}
	}
	if list := n.refresh().list; list != nil && len(errs) == 0 && ctx.Err() == nil {
		if err := n.cni.GCNetworkList(ctx, list, args); err != nil {
			errs = append(errs, fmt.Errorf("network %s: %w", list.Name, pluginError(err)))
		}
	}
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return fmt.Errorf("collect leftovers of the network: %w", err)
	}
	return nil
}
