package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/conmon"
	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/oci/seccomp"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

const (
	// killTimeout bounds the wait for a process that was sent SIGKILL.
	killTimeout = 10 * time.Second
	// reportTimeout is how long a monitor may take for an answer before it is
	// helped on, see Container.rouse.
	reportTimeout = time.Second
)

const monitorLost = "the container's monitor ended unexpectedly; the container was killed"

// Container is one container: a record, a cgroup and, until it has exited, a monitor.
type Container struct {
	id     string
	box    *Sandbox
	store  *Store
	status atomic.Pointer[ContainerStatus]
	exited chan struct{} // closed once the status says exited
	record containerRecord

	execs    atomic.Int32 // commands that run beside its own
	writable writableLayer
	meter    meter
	joins    joins // of its cgroup, for execs

	// mu guards what follows, and the publishing of status.
	mu       sync.Mutex
	monitor  *conmon.Monitor
	program  *oci.Program // until the container is started: names the steps of errors
	spec     *specs.Spec  // what execs need of config.json; nil after a restart, until the first one
	filter   seccomp.Filter
	starting *flight[struct{}] // a Start that is under way, or whose outcome nobody has heard
	leaving  bool              // this daemon has let go of the container
	leave    func()            // called then, may be nil
}

// Status returns the current state; it never waits.
func (c *Container) Status() *ContainerStatus { return c.status.Load() }

func (c *Container) root(parts ...string) string {
	return c.store.root(append([]string{"containers", c.id}, parts...)...)
}

func (c *Container) state() string { return c.store.state("containers", c.id) }

// detach lets go of the monitor.
func (c *Container) detach() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = true
	if c.leave != nil {
		c.leave()
	}
	if c.monitor == nil {
		return nil
	}
	return c.monitor.Close()
}

func (c *Container) left() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaving
}

// onLeave has f called when this daemon lets go of the container; false: it has.
func (c *Container) onLeave(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave = f
	return !c.leaving
}

func (c *Container) connected() *conmon.Monitor {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.monitor
}

// Start runs the container's command.
// A repeated call joins the first one, which goes on although its client gives
// up: what a client did not hear of is told to the next one.
func (c *Container) Start(ctx context.Context) error {
	c.mu.Lock()
	start, again := c.starting, c.starting != nil
	if !again {
		start = newFlight[struct{}](c.id)
		c.starting = start
	}
	c.mu.Unlock()
	if !again {
		detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), verbTimeout)
		defer cancel()
		start.finish(struct{}{}, c.start(detached))
	}
	_, err := start.wait(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() == nil && c.starting == start {
		c.starting = nil
	}
	return err
}

