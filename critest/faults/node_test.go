package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// patience bounds every wait; nothing here is measured.
const patience = 60 * time.Second

// node is a daemon with fault points, in directories of its own.
type node struct {
	*harness.Runtime
	t      *testing.T
	faults string          // directory of the fault points' files
	before harness.Residue // what is there without any pod
	raw    runtimeapi.RuntimeServiceClient
}

// begin is the first line of every test: it starts a daemon and sees to it
// that nothing is left in the end. Without options its pods have the built-in
// network; real CNI plugins with o.CNI, o.Builtin = true, false.
func begin(t *testing.T, options ...func(o *harness.Options)) *node {
	t.Helper()
	if depot == nil {
		t.Skip("needs root")
	}
	n := &node{t: t, faults: t.TempDir()}
	o := harness.Options{Binary: binary, Registry: depot.Address, Builtin: true}
	if plugins, err := filepath.Abs("../../bin/cni"); err == nil {
		o.CNIBin = plugins
	}
	for _, change := range options {
		change(&o)
	}
	o.Env = append(o.Env, "CRI_RUNTIME_FAULTS="+n.faults)
	var err error
	if n.Runtime, err = harness.New(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	n.raw = runtimeapi.NewRuntimeServiceClient(n.Conn)
	t.Cleanup(n.end)
	n.warmUp()
	return n
}

// warmUp pulls the image and runs one pod: what the daemon makes once and
// keeps is there afterwards.
func (n *node) warmUp() {
	n.t.Helper()
	ctx := context.Background()
	if _, err := n.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: busybox()}, nil, nil); err != nil {
		n.t.Fatal(err)
	}
	p, err := n.run(ctx)
	if err != nil {
		n.t.Fatalf("%v\n%s", err, n.LogTail())
	}
	if _, err := n.start(ctx, p, "exit 0"); err != nil {
		n.t.Fatalf("%v\n%s", err, n.LogTail())
	}
	if err := n.remove(ctx, p); err != nil {
		n.t.Fatal(err)
	}
	if err := harness.Until(ctx, patience, "the trash to be empty", func() bool {
		n.before, err = n.Residue()
		return err != nil || len(n.before.Leases) == 0 && !slices.ContainsFunc(n.before.Files, func(f string) bool {
			return strings.HasPrefix(f, "root/trash/")
		})
	}); err != nil {
		n.t.Fatal(err)
	}
}

// end removes everything and checks that nothing is left.
func (n *node) end() {
	ctx := context.Background()
	if n.t.Failed() {
		n.t.Logf("the daemon's log ends with\n%s", n.LogTail())
	}
	n.disarm()
	if n.Ended() {
		if err := n.Start(ctx); err != nil {
			n.t.Error(err)
			return
		}
	}
	if err := n.clean(ctx); err != nil {
		n.t.Error(err)
	}
	n.settled("the test")
	if err := n.Close(ctx); err != nil {
		n.t.Error(err)
	}
}

// clean removes all pods, as the kubelet would that knows of none.
func (n *node) clean(ctx context.Context) error {
	pods, err := n.CRI.ListPodSandbox(ctx, nil)
	errs := []error{err}
	for _, p := range pods {
		errs = append(errs, n.CRI.StopPodSandbox(ctx, p.Id), n.CRI.RemovePodSandbox(ctx, p.Id))
	}
	// The cgroup that the kubelet has made for each pod.
	for _, dir := range n.podCgroups() {
		if err := harness.Until(ctx, patience, "cgroup "+dir+" to be empty", func() bool {
			err := os.Remove(dir)
			return err == nil || errors.Is(err, fs.ErrNotExist)
		}); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (n *node) podCgroups() (dirs []string) {
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		found, err := filepath.Glob(pattern + n.Parent + "/f-*")
		if err != nil {
			n.t.Error(err)
		}
		dirs = append(dirs, found...)
	}
	return dirs
}

// settled checks that the host is as it was after begin.
func (n *node) settled(after string) {
	n.t.Helper()
	var left []string
	if err := harness.Until(context.Background(), patience/4, "the host to be as before", func() bool {
		left = n.left()
		return len(left) == 0
	}); err != nil {
		count(thingsLeaked, len(left))
		n.t.Errorf("after %s: left behind: %q", after, left)
	}
}

// left lists what is on the host and was not when before was taken.
func (n *node) left() []string {
	now, err := n.Residue()
	before := n.before
	now.Processes, before.Processes = lasting(now.Processes), lasting(before.Processes)
	left := now.Since(before)
	if err != nil {
		left = append(left, err.Error())
	}
	return left
}

// lasting leaves out the parents, as monitors get another one when the daemon
// ends, and what the writers' shells start again and again: what is left of a
// container has a shell, too.
func lasting(processes []string) []string {
	var out []string
	for _, p := range processes {
		if p, _, _ = strings.Cut(p, ","); !strings.HasSuffix(p, "(usleep") {
			out = append(out, p)
		}
	}
	return out
}

// kill ends the daemon by SIGKILL.
func (n *node) kill() {
	n.t.Helper()
	if err := n.Signal(syscall.SIGKILL, true); err != nil {
		n.t.Fatal(err)
	}
	count(daemonKills, 1)
}

// again starts the daemon after its end.
func (n *node) again() {
	n.t.Helper()
	if err := n.Start(context.Background()); err != nil {
		n.t.Fatal(err)
	}
}

// restart kills the daemon and starts it again.
func (n *node) restart() {
	n.t.Helper()
	n.kill()
	n.again()
}

// arm lets the daemon die when it passes point for the nth time from now on.
func (n *node) arm(point string, nth int) {
	n.t.Helper()
	// In one step: the daemon may look at it at any moment.
	file := filepath.Join(n.faults, "arm")
	if err := os.WriteFile(file+".tmp", fmt.Appendf(nil, "%s %d", point, nth), 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(file+".tmp", file); err != nil {
		n.t.Fatal(err)
	}
}

// disarm takes arm back; it tells whether the point was still to come.
func (n *node) disarm() bool {
	err := os.Remove(filepath.Join(n.faults, "arm"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.t.Error(err)
	}
	return err == nil
}

// trace returns the points that were passed since the last call, in their order.
func (n *node) trace() []string {
	n.t.Helper()
	file := filepath.Join(n.faults, "trace")
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.t.Fatal(err)
	}
	// The daemon has it open and appends.
	if err := os.Truncate(file, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.t.Fatal(err)
	}
	return strings.Fields(string(data))
}
