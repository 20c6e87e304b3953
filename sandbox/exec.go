package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
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
	// maxExecOutput bounds what ExecSync keeps of a command's output, both
	// streams together: a kubelet accepts messages of 16 MiB.
	maxExecOutput = 16<<20 - 4096
	// drainTimeout bounds the wait for output after the command has ended,
	// while a child of it holds its streams open (CVE-2026-53495).
	drainTimeout = 2 * time.Second
	minRead      = 512
	// execPrefix begins the name of an exec's cgroup.
	execPrefix = "exec-"
)

// ExecResult is what an ExecSync command left.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int32
}

// ExecSync runs a command in the container. After timeout seconds (0: none
// but ctx's) its whole cgroup is killed and context.DeadlineExceeded returned.
func (c *Container) ExecSync(ctx context.Context, command []string, timeout int64) (r ExecResult, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(timeout)*time.Second)
		defer cancel()
	}
	err = c.inCgroup(ctx, func(sub *oci.Cgroup) error {
		r, err = c.execSync(ctx, command, sub)
		return err
	})
	return r, err
}

// Exec runs a command in the container with the client's streams and returns
// its exit code once it has ended and its output is complete, or children
// that it left have held its streams for a while. When ctx ends, the whole
// cgroup of the command is killed.
func (c *Container) Exec(ctx context.Context, command []string, s Streams) (code int32, err error) {
	err = c.inCgroup(ctx, func(sub *oci.Cgroup) error {
		code, err = c.exec(ctx, command, sub, &s)
		return err
	})
	return code, err
}

// inCgroup makes a cgroup for a command. What the command leaves running, as a
// lifecycle hook may, goes with the container; after an error it ends at once.
func (c *Container) inCgroup(ctx context.Context, run func(*oci.Cgroup) error) error {
	if err := c.require("exec in", stateRunning); err != nil {
		return err
	}
	leave, err := c.enterExec()
	if err != nil {
		return err
	}
	defer leave()
	cg, err := c.cgroup()
	if err != nil {
		return err
	}
	sub, err := cg.Sub(execPrefix + newID()[:16])
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	fault.Point("exec.cgroup.made")
	if err = run(sub); err == nil {
		c.store.background.Go(func() {
			if err := sub.RemoveIdle(); err != nil {
				klog.ErrorS(err, "Remove the cgroup of an exec", "container", c.id, "pod", c.box.id)
			}
			fault.Point("exec.cgroup.removed")
		})
		return nil
	}
	kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	return errors.Join(fmt.Errorf("exec in container %s: %w", c.id, err), sub.Remove(kill))
}

// leftExecs returns the cgroups of execs that the last daemon did not live to remove.
// It is asked before this daemon takes an exec: those look the same.
func (c *Container) leftExecs() []*oci.Cgroup {
	cg, err := c.cgroup()
	if err != nil {
		return nil
	}
	subs, err := cg.Subs(execPrefix)
	if err != nil {
		klog.ErrorS(err, "Find the cgroups of execs", "container", c.id, "pod", c.box.id)
	}
	return subs
}

// dropExecs removes them. Their commands are ended by the monitor, which may take a moment; what
// a command had left running before goes with the container, as always.
func (c *Container) dropExecs(left []*oci.Cgroup) {
	end := time.NewTimer(drainTimeout)
	defer end.Stop()
	again := time.NewTicker(drainTimeout / 20)
	defer again.Stop()
	for {
		left = slices.DeleteFunc(left, func(sub *oci.Cgroup) bool {
			if err := sub.RemoveIdle(); err != nil {
				klog.ErrorS(err, "Remove the cgroup of an exec", "container", c.id, "pod", c.box.id)
			}
			return !exists(sub.Path())
		})
		if len(left) == 0 {
			return
		}
		select {
		case <-again.C:
		case <-end.C:
			return
		case <-c.exited:
			return
		}
	}
}

