package network

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// GC detaches what was attached for sandboxes that keep does not name, and then
// asks plugins that know the verb to drop what belongs to none of those it does;
// a network of version 1.1 must therefore not be shared with another runtime,
// or say "disableGC". keep is called more than once; a sandbox must be among
// its ids before it is attached and until it is detached.
//
// CNI allows the verb GC beside no ADD or DEL. Nobody waits for it: the answer is
// ErrBusy while any is under way, or when one comes and GC gives way to it.
func (n *Network) GC(ctx context.Context, keep func() (ids []string, err error)) error {
	err := n.detachStale(ctx, keep)
	if err == nil {
		err = n.collect(ctx, keep)
	}
	if err != nil {
		return fmt.Errorf("collect leftovers of the network: %w", err)
	}
	return nil
}

// detachStale needs no quiet: what is attached is looked up before the sandboxes, so
// that one which is not there then has gone, and is not about to come.
func (n *Network) detachStale(ctx context.Context, keep func() ([]string, error)) error {
	stale, err := n.attached()
	if err != nil {
		return err
	}
	ids, err := keep()
	if err != nil {
		return err
	}
	for _, id := range ids {
		delete(stale, id)
	}
	var errs []error
	for id, netns := range stale {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		n.verbs.enter()
		err := n.detach(ctx, Pod{ID: id, NetNS: netns}, nil)
		n.verbs.leave()
		if err != nil {
			errs = append(errs, fmt.Errorf("sandbox %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// collect runs the verb GC.
func (n *Network) collect(ctx context.Context, keep func() ([]string, error)) error {
	list := n.refresh().list
	if list == nil {
		return nil
	}
	ctx, done, err := n.verbs.alone(ctx)
	if err != nil {
		return err
	}
	defer done()
	ids, err := keep()
	if err != nil {
		return err
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, id := range ids {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: ifName})
	}
	err = n.cni.GCNetworkList(ctx, list, args)
	if errors.Is(context.Cause(ctx), ErrBusy) {
		return ErrBusy
	}
	if err != nil {
		return fmt.Errorf("network %s: %w", list.Name, pluginError(err))
	}
	return nil
}

// turns keeps GC apart from ADD and DEL, which do not wait for it.
type turns struct {
	mu     sync.Mutex
	active int                     // ADD and DEL under way
	end    context.CancelCauseFunc // of the GC under way, or nil
	ended  chan struct{}           // closed after it
}

// enter begins an ADD or a DEL, and may be called within one. A GC that is under way
// ends as soon as its plugin can be killed.
func (t *turns) enter() {
	t.mu.Lock()
	t.active++
	end, ended := t.end, t.ended
	t.mu.Unlock()
	if end != nil {
		end(ErrBusy)
		<-ended
	}
}

func (t *turns) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.active--
}

// alone begins a GC. Its context ends, with the cause ErrBusy, when somebody enters.
func (t *turns) alone(ctx context.Context) (_ context.Context, done func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.active > 0 || t.end != nil {
		return nil, nil, ErrBusy
	}
	ctx, end := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	t.end, t.ended = end, ended
	return ctx, func() {
		t.mu.Lock()
		t.end = nil
		t.mu.Unlock()
		end(nil)
		close(ended)
	}, nil
}
