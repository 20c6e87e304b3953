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
	if out, err := r.CheckReport(ctx); err != nil {
		return fmt.Errorf("%s check: %w: %s", r.Name, err, out)
	}
	return nil
}

// CheckReport returns what the check prints; what it finds is an error, too.
func (r *Runtime) CheckReport(ctx context.Context, options ...string) (string, error) {
	args := []string{
		"check", "--config", filepath.Join(r.Dir, "config.toml"),
		"--root", filepath.Join(r.Dir, "root"), "--state", filepath.Join(r.Dir, "state"),
	}
	args = append(append(args, r.cgroupArguments()...), options...)
	out, err := exec.CommandContext(ctx, r.options.Binary, args...).CombinedOutput() //nolint:gosec // our own binary
	return string(out), err
}