func (c *Container) execSync(ctx context.Context, command []string, sub *oci.Cgroup) (ExecResult, error) {
	room := &execRoom{left: maxExecOutput, own: ownOutput, shared: c.store.output}
	defer room.release()
	out, errs := output{room: room}, output{room: room}
	if err := errors.Join(out.open(), errs.open()); err != nil {
		return ExecResult{}, err
	}
	defer out.close()
	defer errs.close()
	e, err := c.startExec(ctx, &execCommand{args: command, cgroup: sub, stdio: [3]*os.File{nil, out.w, errs.w}})
	if err != nil {
		return ExecResult{}, err
	}
	fault.Point("exec.started")
	out.read()
	errs.read()
	exit, err := waitExec(ctx, e)
	if err != nil {
		return ExecResult{}, err
	}
	fault.Point("exec.ended")
	drain, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	return ExecResult{Stdout: out.take(drain), Stderr: errs.take(drain), ExitCode: exit.Code}, nil
}

func (c *Container) exec(ctx context.Context, command []string, sub *oci.Cgroup, s *Streams) (int32, error) {
	x, err := newExecStreams(s)
	if err != nil {
		return 0, err
	}
	defer x.close()
	e, err := c.startExec(ctx, &execCommand{args: command, cgroup: sub, stdio: x.theirs, terminal: x.sockets[1], size: firstSize(s)})
	if err != nil {
		return 0, err
	}
	if err := x.start(s); err != nil {
		return 0, err
	}
	exit, err := waitExec(ctx, e)
	if err != nil {
		return 0, err
	}
	return exit.Code, x.finish(ctx)
}

// firstSize is the terminal's size, if the client has sent it already.
func firstSize(s *Streams) *specs.Box {
	select {
	case size, ok := <-s.Resize:
		if ok && s.Terminal {
			return &specs.Box{Width: uint(size.Width), Height: uint(size.Height)}
		}
	default:
	}
	return nil
}

// execCommand is a command to be run in a container.
type execCommand struct {
	args     []string
	cgroup   *oci.Cgroup
	stdio    [3]*os.File // nil: a null device
	terminal *os.File    // the socket for a terminal's master, nil: no terminal
	size     *specs.Box  // the terminal's, nil: unknown
}

// startExec returns once the command runs.
func (c *Container) startExec(ctx context.Context, command *execCommand) (*conmon.Exec, error) {
	var open fileList
	defer open.close()
	tasks, done := c.joinFiles(command.cgroup, &open)
	defer done()
	program, files, err := c.execProgram(command, tasks, &open)
	if err != nil {
		return nil, err
	}
	m := c.connected()
	if m == nil {
		return nil, fmt.Errorf("its monitor is gone: %w", ErrState)
	}
	e, err := m.Exec(ctx, conmon.ExecRequest{
		Program: program, Files: files, KillOnHangup: true,
		Stdin: command.stdio[0], Stdout: command.stdio[1], Stderr: command.stdio[2],
	})
	if errors.Is(err, unix.EAGAIN) { // some that were killed it has not buried yet
		err = fmt.Errorf("%w: %w", err, ErrTooMany)
	}
	return e, err
}

func waitExec(ctx context.Context, e *conmon.Exec) (conmon.Exit, error) {
	exit, err := e.Wait(ctx)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("the command was killed: %w", ctx.Err())
	}
	return exit, err
}

func (c *Container) execProgram(command *execCommand, tasks []*os.File, open *fileList) (*oci.Program, []*os.File, error) {
	spec, err := c.execSpec()
	if err != nil {
		return nil, nil, err
	}
	o := oci.CompileOptions{TaskFiles: command.cgroup.JoinPaths(), CgroupV2: c.store.cgroups.V2(), LastCap: c.store.lastCap()}
	o.Seccomp, o.SeccompFlags = c.filter.Instructions, c.filter.Flags
	for fd, f := range command.stdio {
		o.Own[fd] = f != nil
	}
	process := oci.ExecProcess(spec, command.args, command.terminal != nil)
	process.ConsoleSize = command.size
	program, err := oci.CompileExec(spec, process, &o)
	if err != nil {
		return nil, nil, err
	}
	var files []*os.File
	for _, kind := range program.Files {
		switch kind {
		case oci.FileCgroup:
			files = append(files, open.keep(command.cgroup.Dir()))
		case oci.FileTasks:
			files, tasks = append(files, tasks[0]), tasks[1:]
		case oci.FileTerminal:
			files = append(files, command.terminal)
		case oci.FileRoot, oci.FileMountNS, oci.FilePIDNS, oci.FileResume, oci.FileSource: // a running container has them
		}
	}
	return program, files, open.err
}

