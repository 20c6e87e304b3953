package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// resourcesFile, beside container.json, holds the limits that took the place of
// those that the container was created with.
const resourcesFile = "resources.json"

// Update changes limits of a container that is created or running, all or
// none. Zero values leave a limit as it is.
func (c *Container) Update(ctx context.Context, change *runtimeapi.LinuxContainerResources) error {
	if err := c.box.verb.lock(ctx, "update container"); err != nil {
		return err
	}
	defer c.box.verb.unlock()
	if err := c.require("update", stateCreated, stateRunning); err != nil {
		return err
	}
	old := c.Status().Resources.GetLinux()
	next := oci.MergeResources(old, change)
	limits, err := oci.UpdateResources("linux", next, c.store.host)
	if err != nil {
		return err
	}
	// Recorded first: a start after a crash completes what was begun.
	if err := c.writeResources(next); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	fault.Point("update.recorded")
	cg, err := c.cgroup()
	if err == nil {
		err = cg.Update(limits)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("update container %s: %w", c.id, err), c.writeResources(old))
	}
	fault.Point("update.limits.set")
	if score := next.GetOomScoreAdj(); score != old.GetOomScoreAdj() {
		next.OomScoreAdj = int64(c.setOOMScore(cg, int(score)))
	}
	c.update(func(s *ContainerStatus) { s.Resources = &runtimeapi.ContainerResources{Linux: next} })
	klog.V(2).InfoS("Container has new limits", "container", c.id, "pod", c.box.id, "resources", next)
	return nil
}

// setOOMScore sets the score of what runs in the container and will be started
// in it; without CAP_SYS_RESOURCE that is the nearest that is allowed.
func (c *Container) setOOMScore(cg *oci.Cgroup, want int) int {
	score := c.store.host.ClampOOMScoreAdj(want)
	if err := cg.SetOOMScore(score); err != nil {
		// Less than a process once had needs CAP_SYS_RESOURCE, too.
		klog.ErrorS(err, "Update a container", "container", c.id, "pod", c.box.id)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spec != nil {
		spec, process := *c.spec, *c.spec.Process
		process.OOMScoreAdj, spec.Process = &score, &process
		c.spec = &spec
	}
	return score
}

func (c *Container) writeResources(r *runtimeapi.LinuxContainerResources) error {
	b, err := encodeMessage(r)
	if err != nil {
		return err
	}
	return writeRecord(c.root(resourcesFile), b, false)
}

// readLimits returns the limits on record.
func (c *Container) readLimits() (*runtimeapi.LinuxContainerResources, error) {
	var b json.RawMessage
	if err := ledger.Read(c.root(resourcesFile), &b); err != nil {
		return nil, err
	}
	r := &runtimeapi.LinuxContainerResources{}
	if err := decodeMessage(b, r); err != nil {
		return nil, fmt.Errorf("record %s: %w", c.root(resourcesFile), err)
	}
	return r, nil
}

// readResources returns the limits on record, those of config when there was
// no update or its record cannot be read.
func (c *Container) readResources(config *runtimeapi.ContainerConfig) *runtimeapi.ContainerResources {
	r, err := c.readLimits()
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			klog.ErrorS(err, "The limits that a container was updated to cannot be read: its cgroup keeps them, its status shows those it was created with. "+
				"Update it again", "container", c.id, "pod", c.record.SandboxID)
		}
		r = config.GetLinux().GetResources()
	}
	return &runtimeapi.ContainerResources{Linux: r}
}

// restoreLimits sets the limits on record once more: the last daemon may have
// ended between the record and the cgroup.
func (c *Container) restoreLimits() {
	kept, err := c.readLimits()
	if err != nil {
		return // there are none, or they are damaged and the cgroup knows better
	}
	limits, err := oci.UpdateResources("linux", kept, c.store.host)
	if err == nil {
		var cg *oci.Cgroup
		if cg, err = c.cgroup(); err == nil {
			err = cg.Update(limits)
		}
	}
	if err != nil {
		klog.ErrorS(err, "Set the limits on record", "container", c.id, "pod", c.box.id)
	}
}

// Update takes over the pod's own limits, which the kubelet has given to the
// pod's cgroup already. A cgroup that was made for this pod gets them here.
func (b *Sandbox) Update(ctx context.Context, overhead, resources *runtimeapi.LinuxContainerResources) error {
	if err := b.verb.lock(ctx, "update sandbox"); err != nil {
		return err
	}
	defer b.verb.unlock()
	if err := b.requireReady("update"); err != nil {
		return err
	}
	config, ok := proto.Clone(b.Status().Config).(*runtimeapi.PodSandboxConfig)
	if !ok {
		return fmt.Errorf("update sandbox %s: its configuration: %w", b.id, ErrInvalid)
	}
	if config.Linux == nil {
		config.Linux = &runtimeapi.LinuxPodSandboxConfig{}
	}
	config.Linux.Overhead = oci.MergeResources(config.Linux.Overhead, overhead)
	config.Linux.Resources = oci.MergeResources(config.Linux.Resources, resources)
	if _, err := oci.UpdateResources("overhead", config.Linux.Overhead, b.store.host); err != nil {
		return err
	}
	limits, err := oci.UpdateResources("resources", oci.PodResources(config.Linux.Resources, config.Linux.Overhead), b.store.host)
	if err != nil {
		return err
	}
	if b.record.OwnCgroup {
		cg, err := b.store.cgroups.Load(b.record.Cgroup)
		if err == nil {
			err = cg.Update(limits)
		}
		if err != nil {
			return fmt.Errorf("update sandbox %s: %w", b.id, err)
		}
	}
	fault.Point("updatepod.limits.set")
	record, err := encodeMessage(config)
	if err != nil {
		return err
	}
	b.record.Config = record
	if err := b.writeRecord(false); err != nil {
		return fmt.Errorf("update sandbox %s: %w", b.id, err)
	}
	fault.Point("updatepod.recorded")
	b.update(func(s *SandboxStatus) { s.Config = config })
	return nil
}

// makeCgroup makes the pod's cgroup where the kubelet has not, with the limits of the pod.
func (b *Sandbox) makeCgroup() error {
	if !b.record.OwnCgroup {
		return nil
	}
	linux := b.Status().Config.GetLinux()
	if linux.GetResources() == nil {
		_, err := b.store.cgroups.Create(b.record.Cgroup, nil)
		return err
	}
	limits, err := oci.UpdateResources("config.linux.resources", oci.PodResources(linux.GetResources(), linux.GetOverhead()), b.store.host)
	if err != nil {
		return err
	}
	_, err = b.store.cgroups.Create(b.record.Cgroup, limits)
	return err
}
