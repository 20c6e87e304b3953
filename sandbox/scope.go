package sandbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/conmon"
	"github.com/cri-runtime/cri-runtime/oci"
)

// With systemd, which owns the tree of cgroups, the containers of a pod are in one scope
// of it, delegated to this daemon: one unit a pod, and plain cgroups below.
const (
	scopePrefix  = "cri-runtime-"
	scopeTimeout = 30 * time.Second
	// A scope whose last process has just ended keeps its name for a moment.
	scopeRetry = 50 * time.Millisecond
)

// inScope tells whether the pod's containers are in a scope of systemd's: its
// parent is a slice.
func (b *Sandbox) inScope() bool {
	return b.store.config.CgroupDriver == "systemd" && strings.HasSuffix(b.record.Cgroup, ".slice")
}

func (b *Sandbox) scopeUnit() string { return scopePrefix + b.id + ".scope" }

// containerCgroup names the cgroup of a container, or of the reaper, of this pod.
func (b *Sandbox) containerCgroup(name string) string {
	if !b.inScope() {
		return filepath.Join(b.record.Cgroup, name)
	}
	parent, err := oci.SlicePath(filepath.Base(b.record.Cgroup))
	if err != nil {
		parent = b.record.Cgroup // it was validated; the cgroup's maker says what is wrong
	}
	return path.Join(parent, b.scopeUnit(), name)
}

// holdScope sees to it that the pod's scope exists until release is called. systemd ends a
// scope without processes, so a process of ours is in it until there is a container.
// The caller has the verb lock.
func (b *Sandbox) holdScope(ctx context.Context) (release func(), err error) {
	if !b.inScope() {
		return func() {}, nil
	}
	scope, err := b.store.cgroups.Load(b.containerCgroup(""))
	if err == nil {
		if alive, err := scope.Populated(); err == nil && alive {
			return func() {}, nil
		}
	}
	dir := b.state("scope")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the pod's scope: %w", err)
	}
	holder, err := b.store.binary.Spawn(dir, nil, b.store.host.ClampOOMScoreAdj(monitorOOMScoreAdj))
	if err != nil {
		return nil, fmt.Errorf("make the pod's scope: %w", err)
	}
	if err = b.startScope(ctx, holder); err != nil {
		return nil, errors.Join(fmt.Errorf("make the pod's scope %s: %w", b.scopeUnit(), err), holder.Abandon())
	}
	return func() {
		if err := b.letGo(holder); err != nil {
			klog.ErrorS(err, "Leave the pod's scope", "pod", b.id, "unit", b.scopeUnit())
		}
	}, nil
}

const holderCgroup = "holder"

// startScope makes the unit around the holder and puts that into a leaf: above leaves the
// unified hierarchy takes no process.
func (b *Sandbox) startScope(ctx context.Context, holder *conmon.Pending) error {
	ctx, cancel := context.WithTimeout(ctx, scopeTimeout)
	defer cancel()
	if err := b.store.startUnit(ctx, b.scopeUnit(), filepath.Base(b.record.Cgroup), holder.PID()); err != nil {
		return err
	}
	if !b.store.cgroups.V2() {
		return nil
	}
	leaf := filepath.Join("/sys/fs/cgroup", b.containerCgroup(holderCgroup))
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(strconv.Itoa(holder.PID())), 0)
}

// letGo ends the holder.
func (b *Sandbox) letGo(holder *conmon.Pending) error {
	err := holder.Abandon()
	if !b.store.cgroups.V2() {
		return err
	}
	leaf, loadErr := b.store.cgroups.Load(b.containerCgroup(holderCgroup))
	if loadErr != nil {
		return err // the scope has ended with it
	}
	return errors.Join(err, leaf.RemoveEmpty())
}

// startUnit starts a delegated scope in a slice around a process.
func (s *Store) startUnit(ctx context.Context, unit, slice string, pid int) error {
	conn, err := systemd.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}
	defer conn.Close()
	property := func(name string, value any) systemd.Property {
		return systemd.Property{Name: name, Value: dbus.MakeVariant(value)}
	}
	properties := []systemd.Property{
		systemd.PropDescription("pod of cri-runtime"),
		systemd.PropSlice(slice),
		systemd.PropPids(uint32(pid)), //nolint:gosec // pids are positive
		property("Delegate", true),
		property("DefaultDependencies", false),
		property("TasksMax", uint64(math.MaxUint64)),
		property("CollectMode", "inactive-or-failed"),
	}
	for {
		done := make(chan string, 1)
		_, err := conn.StartTransientUnitContext(ctx, unit, "replace", properties, done)
		var busErr dbus.Error
		switch {
		case err == nil:
			return waitJob(ctx, done)
		case errors.As(err, &busErr) && busErr.Name == "org.freedesktop.systemd1.UnitExists":
			// It ended a moment ago, or failed and is kept to be looked at.
			_ = conn.ResetFailedUnitContext(ctx, unit)
		default:
			return fmt.Errorf("start unit: %w", err)
		}
		select {
		case <-time.After(scopeRetry):
		case <-ctx.Done():
			return fmt.Errorf("start unit: %w: %w", err, ctx.Err())
		}
	}
}

func waitJob(ctx context.Context, done <-chan string) error {
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("start unit: systemd says %q: %w", result, unix.EIO)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("start unit: %w", ctx.Err())
	}
}
