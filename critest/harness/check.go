package harness

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
)

// Check asks the project's own check whether records, host and daemon fit
// together. The error has its findings.
func (r *Runtime) Check(ctx context.Context) error {
	if r.options.Peer {
		return nil
	}
	//nolint:gosec // our own binary
	cmd := exec.CommandContext(ctx, r.options.Binary, "check", "--config", filepath.Join(r.Dir, "config.toml"),
		"--root", filepath.Join(r.Dir, "root"), "--state", filepath.Join(r.Dir, "state"),
		"--cgroup-driver", "cgroupfs", "--cgroup-parent", r.Parent+"/default")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s check: %w: %s", r.Name, err, out)
	}
	return nil
}
