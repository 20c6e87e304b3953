package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// contestant is one who pulls images.
type contestant interface {
	name() string
	can(i *image) bool
	pull(ctx context.Context, ref string) error
	// forget removes all images.
	forget(ctx context.Context) error
	// meter returns what was used up to now.
	meter() (usage, error)
}

// usage is a reading of a contestant's meters. Peak is that since the last
// reading.
type usage struct {
	cpu          time.Duration
	memory, peak int64
	disk         int64
	unpack       time.Duration // of the last pull, where it is a step of its own
}

// daemon is a runtime with a socket.
type daemon struct {
	*harness.Runtime
	idle int64 // memory before the first image
}

func (d *daemon) name() string    { return d.Name }
func (d *daemon) can(*image) bool { return true }

func (d *daemon) pull(ctx context.Context, ref string) error {
	if _, err := d.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: ref}, nil, nil); err != nil {
		return fmt.Errorf("pull %s: %w", ref, err)
	}
	return nil
}

func (d *daemon) forget(ctx context.Context) error {
	all, err := d.Images.ListImages(ctx, nil)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for _, i := range all {
		if err := d.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: i.Id}); err != nil {
			return fmt.Errorf("remove image %s: %w", i.Id, err)
		}
	}
	return nil
}

func (d *daemon) meter() (u usage, err error) {
	if u.cpu, err = processorTime(d.PID()); err != nil {
		return u, err
	}
	now, peak, err := resident(d.PID())
	if err != nil {
		return u, err
	}
	if d.idle == 0 {
		d.idle = now
	}
	u.memory, u.peak = d.idle, peak // what a runtime keeps of an earlier pull is not idle's
	u.disk, err = diskUse(filepath.Join(d.Dir, "root"))
	return u, err
}

// tools are skopeo, which downloads into a directory, and umoci, which unpacks
// from there.
type tools struct {
	dir  string
	used usage
}

func (*tools) name() string { return "skopeo+umoci" }

// can excludes what umoci cannot unpack or keeps no layers for.
func (*tools) can(i *image) bool { return !i.zstd && i.base == nil }

func (t *tools) pull(ctx context.Context, ref string) error {
	t.used.peak, t.used.memory = 0, 0
	layout := filepath.Join(t.dir, "layout") + ":x"
	if err := t.run(ctx, "skopeo", "copy", "--quiet", "--src-tls-verify=false", "docker://"+ref, "oci:"+layout); err != nil {
		return err
	}
	begin := time.Now()
	err := t.run(ctx, "umoci", "unpack", "--image", layout, filepath.Join(t.dir, "bundle"))
	t.used.unpack = time.Since(begin)
	return err
}

func (t *tools) run(ctx context.Context, name string, args ...string) error {
	c := exec.CommandContext(ctx, name, args...)
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %v: %w: %.2000s", name, args, err, out)
	}
	t.used.cpu += c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	if r, ok := c.ProcessState.SysUsage().(*syscall.Rusage); ok {
		t.used.peak = max(t.used.peak, r.Maxrss<<10)
	}
	return nil
}

func (t *tools) forget(context.Context) error {
	return errors.Join(os.RemoveAll(filepath.Join(t.dir, "layout")), os.RemoveAll(filepath.Join(t.dir, "bundle")))
}

func (t *tools) meter() (usage, error) {
	u := t.used
	var err error
	u.disk, err = diskUse(t.dir)
	return u, err
}
