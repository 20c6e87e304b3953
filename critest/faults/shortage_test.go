package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

const (
	requestsShort  = "requests in a shortage"
	daemonsStarved = "daemons that a shortage ended"
)

// shortage is a node some of whose pods and containers are to be changed while
// the daemon lacks something.
type shortage struct {
	*node
	writers []*writer
	words   []string // what an error may say is lacking
	image   string
}

func beginShortage(t *testing.T, words ...string) *shortage {
	t.Helper()
	n := begin(t)
	writers, err := n.writers(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	return &shortage{node: n, writers: writers, words: words, image: noise(t, "short", 1<<20)}
}

// suffer sends each request while the daemon lacks something, many at once: it
// works, or fails and says why. Then all works, and nothing is left of what failed.
func (s *shortage) suffer(t *testing.T, begin func() (end func())) {
	t.Helper()
	var pods []*pod
	var containers []*container
	for range 3 {
		p, err := s.run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.start(t.Context(), p, counting)
		if err != nil {
			t.Fatal(err)
		}
		pods, containers = append(pods, p), append(containers, c)
	}
	end := begin()
	var clients sync.WaitGroup
	for range 6 {
		clients.Go(func() { s.ask(t, "run", s.life) })
	}
	for i := range pods {
		clients.Go(func() { s.requests(t, pods[i], containers[i]) })
	}
	clients.Wait()
	end()
	// It answers, or its end is seen after that of its connections.
	if err := harness.Until(t.Context(), patience, "the daemon to answer or end", func() bool {
		_, err := s.CRI.Version(t.Context(), "v1")
		return err == nil || s.Ended()
	}); err != nil {
		t.Fatal(err)
	}
	if s.Ended() {
		count(daemonsStarved, 1)
		s.again()
	}
	if err := s.cleanBut(t.Context()); err != nil {
		t.Errorf("clean up afterwards: %v", err)
	}
	patiently(t, "everything afterwards", func(ctx context.Context) error { return s.unaffected(ctx, s.writers[0]) })
	patiently(t, "pull afterwards", func(ctx context.Context) error {
		image := &runtimeapi.ImageSpec{Image: s.image}
		_, err := s.Images.PullImage(ctx, image, nil, nil)
		return errors.Join(err, s.checkImages(ctx), s.Images.RemoveImage(ctx, image))
	})
}

// life is a pod that need not come to be.
func (s *shortage) life(ctx context.Context) error {
	p, err := s.run(ctx)
	if err != nil {
		return err
	}
	if _, err := s.start(ctx, p, "exit 0"); err != nil {
		return err
	}
	return s.CRI.StopPodSandbox(ctx, p.id)
}

func (s *shortage) requests(t *testing.T, p *pod, c *container) {
	t.Helper()
	for _, r := range []struct {
		name string
		send func(ctx context.Context) error
	}{
		{"Status", func(ctx context.Context) error { _, err := s.CRI.Status(ctx, true); return err }},
		{"ListContainers", func(ctx context.Context) error { _, err := s.CRI.ListContainers(ctx, nil); return err }},
		{"ContainerStatus", func(ctx context.Context) error { _, err := s.CRI.ContainerStatus(ctx, c.id, true); return err }},
		{"PodSandboxStatus", func(ctx context.Context) error { _, err := s.CRI.PodSandboxStatus(ctx, p.id, true); return err }},
		{"ListContainerStats", func(ctx context.Context) error { _, err := s.CRI.ListContainerStats(ctx, nil); return err }},
		{"ListPodSandboxStats", func(ctx context.Context) error { _, err := s.CRI.ListPodSandboxStats(ctx, nil); return err }},
		{"ImageFsInfo", func(ctx context.Context) error { _, err := s.Images.ImageFsInfo(ctx); return err }},
		{"ListImages", func(ctx context.Context) error { _, err := s.Images.ListImages(ctx, nil); return err }},
		{"PullImage", func(ctx context.Context) error {
			_, err := s.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: s.image}, nil, nil)
			return err
		}},
		{"ExecSync", func(ctx context.Context) error {
			_, _, err := s.CRI.ExecSync(ctx, c.id, []string{"true"}, deadline)
			return err
		}},
		{"UpdateContainerResources", func(ctx context.Context) error {
			return s.CRI.UpdateContainerResources(ctx, c.id, &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100}})
		}},
		{"ReopenContainerLog", func(ctx context.Context) error { return s.CRI.ReopenContainerLog(ctx, c.id) }},
		{"CreateContainer", func(ctx context.Context) error { _, err := s.start(ctx, p, "exit 0"); return err }},
		{"StopContainer", func(ctx context.Context) error { return s.CRI.StopContainer(ctx, c.id, 0) }},
		{"RemoveContainer", func(ctx context.Context) error { return s.CRI.RemoveContainer(ctx, c.id) }},
		{"StopPodSandbox", func(ctx context.Context) error { return s.CRI.StopPodSandbox(ctx, p.id) }},
		{"RemovePodSandbox", func(ctx context.Context) error { return s.CRI.RemovePodSandbox(ctx, p.id) }},
	} {
		s.ask(t, r.name, r.send)
	}
}

