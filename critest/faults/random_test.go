package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

const (
	podWorkers   = 50
	imageWorkers = 2
)

// TestKilledUnderLoad kills the daemon at random while 50 clients run, use and
// remove pods and two others pull and remove images, all of whom repeat what
// was not answered as the kubelet does.
func TestKilledUnderLoad(t *testing.T) {
	n := begin(t)
	kills := 20
	if long {
		kills = 300
	}
	writers, err := n.writers(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	var noises []string
	for i := range 4 {
		noises = append(noises, noise(t, fmt.Sprintf("noise%d", i), 1<<20))
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test's, and repeatable
	work, stop := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	for i := range podWorkers + imageWorkers {
		w := &worker{node: n, noises: noises, random: rand.New(rand.NewPCG(seed, uint64(i+1)))} //nolint:gosec // likewise
		live := w.podLife
		if i >= podWorkers {
			live = w.imageLife
		}
		workers.Go(func() {
			for work.Err() == nil {
				if err := live(work); err != nil && work.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	end, limited := t.Deadline()
	for k := range kills {
		if limited && time.Until(end) < 2*time.Minute {
			note("random kills: only %d of %d, the test's time was over", k, kills)
			break
		}
		pause(time.Duration(random.IntN(800)) * time.Millisecond)
		n.kill()
		if k%4 == 0 {
			n.killAtStart(time.Duration(random.IntN(60)) * time.Millisecond)
		}
		n.again()
		if err := n.check(t.Context(), writers[k%len(writers)]); err != nil || t.Failed() {
			t.Errorf("after kill %d: %v", k, err)
			break
		}
	}
	stop()
	workers.Wait()
	if err := errors.Join(n.check(t.Context(), writers...), n.checkImages(t.Context()), n.checkDaemonLog()); err != nil {
		t.Error(err)
	}
}

// pause is the load's time between two faults; nothing is waited for.
func pause(d time.Duration) { <-time.After(d) }

// killAtStart starts the daemon and kills it while it reads its state, or soon after.
func (n *node) killAtStart(after time.Duration) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	started := make(chan error, 1)
	go func() { started <- n.Start(ctx) }()
	if err := harness.Until(ctx, patience, "the daemon's process", func() bool {
		return n.daemonProcess() != 0
	}); err != nil {
		n.t.Error(err)
	}
	pause(after)
	pid := n.daemonProcess()
	if pid != 0 {
		killProcess(n.t, pid)
	}
	err := <-started
	cancel()
	if err == nil && pid == 0 {
		n.kill()
		return
	}
	if err == nil { // it was quicker, and its end may still be unseen
		err = harness.Until(context.Background(), patience, "the daemon's end", n.Ended)
		if err != nil {
			n.t.Error(err)
		}
	}
	count(daemonKills, 1)
	count("kills of the daemon while it starts", 1)
}

// daemonProcess finds the daemon among our children, also before Start returns.
func (n *node) daemonProcess() int {
	table, err := harness.Table()
	if err != nil {
		n.t.Error(err)
	}
	for pid, p := range table {
		if p.Parent != os.Getpid() || p.State == 'Z' {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.Contains(string(line), "serve\x00") && strings.Contains(string(line), n.Dir) {
			return pid
		}
	}
	return 0
}

// worker is one client.
type worker struct {
	*node
	random *rand.Rand
	noises []string // images
}

// persist repeats a request until the daemon answers it.
func (w *worker) persist(ctx context.Context, what string, request func() error) error {
	for {
		err := request()
		count("requests under load", 1)
		code := status.Code(err)
		if code == codes.OK {
			return nil
		}
		if code != codes.Unavailable && code != codes.Canceled && code != codes.DeadlineExceeded {
			return fmt.Errorf("%s: %w", what, err)
		}
		count("requests under load that a kill cut off", 1)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// podLife runs a pod with two containers, looks at their ends and removes it.
func (w *worker) podLife(ctx context.Context) (err error) {
	config := w.podConfig()
	if w.random.IntN(3) > 0 {
		hostNetwork(config)
	}
	if w.random.IntN(4) == 0 {
		sharedPID(config)
	}
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		return err
	}
	p := &pod{config: config}
	if err := w.persist(ctx, "run", func() (err error) {
		p.id, err = w.CRI.RunPodSandbox(ctx, config, "")
		return err
	}); err != nil {
		return err
	}
	count(podsRun, 1)
	code := int32(w.random.IntN(200)) + 1
	if err := errors.Join(
		w.shortLife(ctx, p, code),
		w.longLife(ctx, p, code),
		w.persist(ctx, "stop pod", func() error { return w.CRI.StopPodSandbox(ctx, p.id) }),
		w.persist(ctx, "remove pod", func() error { return w.CRI.RemovePodSandbox(ctx, p.id) }),
	); err != nil {
		return err
	}
	return w.removeCgroup(ctx, config)
}

func (w *worker) begin(ctx context.Context, p *pod, script string) (*container, error) {
	c := &container{pod: p, config: containerConfig(p.config, script)}
	if err := w.persist(ctx, "create", func() (err error) {
		c.id, err = w.CRI.CreateContainer(ctx, p.id, c.config, p.config)
		return err
	}); err != nil {
		return nil, err
	}
	err := w.persist(ctx, "start", func() error {
		err := w.CRI.StartContainer(ctx, c.id)
		if status.Code(err) != codes.FailedPrecondition {
			return err
		}
		st, statusErr := w.status(ctx, c.id) // it may have been started by a request that nobody answered
		if statusErr == nil && st.State == runtimeapi.ContainerState_CONTAINER_CREATED {
			return err
		}
		return statusErr
	})
	return c, err
}

// shortLife runs a container that ends by itself, also while no daemon runs.
func (w *worker) shortLife(ctx context.Context, p *pod, code int32) error {
	c, err := w.begin(ctx, p, fmt.Sprintf("echo only line; exit %d", code))
	if err != nil {
		return err
	}
	return errors.Join(w.ended(ctx, c, code), onlyLine(c.logPath()))
}

// longLife runs commands in a container and stops it.
func (w *worker) longLife(ctx context.Context, p *pod, code int32) error {
	c, err := w.begin(ctx, p, fmt.Sprintf("trap 'exit %d' TERM; echo only line; sleep 100000 & wait", code))
	if err != nil {
		return err
	}
	if err := harness.Until(ctx, patience, "output of "+c.id, func() bool { return onlyLine(c.logPath()) == nil }); err != nil {
		return err
	}
	if err := w.persist(ctx, "exec", func() error {
		answer, err := w.raw.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", "echo out; exit 5"}, Timeout: 60})
		if err == nil && (answer.ExitCode != 5 || string(answer.Stdout) != "out\n") {
			return fmt.Errorf("code %d, output %q, stderr %q: %w", answer.ExitCode, answer.Stdout, answer.Stderr, errFault)
		}
		return err
	}); err != nil {
		return err
	}
	count(execsRun, 1)
	if err := w.persist(ctx, "stop", func() error { return w.CRI.StopContainer(ctx, c.id, 60) }); err != nil {
		return err
	}
	if err := errors.Join(w.ended(ctx, c, code), onlyLine(c.logPath())); err != nil {
		return err
	}
	if w.random.IntN(2) == 0 {
		return nil // it goes with its pod
	}
	return w.persist(ctx, "remove", func() error { return w.CRI.RemoveContainer(ctx, c.id) })
}

// ended waits for a container's end and checks how it ended.
func (w *worker) ended(ctx context.Context, c *container, code int32) error {
	var st *runtimeapi.ContainerStatus
	for st == nil || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		if err := w.persist(ctx, "status", func() (err error) {
			st, err = w.status(ctx, c.id)
			return err
		}); err != nil {
			return err
		}
		pause(10 * time.Millisecond)
	}
	if st.ExitCode != code || st.StartedAt < st.CreatedAt || st.FinishedAt < st.StartedAt {
		return fmt.Errorf("want exit code %d: %v: %w", code, st, errFault)
	}
	return nil
}

func onlyLine(log string) error {
	data, err := os.ReadFile(log)
	if err == nil && (!strings.HasSuffix(string(data), " stdout F only line\n") || strings.Count(string(data), "\n") != 1) {
		err = fmt.Errorf("log %q: %w", data, errFault)
	}
	return err
}

// imageLife pulls images and removes them.
func (w *worker) imageLife(ctx context.Context) error {
	image := &runtimeapi.ImageSpec{Image: w.noises[w.random.IntN(len(w.noises))]}
	if err := w.persist(ctx, "pull", func() error {
		_, err := w.Images.PullImage(ctx, image, nil, nil)
		return err
	}); err != nil {
		return err
	}
	count("images pulled", 1)
	return w.persist(ctx, "remove image", func() error { return w.Images.RemoveImage(ctx, image) })
}

// checkImages compares every file of every image.
func (n *node) checkImages(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, binary, "image", "--state", filepath.Join(n.Dir, "state"), "check").CombinedOutput()
	if err != nil {
		return fmt.Errorf("image check: %w\n%s", err, out)
	}
	return nil
}

// checkDaemonLog looks for what no daemon should ever say.
func (n *node) checkDaemonLog() error {
	log, err := os.ReadFile(filepath.Join(n.Dir, "daemon.log"))
	if err != nil {
		return err
	}
	for _, text := range []string{"panic: ", `"Panic"`, "fatal error: ", "DATA RACE"} {
		if at := strings.Index(string(log), text); at >= 0 {
			return fmt.Errorf("the daemon's log: %.2000s: %w", log[at:], errFault)
		}
	}
	return nil
}

// readLog is what a container has printed so far, "" while there is no log.
func readLog(c *container) string {
	data, _ := os.ReadFile(c.logPath())
	return string(data)
}
