package critest

import (
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

func TestStop(t *testing.T) {
	begin(t)
	p := run(t)
	for _, test := range []struct {
		name, script string
		grace        int64
		code         int32
	}{
		{"handled", `trap "echo bye; exit 3" TERM; echo up; sleep 1000 & wait`, 60, 3},
		{"ignored", `trap "" TERM; echo up; while true; do sleep 1; done`, 1, 137},
		{"no grace", `trap "exit 3" TERM; echo up; sleep 1000 & wait`, 0, 137},
	} {
		t.Run(test.name, func(t *testing.T) {
			q := *p
			q.t = t
			c := q.start(test.script)
			c.prints("up")
			before := time.Now()
			c.stop(test.grace)
			if r := c.wait(); r.code != test.code {
				t.Errorf("code %d, want %d; %+v", r.code, test.code, r)
			}
			if test.code == 137 && time.Since(before) < time.Duration(test.grace)*time.Second {
				t.Error("killed before its grace was over")
			}
			c.stop(test.grace)
		})
	}
}

func TestStopSignalOfTheImage(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("", withImage(t, "stopsignal"))
	c.exec(0, "sh", "-c", "for i in $(seq 200); do pidof sleep && exit 0; usleep 20000; done; exit 1")
	c.stop(60)
	if r := c.wait(); r.code != 11 || !strings.Contains(r.stdout, "usr1") {
		t.Errorf("%+v, want code 11 by SIGUSR1", r)
	}
}

func TestStopSignalOfTheRequest(t *testing.T) {
	differs(t, "has no stop signal in the request")
	begin(t)
	p := run(t)
	c := p.start("", withImage(t, "stopsignal"), func(c *runtimeapi.ContainerConfig) {
		c.StopSignal = runtimeapi.Signal_SIGNAL_SIGTERM
	})
	c.exec(0, "sh", "-c", "for i in $(seq 200); do pidof sleep && exit 0; usleep 20000; done; exit 1")
	c.stop(60)
	if r := c.wait(); r.code != 12 {
		t.Errorf("%+v, want code 12 by SIGTERM", r)
	}
}

func TestStopKillsDescendants(t *testing.T) {
	begin(t)
	p := run(t, namespaces(ofNode, ofNode, ofPod))
	// With the host's PID namespace nothing but the cgroup ties them together.
	c := p.start(`trap "exit 0" TERM; setsid sleep 98765 & (trap "" TERM; sleep 98766) & echo up; wait`)
	c.prints("up")
	c.stop(2)
	if err := harness.Until(t.Context(), patience, "the descendants to be gone", func() bool {
		got := p.output("ps -o args | grep -c '[s]leep 9876' || true")
		return got == "0"
	}); err != nil {
		t.Error(err)
	}
}

func TestRemoveRunningContainer(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("sleep 1000")
	c.remove()
	if list, err := node.CRI.ListContainers(t.Context(), &runtimeapi.ContainerFilter{PodSandboxId: p.id}); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	p.create("true").remove()
}

func TestStopOfACreatedContainer(t *testing.T) {
	differs(t, "refuses it")
	begin(t)
	p := run(t)
	c := p.create("true")
	c.stop(5)
	if s := c.status(); s.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("state %s", s.State)
	}
	if err := node.CRI.StartContainer(t.Context(), c.id); err == nil {
		t.Error("a stopped container started")
	}
}

func TestStopAndRemovePodWithRunningContainers(t *testing.T) {
	begin(t)
	p := run(t, podNetwork)
	c := p.start("sleep 1000")
	p.create("true")
	if err := node.CRI.StopPodSandbox(t.Context(), p.id); err != nil {
		t.Fatal(err)
	}
	if s := c.status(); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("after StopPodSandbox: %s, code %d", s.State, s.ExitCode)
	}
	q := run(t)
	q.start("sleep 1000")
	if err := node.CRI.RemovePodSandbox(t.Context(), q.id); err != nil {
		t.Errorf("remove a running pod: %v", err)
	}
	if list, err := node.CRI.ListContainers(t.Context(), &runtimeapi.ContainerFilter{PodSandboxId: q.id}); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestConcurrentStops(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start(`trap "sleep 0.2; exit 4" TERM; echo up; sleep 1000 & wait`)
	c.prints("up")
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() { errs <- node.CRI.StopContainer(t.Context(), c.id, 30) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if r := c.wait(); r.code != 4 {
		t.Errorf("code %d", r.code)
	}
}