// ask wants success or an error that says what is lacking.
func (s *shortage) ask(t *testing.T, what string, send func(ctx context.Context) error) {
	t.Helper()
	count(requestsShort, 1)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	err := send(ctx)
	if err == nil || slices.ContainsFunc(s.words, func(w string) bool { return strings.Contains(err.Error(), w) }) {
		return
	}
	t.Errorf("%s in a shortage: %v", what, err)
}

// cleanBut removes all pods but the writers'.
func (s *shortage) cleanBut(ctx context.Context) error {
	keep := map[string]bool{}
	for _, w := range s.writers {
		keep[w.pod.id] = true
	}
	pods, err := s.CRI.ListPodSandbox(ctx, nil)
	errs := []error{err}
	for _, p := range pods {
		if !keep[p.Id] {
			errs = append(errs, s.CRI.StopPodSandbox(ctx, p.Id), s.CRI.RemovePodSandbox(ctx, p.Id))
		}
	}
	return errors.Join(errs...)
}

// The daemon may open next to nothing.
func TestNoDescriptors(t *testing.T) {
	s := beginShortage(t, "too many open files")
	var old unix.Rlimit
	if err := unix.Prlimit(s.PID(), unix.RLIMIT_NOFILE, nil, &old); err != nil {
		t.Fatal(err)
	}
	for _, spare := range []int{0, 3, 8, 15, 40} {
		s.suffer(t, func() func() {
			open, err := s.Descriptors()
			limit := old
			limit.Cur = uint64(open + spare)
			if err := errors.Join(err, unix.Prlimit(s.PID(), unix.RLIMIT_NOFILE, &limit, nil)); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := unix.Prlimit(s.PID(), unix.RLIMIT_NOFILE, &old, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	if s.Ended() {
		t.Error("the daemon has ended")
	}
	if err := s.check(t.Context(), s.writers...); err != nil {
		t.Error(err)
	}
}

// cgroup makes one for the daemon alone, in a hierarchy of version 1, and
// returns what writes its files. It is removed when the daemon has left it.
func (n *node) cgroup(t *testing.T, controller string) func(file, text string) {
	t.Helper()
	dir := filepath.Join("/sys/fs/cgroup", controller, n.Parent+"-daemon")
	if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "cgroup.procs")); err != nil {
		t.Skipf("no %s controller of cgroup v1", controller)
	}
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // a cgroup
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !n.Ended() {
			n.restart() // the new one is not in the cgroup
		}
		if err := harness.Until(context.Background(), patience/4, "the daemon's cgroup to be empty", func() bool { return os.Remove(dir) == nil }); err != nil {
			t.Error(err)
		}
	})
	return func(file, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// The daemon may have no more threads and processes. Go needs a thread now and
// then and ends without: the next daemon goes on.
func TestNoProcesses(t *testing.T) {
	s := beginShortage(t, "resource temporarily unavailable", "connection", "EOF")
	set := s.cgroup(t, "pids")
	for _, spare := range []int{0, 1, 4} {
		s.suffer(t, func() func() {
			set("cgroup.procs", fmt.Sprint(s.PID()))
			threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", s.PID()))
			if err != nil {
				t.Fatal(err)
			}
			set("pids.max", fmt.Sprint(len(threads)+spare))
			return func() { set("pids.max", "max") }
		})
	}
	if err := s.check(t.Context(), s.writers...); err != nil {
		t.Error(err)
	}
}

// The kernel kills the daemon for want of memory, amid its work, and nothing but the daemon.
func TestNoMemory(t *testing.T) {
	s := beginShortage(t, "connection", "EOF")
	set, before := s.cgroup(t, "memory"), figures.of(daemonsStarved)
	set("memory.limit_in_bytes", "8388608")
	s.suffer(t, func() func() {
		set("cgroup.procs", fmt.Sprint(s.PID()))
		loud, cancel := context.WithCancel(t.Context())
		var commands sync.WaitGroup
		for range 8 { // it keeps their output
			commands.Go(func() {
				_, _, _ = s.CRI.ExecSync(loud, s.writers[1].id, []string{"dd", "if=/dev/zero", "bs=64k", "count=200"}, time.Minute) // nobody answers
			})
		}
		return func() { cancel(); commands.Wait() }
	})
	if figures.of(daemonsStarved) == before {
		t.Error("the daemon has survived 100 MiB of output with 8 MiB of memory")
	}
	if err := s.check(t.Context(), s.writers...); err != nil {
		t.Error(err)
	}
}
