package critest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// restart ends the daemon by sig, runs meanwhile, and starts it again.
func restart(t *testing.T, sig syscall.Signal, meanwhile func()) {
	t.Helper()
	if err := node.Signal(sig, true); err != nil {
		t.Fatal(err)
	}
	meanwhile()
	if err := node.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestDaemonIsKilledWithContainersRunning(t *testing.T) {
	differs(t, "output stops while the daemon is away")
	begin(t)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			p := run(t, podNetwork)
			writer := p.start(`i=0; while true; do i=$((i+1)); echo line $i; usleep 2000; done`)
			stopper := p.start(`trap "exit 6" TERM; echo up; sleep 1000 & wait`)
			exiting := p.start(`echo up; while ! test -e /dev/shm/go; do usleep 10000; done; exit 42`)
			killed := p.start(`echo up; while ! test -e /dev/shm/go; do usleep 10000; done; exec dd if=/dev/zero of=/dev/null bs=200M count=1`,
				resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 24 << 20}))
			created := p.create("exit 9")
			exiting.prints("up")
			killed.prints("up")
			stopper.prints("up")
			writer.prints("line 10")
			before := p.status()
			var down, up time.Time
			restart(t, sig, func() {
				down = time.Now()
				size := fileSize(t, writer.logPath())
				// The pod's shared memory is the only way in while the daemon is away.
				touch(t, writer, "go")
				await(t, "the log to grow without the daemon", func() bool { return fileSize(t, writer.logPath()) > size+100 })
				await(t, "the container to exit without the daemon", func() bool { return !alive(t, "test -e /dev/shm/go") })
				up = time.Now()
			})
			after := p.status()
			if after.State != before.State || after.CreatedAt != before.CreatedAt || after.Network.GetIp() != before.Network.GetIp() {
				t.Errorf("the pod was %v and is %v", before, after)
			}
			if r := exiting.wait(); r.code != 42 || r.reason != "Error" {
				t.Errorf("exit without the daemon: %+v", r)
			}
			if at := time.Unix(0, exiting.status().FinishedAt); at.Before(down) || at.After(up.Add(time.Second)) {
				t.Errorf("finished at %s, but it was between %s and %s", at, down, up)
			}
			if r := killed.wait(); r.code != 137 || r.reason != "OOMKilled" {
				t.Errorf("out of memory without the daemon: %+v", r)
			}
			if got := strings.TrimSpace(writer.exec(0, "echo", "alive")); got != "alive" {
				t.Errorf("exec after the restart: %q", got)
			}
			created.start()
			if r := created.wait(); r.code != 9 {
				t.Errorf("started after the restart: %+v", r)
			}
			stopper.stop(60)
			if r := stopper.wait(); r.code != 6 {
				t.Errorf("stopped after the restart: %+v", r)
			}
			writer.stop(0)
			out := writer.wait().stdout
			for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
				if line != fmt.Sprintf("line %d", i+1) {
					t.Fatalf("line %d of the log is %q", i+1, line)
				}
			}
			if err := node.CRI.ReopenContainerLog(t.Context(), writer.id); err == nil {
				t.Error("the log of an exited container was opened again")
			}
		})
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	s, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return s.Size()
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	if err := harness.Until(context.Background(), patience, what, done); err != nil {
		t.Error(err)
	}
}

// processesOf lists the live descendants whose command line contains text.
func processesOf(t *testing.T, text string) (pids []int) {
	t.Helper()
	table, err := harness.Table()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range harness.Descendants(table, os.Getpid()) {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
		if err == nil && p.State != 'Z' && strings.Contains(strings.ReplaceAll(string(line), "\x00", " "), text) {
			pids = append(pids, p.PID)
		}
	}
	return pids
}

func alive(t *testing.T, text string) bool {
	t.Helper()
	return len(processesOf(t, text)) > 0
}

// touch makes a file in the /dev/shm of c's pod through /proc.
func touch(t *testing.T, c *container, name string) {
	t.Helper()
	for _, pid := range processesOf(t, c.config.Command[2]) {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/dev/shm/%s", pid, name), nil, 0o600); err == nil {
			return
		}
	}
	t.Errorf("no process runs %q", c.config.Command[2])
}

