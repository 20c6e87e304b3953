package faults

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// machine is a script that runs a daemon as the first process of a PID namespace,
// with mount and network namespaces of its own and another boot id: with it
// ends everything but the files, as with a machine.
const machine = `#!/bin/sh
[ "$1" = serve ] || exec %[1]s "$@"
[ -e %[2]s ] || exec %[1]s "$@"
exec unshare --mount --net --pid --fork --kill-child --mount-proc sh -c \
	'mount --bind %[2]s /proc/sys/kernel/random/boot_id && exec %[1]s "$@"' sh "$@"
`

// TestReboot: the machine ends while pods are in each state. The records remain,
// with and without the state directory.
func TestReboot(t *testing.T) {
	for _, kept := range []bool{false, true} {
		t.Run(fmt.Sprintf("state directory kept %t", kept), func(t *testing.T) { reboot(t, kept) })
	}
}

func reboot(t *testing.T, kept bool) {
	dir := t.TempDir()
	boot, script := filepath.Join(dir, "boot_id"), filepath.Join(dir, "machine")
	if err := os.WriteFile(script, fmt.Appendf(nil, machine, binary, boot), 0o700); err != nil {
		t.Fatal(err)
	}
	n := begin(t, func(o *harness.Options) { o.Binary = script })
	ctx := t.Context()
	start := func(id string) {
		t.Helper()
		if id == "" {
			if err := os.Remove(boot); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(boot, []byte(id+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		n.again()
	}
	n.kill()
	start("11111111-1111-1111-1111-111111111111")
	config := n.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 40123, ContainerPort: 80}}
	})
	p, err := n.runConfig(ctx, config)
	if err != nil {
		t.Fatalf("%v\n%s", err, n.LogTail())
	}
	states := map[string]*container{}
	for name, script := range map[string]string{"running": "sleep 1000", "ended": "exit 7"} {
		if states[name], err = n.start(ctx, p, script); err != nil {
			t.Fatal(err)
		}
	}
	if states["created"], err = n.create(ctx, p, "true"); err != nil {
		t.Fatal(err)
	}
	stopped, err := n.run(ctx, hostNetwork)
	if err == nil {
		err = n.CRI.StopPodSandbox(ctx, stopped.id)
	}
	if err != nil {
		t.Fatal(err)
	}
	host, err := n.run(ctx, hostNetwork)
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Until(ctx, patience, "the exit", func() bool {
		st, err := n.status(ctx, states["ended"].id)
		return err == nil && st.State == runtimeapi.ContainerState_CONTAINER_EXITED
	}); err != nil {
		t.Fatal(err)
	}
	halfway := make(chan struct{})
	go func() { // in the middle of being made
		defer close(halfway)
		for range 3 {
			_, _ = n.run(context.Background())
		}
	}()
	n.kill()
	<-halfway
	n.powerOff(kept)
	start("22222222-2222-2222-2222-222222222222")
	n.afterReboot(t, p, states, host)
	next := n.podConfig(func(c *runtimeapi.PodSandboxConfig) { c.PortMappings = config.PortMappings })
	next.LogDirectory, next.Linux.CgroupParent = config.LogDirectory, config.Linux.CgroupParent
	next.Metadata = &runtimeapi.PodSandboxMetadata{Name: config.Metadata.Name, Uid: config.Metadata.Uid, Namespace: config.Metadata.Namespace, Attempt: 1}
	if err := n.CRI.RemovePodSandbox(ctx, p.id); err != nil {
		t.Error(err)
	}
	q, err := n.runConfig(ctx, next) // the same host port
	if err != nil {
		t.Fatalf("%v\n%s", err, n.LogTail())
	}
	c, err := n.start(ctx, q, "exit 0")
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Until(ctx, patience, "the container's end", func() bool {
		st, err := n.status(ctx, c.id)
		return err == nil && st.Reason == "Completed"
	}); err != nil {
		t.Error(err)
	}
	if err := n.clean(ctx); err != nil {
		t.Error(err)
	}
	n.kill()
	n.powerOff(kept)
	start("") // on this machine, where the check can look around
	if err := n.check(ctx); err != nil {
		t.Error(err)
	}
}

// powerOff takes away what does not survive: cgroups, and the state directory
// if that is a tmpfs.
func (n *node) powerOff(kept bool) {
	n.t.Helper()
	if err := harness.Until(context.Background(), patience, "the cgroups to be gone", func() bool {
		left, err := n.Residue()
		for i := len(left.Cgroups) - 1; i >= 0; i-- {
			_ = os.Remove(left.Cgroups[i]) // from the deepest on, once it is empty
		}
		return err == nil && len(left.Cgroups) == 0
	}); err != nil {
		n.t.Fatal(err)
	}
	if kept {
		return
	}
	state := filepath.Join(n.Dir, "state")
	if err := os.RemoveAll(state); err != nil {
		n.t.Fatal(err)
	}
	if err := unix.Mkdir(state, 0o700); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) afterReboot(t *testing.T, p *pod, states map[string]*container, host *pod) {
	t.Helper()
	ctx := t.Context()
	count("reboots", 1)
	if err := harness.Until(ctx, patience, "the pods to be detached", func() bool {
		left, err := filepath.Glob(filepath.Join(n.Dir, "root/cni/attachments/*"))
		return err == nil && len(left) == 0
	}); err != nil {
		t.Error(err)
	}
	pods, err := n.CRI.ListPodSandbox(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, one := range pods {
		known[one.Id] = true
		if one.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("after a reboot pod %s is %s", one.Metadata.Name, one.State)
		}
	}
	if !known[p.id] || !known[host.id] {
		t.Errorf("pods are forgotten: %v", pods)
	}
	for name, c := range states {
		st, err := n.status(ctx, c.id)
		if err != nil {
			t.Fatal(err)
		}
		want := int32(255)
		if name == "ended" {
			want = 7
		}
		if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != want || st.Reason == "" || st.FinishedAt < st.CreatedAt || st.StartedAt < st.CreatedAt {
			t.Errorf("the container that was %s: %v", name, st)
		}
	}
	if err := n.CRI.StopPodSandbox(ctx, p.id); err != nil {
		t.Error(err)
	}
}
