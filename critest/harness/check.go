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
	args := []string{
		"check", "--config", filepath.Join(r.Dir, "config.toml"),
		"--root", filepath.Join(r.Dir, "root"), "--state", filepath.Join(r.Dir, "state"),
	}
	cmd := exec.CommandContext(ctx, r.options.Binary, append(args, r.cgroupArguments()...)...) //nolint:gosec // our own binary
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s check: %w: %s", r.Name, err, out)
	}
	return nil
}
