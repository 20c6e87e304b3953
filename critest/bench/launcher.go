package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// launcher compares a whole container's life in the runtime, over its socket,
// with `run` of the OCI runtimes on the like bundle: each starts `true` and
// waits for its end.
func (b *bench) launcher(ctx context.Context) error {
	bundle := filepath.Join(b.runtimes[0].Dir, "bundle")
	if err := makeBundle(ctx, bundle, b.runtimes[0].Parent+"/default/launch"); err != nil {
		return err
	}
	p, err := b.newPod(b.runtimes[0], false)
	if err != nil {
		return err
	}
	if err := p.run(ctx); err != nil {
		return err
	}
	holder, err := newView(ctx)
	if err != nil {
		return err
	}
	defer holder.close()
	commands := map[string][]string{}
	for _, name := range []string{"runc", "crun"} {
		if path, err := exec.LookPath(name); err == nil {
			commands[name] = []string{path, "--root", filepath.Join(b.runtimes[0].Dir, name), "run", "--bundle", bundle}
		}
	}
	var own, empty samples
	theirs := map[string]samples{}
	for i := range b.options.n {
		if err := idle(ctx, b.options.gap); err != nil {
			return err
		}
		begin := time.Now()
		if err := p.create(ctx, []string{"true"}); err != nil {
			return err
		}
		if err := p.on.CRI.StartContainer(ctx, p.container); err != nil {
			return err
		}
		own = append(own, time.Since(begin))
		if err := p.on.CRI.RemoveContainer(ctx, p.container); err != nil {
			return err
		}
		took, err := holder.run(ctx, "/bin/true")
		if err != nil {
			return err
		}
		empty = append(empty, took)
		for name, command := range commands {
			if err := idle(ctx, b.options.gap); err != nil {
				return err
			}
			took, err := holder.run(ctx, append(command, fmt.Sprintf("bench%d", i))...)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			theirs[name] = append(theirs[name], took)
		}
	}
	base := empty.quantile(0.5)
	for name, s := range theirs {
		values := []float64{own.quantile(0.5), s.quantile(0.5) - base}
		b.table.figure("Create + Start over the socket | "+name+" run alone", "ms", "", false, values)
	}
	return p.down(ctx)
}

// view is a mount namespace without the second cgroup hierarchy, in which
// some versions of crun refuse to work.
type view struct {
	command *exec.Cmd
	pid     int
}

func newView(ctx context.Context) (*view, error) {
	script := "if test -f /sys/fs/cgroup/unified/cgroup.controllers; then umount -l /sys/fs/cgroup/unified; fi; echo up; exec sleep 100000"
	c := exec.CommandContext(ctx, "unshare", "-m", "--propagation", "private", "sh", "-c", script)
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("make a mount namespace: %w", err)
	}
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("make a mount namespace: %w", err)
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		return nil, errors.Join(err, c.Process.Kill())
	}
	return &view{command: c, pid: c.Process.Pid}, nil
}

func (v *view) run(ctx context.Context, command ...string) (time.Duration, error) {
	args := append([]string{"-t", fmt.Sprint(v.pid), "-m"}, command...)
	c := exec.CommandContext(ctx, "nsenter", args...)
	var errOut bytes.Buffer
	c.Stderr = &errOut
	begin := time.Now()
	if err := c.Run(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, errOut.Bytes())
	}
	return time.Since(begin), nil
}

func (v *view) close() {
	_ = v.command.Process.Kill()
	_ = v.command.Wait() // killed
}

// makeBundle is busybox with the configuration that `runc spec` proposes and
// what a kubelet adds to it: limits of a cgroup of its own.
func makeBundle(ctx context.Context, dir, cgroup string) error {
	bin := filepath.Join(dir, "rootfs", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return fmt.Errorf("make a bundle: %w", err)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("make a bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(bin, "true"), busybox, 0o755); err != nil { //nolint:gosec // a program
		return fmt.Errorf("make a bundle: %w", err)
	}
	if out, err := exec.CommandContext(ctx, "runc", "spec", "--bundle", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("runc spec: %w: %s", err, out)
	}
	path := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the bundle's configuration: %w", err)
	}
	var spec map[string]any
	if err := json.Unmarshal(data, &spec); err != nil {
		return fmt.Errorf("read the bundle's configuration: %w", err)
	}
	process, linux := spec["process"].(map[string]any), spec["linux"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"/bin/true"}
	linux["cgroupsPath"] = cgroup
	linux["resources"] = map[string]any{
		"memory": map[string]any{"limit": 128 << 20},
		"cpu":    map[string]any{"shares": 512, "quota": 100_000, "period": 100_000},
	}
	if data, err = json.Marshal(spec); err != nil {
		return fmt.Errorf("write the bundle's configuration: %w", err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write the bundle's configuration: %w", err)
	}
	return nil
}
