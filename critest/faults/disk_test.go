package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// disk is a small file system of its own for the daemon's root directory.
type disk struct {
	*node
	Dir string // of the file system; the root is a directory in it
}

func beginOnDisk(t *testing.T, megabytes, inodes int) *disk {
	t.Helper()
	n := begin(t)
	d := &disk{node: n, Dir: filepath.Join(t.TempDir(), "disk")}
	file := d.Dir + ".ext4"
	if err := errors.Join(os.Mkdir(d.Dir, 0o700), os.WriteFile(file, nil, 0o600), os.Truncate(file, int64(megabytes)<<20)); err != nil {
		t.Fatal(err)
	}
	d.command("mkfs.ext4", "-q", "-m", "0", "-N", fmt.Sprint(inodes), file)
	if err := n.Signal(syscall.SIGTERM, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.unmount) // before the node's own
	d.command("mount", "-o", "loop", file, d.Dir)
	if err := errors.Join(os.Mkdir(filepath.Join(d.Dir, "root"), 0o700), os.Mkdir(filepath.Join(d.Dir, "logs"), 0o755)); err != nil {
		t.Fatal(err)
	}
	d.command("mount", "--bind", filepath.Join(d.Dir, "root"), filepath.Join(n.Dir, "root"))
	n.again()
	if _, err := n.Images.PullImage(t.Context(), &runtimeapi.ImageSpec{Image: busybox()}, nil, nil); err != nil {
		t.Fatal(err)
	}
	return d
}

// unmount ends the daemon and takes the file system away, which fails while
// anything of the daemon's still uses it.
func (d *disk) unmount() {
	ctx := context.Background()
	if d.t.Failed() {
		d.t.Logf("the daemon's log ends with\n%s", d.LogTail())
	}
	if d.Ended() {
		d.again()
	}
	if err := errors.Join(d.clean(ctx), d.Signal(syscall.SIGTERM, true)); err != nil {
		d.t.Error(err)
	}
	for _, dir := range []string{filepath.Join(d.node.Dir, "root"), d.Dir} {
		if err := unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			d.t.Errorf("unmount %s: %v", dir, err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	}
}

func (d *disk) command(args ...string) {
	d.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		d.t.Fatalf("%q: %v: %s", args, err, out)
	}
}

// fillBytes takes all blocks, and returns what gives them back.
func (d *disk) fillBytes() (func(), error) {
	path := filepath.Join(d.Dir, "fill")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	piece := make([]byte, 1<<20)
	for len(piece) > 0 {
		if _, err := f.Write(piece); err != nil {
			piece = piece[:len(piece)/2]
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			d.t.Error(err)
		}
	}, f.Close()
}

// fillInodes takes all inodes.
func (d *disk) fillInodes() (func(), error) {
	dir := filepath.Join(d.Dir, "fill")
	err := os.Mkdir(dir, 0o700)
	for i := 0; err == nil; i++ {
		err = os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600)
	}
	if errors.Is(err, unix.ENOSPC) {
		err = nil
	}
	return func() {
		if err := os.RemoveAll(dir); err != nil {
			d.t.Error(err)
		}
	}, err
}

// readOnly lets the daemon write nothing below its root any more.
func (d *disk) readOnly() (func(), error) {
	remount := func(flags uintptr) error {
		return unix.Mount("", filepath.Join(d.node.Dir, "root"), "", unix.MS_REMOUNT|unix.MS_BIND|flags, "")
	}
	return func() {
		if err := remount(0); err != nil {
			d.t.Error(err)
		}
	}, remount(unix.MS_RDONLY)
}

func TestDiskFull(t *testing.T) {
	d := beginOnDisk(t, 24, 4000)
	d.suffer(d.fillBytes, "no space left", true)
}

func TestInodesExhausted(t *testing.T) {
	d := beginOnDisk(t, 24, 1500)
	d.suffer(d.fillInodes, "no space left", true)
}

func TestDiskReadOnly(t *testing.T) {
	d := beginOnDisk(t, 24, 4000)
	d.suffer(d.readOnly, "read-only file system", false)
}

