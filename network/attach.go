package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// Attach runs ADD with the current configuration. If it fails, DEL has been
// run before it returns, even if ctx has ended. The Attachment is the caller's.
func (n *Network) Attach(ctx context.Context, pod Pod) (*Attachment, error) {
	att, err := n.attach(ctx, pod)
	if err != nil {
		err = fmt.Errorf("attach %s: %w", pod, err)
		n.noteFailure(err)
		return nil, err
	}
	return att, nil
}

func (n *Network) attach(ctx context.Context, pod Pod) (*Attachment, error) {
	rt, err := runtimeConf(pod)
	if err != nil {
		return nil, err
	}
	live, err := liveNetNS(pod.NetNS)
	if err != nil {
		return nil, err
	}
	if live == "" {
		return nil, fmt.Errorf("%w: no network namespace at %q", ErrInvalid, pod.NetNS)
	}
	n.verbs.enter()
	defer n.verbs.leave()
	conf, err := n.usable()
	if err != nil {
		return nil, err
	}
	if err := n.finish(ctx, pod); err != nil {
		return nil, err
	}
	if conf.list == nil {
		return n.attachBuiltin(ctx, pod, rt)
	}
	if err := n.writeRecord(pod.ID, newRecord(conf.list, rt)); err != nil {
		return nil, err
	}
	fault.Point("attach.recorded")
	start := time.Now()
	att, err := n.add(ctx, conf.list, rt)
	fault.Point("attach.added")
	if err == nil {
		err = n.openPorts(pod, conf.list, rt, att)
	}
	if err == nil {
		return att, nil
	}
	err = fmt.Errorf("network %s of %s, after %s: %w", conf.list.Name, conf.file, time.Since(start).Round(time.Millisecond), pluginError(err))
	if undo := errors.Join(n.releaseBuiltin(pod.ID), n.del(ctx, conf.list, rt)); undo != nil {
		return nil, errors.Join(err, fmt.Errorf("and then to undo it: %w", undo))
	}
	return nil, errors.Join(err, n.removeRecord(pod.ID))
}

// finish makes up for an earlier ADD that has had no DEL.
func (n *Network) finish(ctx context.Context, pod Pod) error {
	if _, err := os.Lstat(n.recordPath(pod.ID)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := n.detach(ctx, pod, nil); err != nil {
		return fmt.Errorf("detach what an earlier attempt left: %w", err)
	}
	return nil
}

func (n *Network) add(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (*Attachment, error) {
	result, err := n.cni.AddNetworkList(ctx, list, rt)
	if err != nil {
		return nil, err
	}
	ips, err := podIPs(result)
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(result)
	if err != nil {
		return nil, fmt.Errorf("keep result: %w", err)
	}
	return &Attachment{Network: list.Name, IPs: ips, Config: list.Bytes, Result: data}, nil
}

// String names the pod in errors.
func (p Pod) String() string {
	return fmt.Sprintf("pod %s/%s (%s)", quote([]byte(p.Namespace)), quote([]byte(p.Name)), quote([]byte(p.ID)))
}

// Check runs CHECK with the configuration of the attachment: the error says
// what is no longer as ADD left it. It is ErrNotChecked where the configuration
// has no CHECK.
func (n *Network) Check(ctx context.Context, pod Pod, att *Attachment) error {
	if att.Network == builtinName && len(att.Config) == 0 && n.builtin != nil {
		if err := n.builtin.Check(pod.ID); err != nil {
			return fmt.Errorf("check %s: %w", pod, err)
		}
		return nil
	}
	list, err := parseList(att.Config)
	if err != nil {
		return fmt.Errorf("check %s: configuration of the attachment: %w", pod, err)
	}
	rt, err := runtimeConf(pod)
	if err != nil {
		return fmt.Errorf("check %s: %w", pod, err)
	}
	if list, err = n.withResult(list, att, rt); err != nil {
		return fmt.Errorf("check %s: %w", pod, err)
	}
	switch err := n.cni.CheckNetworkList(ctx, list, rt); {
	case errors.Is(err, libcni.ErrorCheckNotSupp):
		return fmt.Errorf("check %s: network %s: %w: %w", pod, list.Name, ErrNotChecked, err)
	case err != nil:
		return fmt.Errorf("check %s: network %s: %w", pod, list.Name, pluginError(err))
	case list.DisableCheck:
		return fmt.Errorf("check %s: network %s: %w: its configuration says disableCheck", pod, list.Name, ErrNotChecked)
	}
	return nil
}
