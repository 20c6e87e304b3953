package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// dyingMachine is a machine whose daemon ends it by its own end: a process cannot
// kill itself as the first one of its PID namespace. Other commands look around inside.
const dyingMachine = `#!/bin/sh
if [ "$1" != serve ]; then
	read -r machine <%[3]s || exec %[1]s "$@"
	read -r first <"/proc/$machine/task/$machine/children"
	exec nsenter --target "$first" --mount --net --pid %[1]s "$@"
fi
[ -e %[2]s ] || exec %[1]s "$@"
echo $$ >%[3]s
exec unshare --mount %[4]s --pid --fork --kill-child --mount-proc sh -c \
	'mount --bind %[2]s /proc/sys/kernel/random/boot_id && %[1]s "$@"; exit $?' sh "$@"
`

// rebooting is a sweep on machines that end at a fault point.
type rebooting struct {
	*sweep
	boot  string            // file of the boot id
	runs  int               // of the machine
	calls func(*pod) string // of plugins for a pod
}

// TestRebootHalfway: the machine ends at each fault point on the way of a pod, a
// container or an image, from the first effect to the last. On its next run, with and
// without the state directory, the plugins are told to delete what they had added, the
// kubelet's next attempt and the same pull succeed, and nothing is left. The short form
// takes every 10th point.
func TestRebootHalfway(t *testing.T) {
	for _, network := range []string{"plugins", "built-in"} {
		t.Run(network, func(t *testing.T) { rebootHalfway(t, network == "plugins") })
	}
}

func rebootHalfway(t *testing.T, cni bool) {
	dir := t.TempDir()
	r := &rebooting{boot: filepath.Join(dir, "boot_id"), calls: func(*pod) string { return "" }}
	script := filepath.Join(dir, "machine")
	options := func(o *harness.Options) { o.Binary = script }
	// Of a network of its own the machine does not reach the registry.
	own := "--net"
	verbs := []*verb{
		runVerb("RunPodSandbox", ownCgroup), createVerb(), startVerb(), stopVerb("StopContainer", 30, 7),
		removeContainerVerb("RemoveContainer of a running one", true), stopPodVerb("StopPodSandbox"), removePodVerb(),
	}
	if cni {
		own = ""
		pull := pullVerb("layers")
		pull.done = func(ctx context.Context, _ *sweep, sub *subject) error { return r.usable(ctx, sub.image) }
		verbs = append(verbs, pull, removeImageVerb())
	}
	text := fmt.Appendf(nil, dyingMachine, binary, r.boot, filepath.Join(dir, "pid"), own)
	if err := errors.Join(os.WriteFile(script, text, 0o700), os.WriteFile(filepath.Join(dir, "pid"), nil, 0o600)); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	var n *node
	if cni {
		p := beginPlugins(t, options)
		n = p.node
		r.calls = func(pod *pod) string {
			data, _ := os.ReadFile(filepath.Join(p.dir, "calls-"+pod.config.Metadata.Name))
			return strings.ReplaceAll(strings.TrimSpace(string(data)), "\n", ", ")
		}
	} else {
		n = begin(t, options)
	}
	t.Cleanup(func() { // before the node's own
		if t.Failed() && r.sweep != nil {
			n.kill()
			n.powerOff(false)
			_ = errors.Join(os.Remove(r.boot), os.Truncate(filepath.Join(dir, "pid"), 0))
		}
	})
	n.kill()
	r.start(n)
	r.sweep = newSweep(t, n, 0)
	stride, at := 10, 0
	if long {
		stride = 1
	}
	for _, v := range verbs {
		order, _, err := r.points(t.Context(), v)
		if err != nil {
			t.Fatalf("%v\n%s", err, n.LogTail())
		}
		for _, point := range order {
			if at++; at%stride != 0 {
				continue
			}
			if err := r.cutOff(t.Context(), v, point, at/stride%2 == 0); err != nil {
				t.Fatalf("%s, the machine ended at %s: %v\n%s", v.name, point, err, n.LogTail())
			}
		}
	}
	n.kill()
	n.powerOff(false)
	if err := errors.Join(os.Remove(r.boot), os.Truncate(filepath.Join(dir, "pid"), 0)); err != nil {
		t.Fatal(err)
	}
	n.again() // on this machine, where all can be looked at
	n.before.Processes = nil
	if err := n.check(t.Context()); err != nil {
		t.Error(err)
	}
}