func (c *Container) start(ctx context.Context) error {
	if err := c.box.verb.lock(ctx, "start container"); err != nil {
		return err
	}
	defer c.box.verb.unlock()
	if err := c.box.requireReady("start container"); err != nil {
		return err
	}
	if err := c.require("start", stateCreated); err != nil {
		return err
	}
	m := c.connected()
	if m == nil {
		return fmt.Errorf("start container %s: its monitor is gone: %w", c.id, ErrState)
	}
	fault.Point("start.begun")
	started, err := m.Start(ctx)
	if err != nil {
		var step *conmon.StepError
		if errors.As(err, &step) {
			err = c.named(step)
			c.noteStartError(err)
		}
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	fault.Point("start.answered")
	c.update(func(s *ContainerStatus) {
		s.State, s.StartedAt = stateRunning, started
	})
	c.mu.Lock()
	c.program = nil
	c.mu.Unlock()
	return nil
}

// watch publishes the container's end. It ends with the monitor's connection.
func (c *Container) watch(m *conmon.Monitor) {
	<-m.Done()
	exit, err := m.Exit()
	fault.Point("watch.exit.told")
	if err != nil && c.left() {
		return // this daemon ends, the container goes on
	}
	if err != nil {
		exit, err = conmon.ReadExit(c.root())
	}
	lost := err != nil
	if lost {
		klog.ErrorS(err, "Monitor ended without telling an exit, killing its container", "container", c.id, "pod", c.box.id)
	}
	c.killLeftovers()
	fault.Point("watch.leftovers.killed")
	if lost {
		c.publishLost(lostRecord{Reason: reasonMonitorLost, Message: monitorLost})
	} else {
		c.publishExit(exit)
	}
	fault.Point("watch.published")
	if err := m.Close(); err != nil {
		klog.V(4).InfoS("Close monitor", "container", c.id, "err", err)
	}
}

// killLeftovers ends processes that outlived init: those of execs, and with
// the host's or the pod's PID namespace any other.
func (c *Container) killLeftovers() {
	cg, err := c.cgroup()
	if err != nil {
		return
	}
	if !populated(cg) {
		return
	}
	if err := cg.Kill(); err != nil {
		klog.ErrorS(err, "Kill what outlived a container's init", "container", c.id, "pod", c.box.id)
	}
}

func (c *Container) cgroup() (*oci.Cgroup, error) {
	return c.store.cgroups.Load(c.record.Cgroup)
}

func (c *Container) publishExit(exit conmon.Exit) {
	if c.Status().State == stateCreated && !exit.StartFailed && exit.StartedAt != 0 {
		// It was quicker than the answer to its start: whoever follows events sees both.
		c.update(func(s *ContainerStatus) { s.State, s.StartedAt = stateRunning, exit.StartedAt })
	}
	c.publish(func(s *ContainerStatus) {
		s.ExitCode, s.StartedAt, s.FinishedAt = exit.Code, exit.StartedAt, exit.FinishedAt
		switch {
		case exit.StartFailed:
			s.Reason = reasonStartError
		case exit.OOMKilled:
			s.Reason = reasonOOMKilled
		case exit.Code == 0:
			s.Reason = reasonCompleted
		default:
			s.Reason = reasonError
		}
	})
}

// lostRecord is lost.json: an end whose circumstances the monitor has not recorded.
type lostRecord struct {
	Reason, Message string
	ExitCode        int32
	StartedAt       int64
	FinishedAt      int64
}

// publishLost reports an end that nobody has seen.
func (c *Container) publishLost(l lostRecord) {
	l.ExitCode = 137
	if l.Reason == reasonUnknown {
		l.ExitCode = 255
	}
	l.StartedAt = cmp.Or(c.Status().StartedAt, l.StartedAt)
	l.FinishedAt = cmp.Or(l.FinishedAt, time.Now().UnixNano())
	if err := writeRecord(c.root(lostFile), &l, false); err != nil {
		klog.ErrorS(err, "Record a container's end", "container", c.id, "pod", c.box.id)
	}
	fault.Point("lost.recorded")
	c.publish(l.apply)
}

func (l *lostRecord) apply(s *ContainerStatus) {
	s.ExitCode, s.Reason, s.Message, s.StartedAt, s.FinishedAt = l.ExitCode, l.Reason, l.Message, l.StartedAt, l.FinishedAt
}

func (c *Container) publish(change func(s *ContainerStatus)) {
	done := c.update(func(s *ContainerStatus) {
		s.State, s.PID, s.Rootfs = stateExited, 0, ""
		change(s)
	})
	if done {
		c.meter.close()
		c.joins.close()
		st := c.Status()
		klog.V(2).InfoS("Container has exited", "container", c.id, "pod", c.box.id, "code", st.ExitCode, "reason", st.Reason)
		close(c.exited)
	}
}

// noteStartError adds to the exit, which the watcher publishes, why it came to it.
func (c *Container) noteStartError(err error) {
	<-c.exited
	c.mu.Lock()
	defer c.mu.Unlock()
	st := *c.status.Load()
	st.Message = err.Error()
	c.status.Store(&st)
}

// named gives the failed step its name, which a daemon that did not compile the
// program itself does not know.
func (c *Container) named(step *conmon.StepError) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	step.Name = "run the command"
	if c.program != nil {
		step.Name = c.program.StepName(step.Step)
	}
	return step
}

// Stop sends the stop signal and, after timeout seconds, SIGKILL to the whole
// cgroup; idempotent.
func (c *Container) Stop(ctx context.Context, timeout int64) error {
	if c.Status().State != stateRunning || timeout <= 0 {
		return c.kill(ctx)
	}
	if m := c.connected(); m != nil {
		fault.Point("stop.signalled")
		grace := time.NewTimer(time.Duration(timeout) * time.Second)
		defer grace.Stop()
		c.sendStopSignal(ctx, m)
		select {
		case <-c.exited:
			return nil
		case <-grace.C:
		case <-ctx.Done():
			return fmt.Errorf("stop container %s: waits for its process to end: %w", c.id, ctx.Err())
		}
	}
	return c.kill(ctx)
}

