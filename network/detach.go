package network

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// Detach runs DEL with the configuration of the ADD, to its end even if ctx
// ends; each plugin has its deadline. att is nil when it isn't known whether
// ADD succeeded: then the configuration is the one that ADD began with, else
// the one in libcni's cache, else the current one. It is idempotent, and
// needs no network namespace; after an error it is to be called again.
func (n *Network) Detach(ctx context.Context, pod Pod, att *Attachment) error {
	n.verbs.enter()
	defer n.verbs.leave()
	if err := n.detach(ctx, pod, att); err != nil {
		err = fmt.Errorf("detach %s: %w", pod, err)
		n.noteFailure(err)
		return err
	}
	return nil
}

// deletion is one DEL to run.
type deletion struct {
	list *libcni.NetworkConfigList
	rt   *libcni.RuntimeConf
}

func (n *Network) detach(ctx context.Context, pod Pod, att *Attachment) error {
	rt, err := identity(pod)
	if err != nil {
		if att == nil {
			return nil // Attach refuses such a pod before it does anything
		}
		return err
	}
	if rt.NetNS, err = liveNetNS(pod.NetNS); err != nil {
		return err
	}
	rec, err := n.readRecord(pod.ID)
	if err != nil {
		return err
	}
	switch {
	case rec != nil:
		rt.Args, rt.CapabilityArgs = rec.Args, rec.Capabilities
	default:
		// What is wrong with the pod now was not wrong when ADD ran.
		if full, err := runtimeConf(pod); err == nil {
			rt.CapabilityArgs = full.CapabilityArgs
		}
	}
	n.endLeftovers(pod.ID, att != nil)
	if err := n.releaseBuiltin(pod.ID); err != nil {
		return err
	}
	fault.Point("detach.ports.closed")
	if att != nil && att.Network == builtinName && len(att.Config) == 0 || rec != nil && len(rec.Config) == 0 {
		return n.removeRecord(pod.ID) // the interface goes with the namespace
	}
	deletions, err := n.deletions(att, rec, rt)
	if err != nil {
		return err
	}
	for _, d := range deletions {
		if err := n.del(ctx, d.list, d.rt); err != nil && (att != nil || !n.delMended(ctx, d)) {
			return err
		}
	}
	fault.Point("detach.deleted")
	if att == nil && rec == nil { // libcni removes the file of the network that it was told
		if err := n.dropResults(pod.ID); err != nil {
			return err
		}
	}
	return n.removeRecord(pod.ID)
}

// delMended runs DEL with the current configuration of the same network if it
// has changed. An ADD that failed because of a wrong configuration has a DEL
// that fails just so, and once the file is mended there must be a way out.
func (n *Network) delMended(ctx context.Context, d deletion) bool {
	list := n.refresh().list
	if list == nil || list.Name != d.list.Name || string(list.Bytes) == string(d.list.Bytes) {
		return false
	}
	return n.del(ctx, list, d.rt) == nil
}

// deletions returns what to delete by the best source there is.
func (n *Network) deletions(att *Attachment, rec *record, rt *libcni.RuntimeConf) ([]deletion, error) {
	if att != nil {
		list, err := parseList(att.Config)
		if err == nil {
			list, err = n.withResult(list, att, rt)
		}
		if err == nil {
			return []deletion{{list, rt}}, nil
		}
		klog.InfoS("Configuration of the attachment is damaged, looking for another", "sandbox", rt.ContainerID, "err", err)
	}
	if rec != nil {
		if list, err := parseList(rec.Config); err == nil {
			return []deletion{{list, rt}}, nil
		}
	}
	cached, err := n.cni.GetCachedAttachments(rt.ContainerID)
	if err != nil {
		return nil, fmt.Errorf("read libcni's cache: %w", err)
	}
	var found []deletion
	for _, c := range cached {
		list, err := parseList(c.Config)
		if err != nil {
			continue
		}
		found = append(found, deletion{list, &libcni.RuntimeConf{
			ContainerID: c.ContainerID, NetNS: rt.NetNS, IfName: c.IfName, Args: c.CniArgs, CapabilityArgs: c.CapabilityArgs,
		}})
	}
	if len(found) > 0 {
		return found, nil
	}
	// Without any record no plugin was ever run for the pod: Attach writes one first.
	// With a damaged one it may have been, and by the same configuration most likely.
	ids, err := n.cachedIDs()
	if err != nil {
		return nil, err
	}
	_, known := ids[rt.ContainerID]
	if list := n.refresh().list; list != nil && (known || n.recorded(rt.ContainerID)) {
		found = append(found, deletion{list, rt})
	}
	return found, nil
}

// withResult gives the plugins the result of the ADD if libcni's cache has
// lost it.
func (n *Network) withResult(list *libcni.NetworkConfigList, att *Attachment, rt *libcni.RuntimeConf) (*libcni.NetworkConfigList, error) {
	known, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0")
	if err != nil || !known || len(att.Result) == 0 {
		return list, err
	}
	if cached, err := n.cni.GetNetworkListCachedResult(list, rt); err == nil && cached != nil {
		return list, nil
	}
	whole := *list
	whole.Plugins = nil
	for _, plugin := range list.Plugins {
		plugin, err := libcni.InjectConf(plugin, map[string]any{"prevResult": json.RawMessage(att.Result)})
		if err != nil {
			return nil, fmt.Errorf("result of the attachment: %w", err)
		}
		whole.Plugins = append(whole.Plugins, plugin)
	}
	return &whole, nil
}

// del runs DEL to its end, whatever becomes of ctx.
func (n *Network) del(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	start := time.Now()
	if err := n.cni.DelNetworkList(context.WithoutCancel(ctx), list, rt); err != nil {
		err = pluginError(err)
		return fmt.Errorf("network %s, after %s: %w", list.Name, time.Since(start).Round(time.Millisecond), err)
	}
	return nil
}
