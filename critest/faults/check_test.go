package faults

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// errFault: a check has found something wrong.
var errFault = errors.New("a fault had a consequence")

// check is the full check while pods are there: the daemon answers, the store
// and the host fit together, and those writers have noticed nothing.
func (n *node) check(ctx context.Context, writers ...*writer) error {
	count(fullChecks, 1)
	status, err := n.CRI.Status(ctx, false)
	if err != nil {
		return err
	}
	errs := []error{n.Check(ctx)}
	for _, c := range status.Status.Conditions {
		if c.Type == runtimeapi.RuntimeReady && !c.Status {
			errs = append(errs, errors.New("RuntimeReady is false: "+c.Message))
		}
	}
	for _, w := range writers {
		errs = append(errs, n.checkWriter(ctx, w))
	}
	return errors.Join(errs...)
}

// removeCgroup does what the kubelet does after a pod's end.
func (n *node) removeCgroup(ctx context.Context, config *runtimeapi.PodSandboxConfig) error {
	var errs []error
	dirs, err := filepath.Glob("/sys/fs/cgroup/*" + config.Linux.CgroupParent)
	errs = append(errs, err)
	for _, dir := range append(dirs, "/sys/fs/cgroup"+config.Linux.CgroupParent) {
		errs = append(errs, harness.Until(ctx, patience/4, "cgroup "+dir+" to be empty", func() bool {
			err := os.Remove(dir)
			return err == nil || errors.Is(err, fs.ErrNotExist)
		}))
	}
	return errors.Join(errs...)
}