// sendStopSignal waits for a frozen monitor no longer than that takes to be seen.
func (c *Container) sendStopSignal(ctx context.Context, m *conmon.Monitor) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	err := m.Kill(ctx, unix.Signal(c.record.StopSignal))
	if err == nil || errors.Is(err, unix.ESRCH) {
		return
	}
	if ctx.Err() != nil {
		err = errors.Join(err, c.signalMonitor(unix.SIGCONT)) // the request waits in its queue
	}
	klog.ErrorS(err, "Send the stop signal", "container", c.id, "pod", c.box.id, "signal", c.record.StopSignal)
}

// kill ends every process of the container; idempotent.
func (c *Container) kill(ctx context.Context) error {
	if c.Status().State == stateExited {
		return nil
	}
	cg, err := c.cgroup()
	if err == nil {
		err = cg.Kill()
	}
	if err != nil && !errors.Is(err, oci.ErrNotFound) {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	fault.Point("kill.cgroup.killed")
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	tick := time.NewTicker(reportTimeout)
	defer tick.Stop()
	for silent := 0; ; {
		select {
		case <-c.exited:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("kill container %s: %s: %w", c.id, c.whyAlive(cg), ctx.Err())
		case <-tick.C:
		}
		if cg != nil && populated(cg) {
			continue // they are still dying
		}
		silent++
		c.rouse(silent)
	}
}

// rouse helps a monitor on that has not reported the end of its container for
// so many periods: it may be stopped, or stuck, in which case its own end
// is what is reported.
func (c *Container) rouse(periods int) {
	const patient = 4
	sig := unix.SIGCONT
	switch {
	case periods == patient:
		sig = unix.SIGKILL
	case periods > 1:
		return
	}
	err := c.signalMonitor(sig)
	klog.InfoS("Monitor does not report the end of its container", "container", c.id, "pod", c.box.id, "sent", unix.SignalName(sig), "err", err)
}

// whyAlive describes what does not die.
func (c *Container) whyAlive(cg *oci.Cgroup) string {
	if cg != nil && populated(cg) {
		return cg.Survivors()
	}
	return "all of its processes have ended but its monitor does not report it"
}

func populated(cg *oci.Cgroup) bool {
	is, err := cg.Populated()
	return err != nil || is
}

// Remove kills the container if it runs and removes it; idempotent.
func (c *Container) Remove(ctx context.Context) error {
	if err := c.kill(ctx); err != nil {
		return err
	}
	if err := c.box.verb.lock(ctx, "remove container"); err != nil {
		return err
	}
	defer c.box.verb.unlock()
	return c.remove(ctx)
}

// remove takes away what is left of a container that has exited, with the verb lock held.
func (c *Container) remove(ctx context.Context) error {
	if _, err := c.store.Container(c.id); errors.Is(err, ErrNotFound) {
		return nil
	}
	if err := c.erase(ctx); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	fault.Point("remove.erased")
	c.box.forgetName(c)
	c.store.emit(c.id, c.box, func() { c.store.dropContainer(c) }, eventDeleted)
	return nil
}

// erase undoes create; idempotent.
func (c *Container) erase(ctx context.Context) error {
	if err := c.removeCgroup(ctx); err != nil {
		return err
	}
	fault.Point("erase.cgroup.removed")
	if err := os.RemoveAll(c.state()); err != nil {
		return err
	}
	fault.Point("erase.state.removed")
	return c.store.discard(c.root())
}

func (c *Container) removeCgroup(ctx context.Context) error {
	if c.record.Cgroup == "" {
		return nil // it was not recorded, so it was not made
	}
	cg, err := c.cgroup()
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, killTimeout)
		defer cancel()
		err = cg.Remove(ctx)
	}
	if errors.Is(err, oci.ErrNotFound) {
		return nil
	}
	return err
}

// ReopenLog opens the container's log file anew.
func (c *Container) ReopenLog(ctx context.Context) error {
	if err := c.require("reopen the log of", stateRunning); err != nil {
		return err
	}
	log, err := c.openLog()
	if err != nil || log == nil {
		return err
	}
	defer log.Close()
	fault.Point("reopen.opened")
	m := c.connected()
	if m == nil {
		return fmt.Errorf("reopen the log of container %s: its monitor is gone: %w", c.id, ErrState)
	}
	return m.ReopenLog(ctx, log)
}