// execSpec returns the parts of the container's spec that an exec takes over.
func (c *Container) execSpec() (*specs.Spec, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spec != nil {
		return c.spec, nil
	}
	full, err := c.readBundle()
	if err != nil {
		return nil, fmt.Errorf("%w: create the container anew", err)
	}
	filter := &seccomp.Filter{}
	if full.Linux.Seccomp != nil {
		if filter, err = c.store.filters.Compile(full.Linux.Seccomp, runtime.GOARCH); err != nil {
			return nil, err
		}
	}
	score := c.store.host.ClampOOMScoreAdj(int(c.Status().Resources.GetLinux().GetOomScoreAdj()))
	full.Process.OOMScoreAdj = &score // an update may have changed it
	c.keepForExec(full, filter.Instructions, filter.Flags)
	return c.spec, nil
}

// keepForExec keeps what execs take over of the spec and no more; the caller has the lock or
// is the only one who knows the container.
func (c *Container) keepForExec(spec *specs.Spec, filter []byte, flags uint32) {
	process := *spec.Process
	process.Args = nil
	c.spec = &specs.Spec{Process: &process, Linux: &specs.Linux{
		Namespaces: spec.Linux.Namespaces, UIDMappings: spec.Linux.UIDMappings, GIDMappings: spec.Linux.GIDMappings,
	}}
	c.filter = seccomp.Filter{Instructions: filter, Flags: flags}
}

// execRoom is what the two streams of a command may still fill.
type execRoom struct {
	shared *pool

	mu       sync.Mutex
	left     int
	own      int // of left; the rest is the shared one's
	borrowed int
}

// take takes as much of n as there is room for.
func (r *execRoom) take(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = min(n, r.left)
	own := min(n, r.own)
	more := r.shared.take(n - own)
	r.left -= own + more
	r.own -= own
	r.borrowed += more
	return own + more
}

// release ends the use of the shared memory; the result is on its way.
func (r *execRoom) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = 0
	r.shared.give(r.borrowed)
	r.borrowed = 0
}

// output collects what a command writes to one of its streams.
type output struct {
	r, w *os.File
	done chan struct{}
	room *execRoom
	kept []byte
}

// open makes the pipe. os.Pipe would prepare the command's end for polling, too, which has to be undone.
func (o *output) open() error {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	err := unix.SetNonblock(ends[0], true)
	o.r, o.w = os.NewFile(uintptr(ends[0]), "output"), os.NewFile(uintptr(ends[1]), "output")
	if err != nil {
		o.close()
		return os.NewSyscallError("fcntl", err)
	}
	return nil
}

// read starts to collect; the command has its own copy of the writing end.
func (o *output) read() {
	_ = o.w.Close()
	o.done = make(chan struct{})
	go func() {
		defer close(o.done)
		for o.readSome() { // until the last writer is gone, or take gives up
		}
	}()
}

// readSome keeps what fits and drops the rest, so that the command is not
// blocked. Most commands write little: the buffer grows with what comes.
func (o *output) readSome() bool {
	o.kept = slices.Grow(o.kept, max(minRead, len(o.kept)/2))
	n, err := o.r.Read(o.kept[len(o.kept):cap(o.kept)])
	o.kept = o.kept[:len(o.kept)+o.room.take(max(n, 0))]
	return err == nil
}

// take waits for the end of the stream, or of ctx, and returns what was read.
func (o *output) take(ctx context.Context) []byte {
	select {
	case <-o.done:
	case <-ctx.Done():
		_ = o.r.Close() // ends the reader
		<-o.done
	}
	return o.kept
}

func (o *output) close() {
	_ = o.w.Close()
	_ = o.r.Close()
}