func TestDaemonIsKilledWhileItWorks(t *testing.T) {
	differs(t, "needs the kubelet's garbage collection")
	begin(t)
	for round := range 6 {
		configs := make([]*runtimeapi.PodSandboxConfig, 8)
		for i := range configs {
			configs[i] = podConfig()
			if i%2 == 0 {
				podNetwork(configs[i])
			}
			prepare(t, configs[i])
		}
		one := containerConfig(t, "sleep 1000")
		done := make(chan struct{}, len(configs))
		for _, config := range configs {
			go func() {
				defer func() { done <- struct{}{} }()
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				id, err := node.CRI.RunPodSandbox(ctx, config, "")
				if err != nil {
					return
				}
				c, err := node.CRI.CreateContainer(ctx, id, one, config)
				if err != nil {
					return
				}
				_ = node.CRI.StartContainer(ctx, c) // killed in the middle
			}()
		}
		tick := time.NewTicker(time.Duration(5+13*round) * time.Millisecond)
		<-tick.C
		tick.Stop()
		restart(t, syscall.SIGKILL, func() {})
		for range configs {
			<-done
		}
		// What the kubelet does: it lists, and removes what it does not want.
		await(t, "all pods to be removed", func() bool {
			pods, err := node.CRI.ListPodSandbox(context.Background(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range pods {
				if err := node.CRI.StopPodSandbox(context.Background(), p.Id); err != nil {
					t.Errorf("round %d: stop: %v", round, err)
				}
				if err := node.CRI.RemovePodSandbox(context.Background(), p.Id); err != nil {
					t.Errorf("round %d: remove: %v", round, err)
				}
			}
			return len(pods) == 0
		})
		// A retry after the crash makes the same pod anew.
		id, err := node.CRI.RunPodSandbox(t.Context(), configs[0], "")
		if err != nil {
			t.Fatalf("round %d: run again: %v", round, err)
		}
		(&pod{t: t, id: id}).remove()
	}
}

func TestDaemonIsKilledWhileItRemoves(t *testing.T) {
	differs(t, "needs the kubelet's garbage collection")
	begin(t)
	for round := range 4 {
		pods := make([]*pod, 6)
		for i := range pods {
			config := podConfig(podNetwork)
			prepare(t, config)
			id, err := node.CRI.RunPodSandbox(t.Context(), config, "")
			if err != nil {
				t.Fatal(err)
			}
			pods[i] = &pod{t: t, id: id, config: config}
			pods[i].start("sleep 1000")
		}
		done := make(chan struct{}, len(pods))
		for _, p := range pods {
			go func() {
				defer func() { done <- struct{}{} }()
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				_ = node.CRI.StopPodSandbox(ctx, p.id)   // killed in the middle
				_ = node.CRI.RemovePodSandbox(ctx, p.id) // likewise
			}()
		}
		tick := time.NewTicker(time.Duration(3+7*round) * time.Millisecond)
		<-tick.C
		tick.Stop()
		restart(t, syscall.SIGKILL, func() {})
		for range pods {
			<-done
		}
		for _, p := range pods {
			p.remove()
		}
	}
}

func TestMonitorIsKilled(t *testing.T) {
	differs(t, "has one shim a pod")
	begin(t)
	p := run(t)
	other := p.start("sleep 1000")
	c := p.start("sleep 4455 & sleep 4456 & wait")
	await(t, "the container's processes", func() bool { return alive(t, "sleep 4455") && alive(t, "sleep 4456") })
	monitor := parentOf(t, processesOf(t, "sleep 4455 & sleep")[0])
	if err := unix.Kill(monitor, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "the container to be reported as exited", func() bool {
		return c.status().State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	if s := c.status(); s.ExitCode == 0 || s.FinishedAt == 0 {
		t.Errorf("status %v", s)
	}
	await(t, "the container's processes to be gone", func() bool { return !alive(t, "sleep 4455") && !alive(t, "sleep 4456") })
	if got := strings.TrimSpace(other.exec(0, "echo", "alive")); got != "alive" {
		t.Errorf("the other container: %q", got)
	}
	c.stop(1)
	c.remove()
}

func TestMonitorIsKilledWhileTheDaemonIsAway(t *testing.T) {
	differs(t, "has one shim a pod")
	begin(t)
	p := run(t)
	c := p.start("sleep 5566 & sleep 5567 & wait")
	await(t, "the container's processes", func() bool { return alive(t, "sleep 5566") && alive(t, "sleep 5567") })
	restart(t, syscall.SIGKILL, func() {
		if err := unix.Kill(parentOf(t, processesOf(t, "sleep 5566 & sleep")[0]), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if _, err := node.Residue(); err != nil { // reaps it, as init would
			t.Fatal(err)
		}
	})
	await(t, "the container to be reported as exited", func() bool {
		return c.status().State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	await(t, "the container's processes to be gone", func() bool { return !alive(t, "sleep 5566") && !alive(t, "sleep 5567") })
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	table, err := harness.Table()
	if err != nil {
		t.Fatal(err)
	}
	parent := table[table[pid].Parent]
	if parent.Command != "cri-monitor" {
		t.Fatalf("the parent of %d is %+v, not a monitor", pid, parent)
	}
	return parent.PID
}

func TestFrozenMonitorHarmsOnePod(t *testing.T) {
	differs(t, "has one shim a pod")
	begin(t)
	p, q := run(t), run(t)
	p.start("sleep 6677 & wait")
	await(t, "the container's process", func() bool { return alive(t, "sleep 6677") })
	monitor := parentOf(t, processesOf(t, "sleep 6677 & wait")[0])
	if err := unix.Kill(monitor, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(monitor, unix.SIGCONT)
	if got := q.output("echo fine"); got != "fine" {
		t.Errorf("another pod: %q", got)
	}
	if _, err := node.CRI.ListContainers(t.Context(), nil); err != nil {
		t.Error(err)
	}
	restart(t, syscall.SIGKILL, func() {})
	if got := q.output("echo fine"); got != "fine" {
		t.Errorf("another pod after a restart: %q", got)
	}
}

func TestCleanShutDownStopsNothing(t *testing.T) {
	begin(t)
	p := run(t, namespaces(ofNode, ofPod, ofPod))
	c := p.start("sleep 1000")
	started := c.status().StartedAt
	restart(t, syscall.SIGTERM, func() {
		if code := node.ExitCode(); code != 0 {
			t.Errorf("the daemon's exit code is %d", code)
		}
	})
	s := c.status()
	if s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || s.StartedAt != started {
		t.Errorf("status %v", s)
	}
}

func TestTwoDaemons(t *testing.T) {
	differs(t, "one is enough of it")
	begin(t)
	o, err := options(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := harness.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	open := true
	t.Cleanup(func() {
		if open {
			_ = second.Close(context.Background()) // the test has failed before
		}
	})
	p := run(t)
	first := p.start("sleep 1000")
	if list, err := second.CRI.ListPodSandbox(t.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("the second daemon lists %v (%v)", list, err)
	}
	ref := depot.Address + "/cri-runtime/busybox:latest"
	if _, err := second.Images.PullImage(t.Context(), &runtimeapi.ImageSpec{Image: ref}, nil, nil); err != nil {
		t.Error(err)
	}
	config := podConfig()
	config.Linux.CgroupParent = second.PodCgroup(second.Tag + "-pod")
	config.LogDirectory = filepath.Join(second.Dir, "logs")
	id, err := second.CRI.RunPodSandbox(t.Context(), config, "")
	if err != nil {
		t.Fatal(err)
	}
	c, err := second.CRI.CreateContainer(t.Context(), id, containerConfig(t, "sleep 1000"), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.CRI.StartContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if list, err := node.CRI.ListPodSandbox(t.Context(), nil); err != nil || len(list) != 1 {
		t.Errorf("the first daemon lists %v (%v)", list, err)
	}
	if err := second.CRI.RemovePodSandbox(t.Context(), id); err != nil {
		t.Error(err)
	}
	if err := second.RemoveCgroup(t.Context(), config.Linux.CgroupParent); err != nil {
		t.Error(err)
	}
	open = false
	if err := second.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if first.status().State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Error("the end of one daemon stopped the other's container")
	}
}

func TestSameDirectoryTwice(t *testing.T) {
	differs(t, "starts and fails later")
	begin(t)
	o, err := options(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o.Args = []string{"--root", filepath.Join(node.Dir, "root")}
	second, err := harness.New(t.Context(), o)
	if err == nil {
		t.Error("two daemons share a directory")
		_ = second.Close(t.Context())
	}
}