// suffer tries every verb while the disk takes nothing more: what needs the
// disk fails with the kernel's words and leaves nothing, what ends something
// works (if removing is possible), all works afterwards.
func (d *disk) suffer(spoil func() (func(), error), words string, removable bool) {
	t := d.t
	t.Helper()
	ctx := t.Context()
	writers, err := d.writers(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	var pods []*pod
	var running []*container
	for range 3 {
		config := d.podConfig()
		config.LogDirectory = filepath.Join(d.Dir, "logs", config.Metadata.Uid)
		p, err := d.runConfig(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		c, err := d.start(ctx, p, "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i; usleep 5000; done")
		if err == nil {
			err = d.prints(ctx, c, " 10\n")
		}
		if err != nil {
			t.Fatal(err)
		}
		pods, running = append(pods, p), append(running, c)
	}
	extra := noise(t, "extra", 1<<20)
	mend, err := spoil()
	if err != nil {
		t.Fatal(err)
	}
	mended := false
	t.Cleanup(func() {
		if !mended {
			mend()
		}
	})
	before, err := d.Residue()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		d.starved(words, pods[0], running[0], extra)
		if err := d.checkWriter(ctx, writers[0]); err != nil {
			t.Error(err)
		}
		now, err := d.Residue()
		now.Processes = nil // they come, go and change parents
		if left := now.Since(before); err != nil || len(left) > 0 {
			t.Errorf("half done: %q (%v)", left, err)
		}
		d.restart() // it starts with a disk that takes nothing, too
	}
	patiently(t, "look and exec", func(ctx context.Context) error {
		_, err := d.CRI.ListContainerStats(ctx, nil)
		_, _, execErr := d.CRI.ExecSync(ctx, running[0].id, []string{"true"}, deadline)
		return errors.Join(err, execErr)
	})
	patiently(t, "stop", func(ctx context.Context) error {
		err := d.CRI.StopPodSandbox(ctx, pods[1].id)
		if !removable && err != nil && strings.Contains(err.Error(), words) {
			err = nil // its records cannot be removed
		}
		return errors.Join(err, d.CRI.StopContainer(ctx, running[0].id, 20))
	})
	if st, err := d.status(ctx, running[0].id); err != nil || st.ExitCode != 7 {
		t.Errorf("status %v, %v", st, err)
	}
	if removable {
		patiently(t, "remove", func(ctx context.Context) error {
			return errors.Join(d.CRI.RemoveContainer(ctx, running[0].id), d.remove(ctx, pods[1]))
		})
	}
	mend()
	mended = true
	patiently(t, "everything afterwards", func(ctx context.Context) error { return d.unaffected(ctx, writers[0]) })
	patiently(t, "pull afterwards", func(ctx context.Context) error {
		_, err := d.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: extra}, nil, nil)
		return errors.Join(err, d.checkImages(ctx))
	})
	// The one whose log was on that disk has gone on.
	patiently(t, "log", func(ctx context.Context) error {
		if st, err := d.status(ctx, running[2].id); err != nil || st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			return fmt.Errorf("status %v: %w", st, errors.Join(err, errFault))
		}
		size := len(readLog(running[2]))
		for len(readLog(running[2])) <= size {
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		return nil
	})
	for _, p := range pods {
		if p != pods[1] || !removable {
			patiently(t, "remove", func(ctx context.Context) error { return d.remove(ctx, p) })
		}
	}
	if err := errors.Join(d.check(ctx, writers...), d.checkDaemonLog()); err != nil {
		t.Error(err)
	}
}

// starved asks for what needs the disk.
func (d *disk) starved(words string, p *pod, c *container, image string) {
	d.t.Helper()
	for what, f := range map[string]func(ctx context.Context) error{
		"run": func(ctx context.Context) error {
			_, err := d.run(ctx)
			return err
		},
		"create": func(ctx context.Context) error {
			_, err := d.create(ctx, p, "exit 0")
			return err
		},
		"pull": func(ctx context.Context) error {
			_, err := d.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: image}, nil, nil)
			return err
		},
		"update": func(ctx context.Context) error {
			return d.CRI.UpdateContainerResources(ctx, c.id, &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100}})
		},
	} {
		count("requests on a disk that takes nothing", 1)
		ctx, cancel := context.WithTimeout(d.t.Context(), deadline)
		err := f(ctx)
		cancel()
		if err == nil || !strings.Contains(err.Error(), words) {
			d.t.Errorf("%s on a spoilt disk: %v", what, err)
		}
	}
}