// start begins the next run of the machine.
func (r *rebooting) start(n *node) {
	n.t.Helper()
	r.runs++
	if err := os.WriteFile(r.boot, fmt.Appendf(nil, "%08d-2222-2222-2222-222222222222\n", r.runs), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.again()
	table, err := harness.Table()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, p := range harness.Descendants(table, n.PID()) {
		if p.Parent == n.PID() || strings.HasPrefix(p.Command, "cri-runtime") {
			n.before.Processes = append(n.before.Processes, fmt.Sprintf("%d (%s, parent %d)", p.PID, p.Command, p.Parent))
		}
	}
}

// cutOff ends the machine at a point of a verb, and checks what its next run does.
func (r *rebooting) cutOff(ctx context.Context, v *verb, point string, kept bool) error {
	sub := &subject{}
	if err := v.prepare(ctx, r.sweep, sub); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	bystander, err := r.run(ctx)
	if err != nil {
		return err
	}
	if _, err := r.node.start(ctx, bystander, "sleep 1000"); err != nil {
		return err
	}
	r.arm(point, 1)
	_ = v.do(ctx, r.sweep, sub) // the machine ends
	if err := harness.Until(ctx, patience/4, "the machine's end", r.Ended); err != nil && r.disarm() {
		return r.tidy(ctx, sub) // it was passed in the background, before
	} else if err != nil {
		return err
	}
	count(daemonKills, 1)
	count("reboots", 1)
	r.powerOff(kept)
	r.start(r.node)
	if err := r.afterHalf(ctx, sub, bystander); err != nil {
		return err
	}
	image := sub.image
	if err := r.tidy(ctx, sub); err != nil {
		return err
	}
	if image != "" {
		return r.imageAgain(ctx, image)
	}
	return r.nextAttempt(ctx, sub)
}

// afterHalf wants what a kubelet finds: nothing is ready, and what plugins had added
// is deleted without its asking.
func (r *rebooting) afterHalf(ctx context.Context, sub *subject, bystander *pod) error {
	if err := harness.Until(ctx, patience, "the pods to be detached", func() bool {
		left, err := filepath.Glob(filepath.Join(r.Dir, "root/cni/attachments/*"))
		return err == nil && len(left) == 0
	}); err != nil {
		return err
	}
	for _, p := range []*pod{sub.pod, {config: sub.config}, bystander} {
		if p == nil || p.config == nil {
			continue
		}
		if calls := r.calls(p); strings.Contains(calls, "ADD") && !strings.HasSuffix(calls, "second DEL, first DEL") {
			return fmt.Errorf("pod %s: the plugins' calls are %s: %w", p.config.Metadata.Name, calls, errFault)
		}
	}
	pods, err := r.CRI.ListPodSandbox(ctx, nil)
	if err != nil {
		return err
	}
	known := false
	for _, p := range pods {
		known = known || p.Id == bystander.id
		if p.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			return fmt.Errorf("after a reboot pod %s is %s: %w", p.Metadata.Name, p.State, errFault)
		}
	}
	list, err := r.CRI.ListContainers(ctx, nil)
	if err != nil {
		return err
	}
	for _, c := range list {
		if c.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("after a reboot container %s is %s: %w", c.Metadata.Name, c.State, errFault)
		}
	}
	if !known {
		return fmt.Errorf("the pod that nobody was at work on is forgotten: %w", errFault)
	}
	return nil
}

// imageAgain pulls the image that was being pulled or removed.
func (r *rebooting) imageAgain(ctx context.Context, image string) error {
	if err := errors.Join(r.pull(ctx, image), r.usable(ctx, image), r.checkImages(ctx)); err != nil {
		return fmt.Errorf("pulled again: %w", err)
	}
	return r.tidy(ctx, &subject{image: image})
}

// usable runs a container of an image, in a pod of its own.
func (r *rebooting) usable(ctx context.Context, image string) (err error) {
	if r.near, err = r.run(ctx); err != nil {
		return err
	}
	p := r.near
	err = r.hasImage(ctx, image)
	r.near = nil
	return errors.Join(err, r.remove(ctx, p))
}

// nextAttempt runs the pod anew, as the kubelet does, with the same host port.
func (r *rebooting) nextAttempt(ctx context.Context, sub *subject) error {
	sub.config.Metadata.Attempt++
	p, err := r.runConfig(ctx, sub.config)
	if err != nil {
		return fmt.Errorf("the next attempt: %w", err)
	}
	c, err := r.node.start(ctx, p, "exit 3")
	if err == nil {
		err = r.ended(ctx, c, 3)
	}
	if err != nil {
		return fmt.Errorf("the next attempt: %w", err)
	}
	return r.tidy(ctx, &subject{})
}
