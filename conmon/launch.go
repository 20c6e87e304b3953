package conmon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

const (
	socketFile = "monitor.sock"
	// sunPathMax is what a socket's address holds of a path.
	sunPathMax = 107
	backlog    = 64
	// abandonAfter is how long a monitor may take to undo a launch that
	// nobody waits for any more, before it is killed.
	abandonAfter = 2 * time.Second
)

// Program is a launch program.
type Program interface {
	// Encode returns the wire form that PROTOCOL.md defines.
	Encode() []byte
	// StepName names step i for an error message.
	StepName(i int) string
}

// Launch describes a container to be created. Its files stay the caller's.
type Launch struct {
	Dir           string   // the container's state directory; monitor.sock is made in it
	ExitDir       *os.File // directory in which the monitor writes the exit record
	Log           *os.File // opened for appending; nil: output is dropped
	LogLineBytes  int      // longest piece of a line; 0: 16 KiB; at most 64 KiB
	OOM           *os.File // memory.events (v2) or memory.oom_control (v1); nil: unknown
	Program       Program
	Files         []*os.File // the program's descriptors: slots 8 and up
	Terminal      bool       // the program hands over a terminal's master with READY
	Stdin         bool       // stdin is a pipe that is kept open, else a null device
	MonitorCgroup *os.File   // v2 directory to start the monitor in; nil: the daemon's
	Place         []*os.File // v1 tasks files of the monitors' cgroups, opened for writing
	OOMScoreAdj   int        // of the monitor itself; the daemon's when that is not allowed
}

// Launch starts a monitor that creates the container, and returns once the
// program has run up to READY. On error nothing is left: no process, no
// socket. A step that the kernel refused is a *StepError.
func (b *Binary) Launch(ctx context.Context, l *Launch) (*Monitor, error) {
	p, err := b.Spawn(l.Dir, l.MonitorCgroup, l.OOMScoreAdj)
	if err != nil {
		return nil, err
	}
	return p.Launch(ctx, l)
}

// Pending is a monitor without a container.
type Pending struct {
	b    *Binary
	m    *Monitor
	path string // of its socket
}

// Spawn starts a monitor that waits for its work. Its arguments are Dir,
// MonitorCgroup and OOMScoreAdj of the Launch to come. If the daemon dies
// meanwhile the monitor ends.
func (b *Binary) Spawn(dir string, cgroup *os.File, oomScoreAdj int) (*Pending, error) {
	p, err := b.spawnIn(dir, cgroup)
	if err != nil {
		return nil, fmt.Errorf("launch: %w", err)
	}
	if err := protect(p.m.child, oomScoreAdj); err != nil {
		return nil, errors.Join(fmt.Errorf("launch: %w", err), p.Abandon())
	}
	return p, nil
}

func (b *Binary) spawnIn(dir string, cgroup *os.File) (*Pending, error) {
	listener, path, err := listen(dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(listener)
	// Connected before it is started, the monitor ends by itself if this
	// process dies between here and CREATED.
	fault.Point("monitor.listening")
	m := &Monitor{dir: dir, null: b.null, done: make(chan struct{})}
	err = m.dial()
	if err == nil {
		m.child, err = b.spawnMonitor(listener, cgroup)
	}
	if err != nil {
		m.Close()
		return nil, errors.Join(err, os.Remove(path))
	}
	fault.Point("monitor.spawned")
	m.read()
	return &Pending{b: b, m: m, path: path}, nil
}

// Launch lets the monitor create the container, as Binary.Launch does. What was
// given to Spawn is not looked at again.
func (p *Pending) Launch(ctx context.Context, l *Launch) (*Monitor, error) {
	err := p.launch(ctx, l)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("launch: %w", err), p.Abandon())
	}
	return p.m, nil
}

func (p *Pending) launch(ctx context.Context, l *Launch) error {
	program, err := sealedFile("program", l.Program.Encode(), false)
	if err != nil {
		return fmt.Errorf("program in memory: %w", err)
	}
	defer unix.Close(program)
	request, fds, err := l.request(p.b.null, program)
	if err != nil {
		return err
	}
	launched, err := p.m.send(request, fds)
	if err != nil {
		return err
	}
	fault.Point("launch.sent")
	return p.m.launched(ctx, launched, l.Program)
}

// PID is the monitor's.
func (p *Pending) PID() int { return p.m.child }

// Abandon ends a monitor that has not got its container; nothing of it is left.
func (p *Pending) Abandon() error {
	p.m.abandon()
	return os.Remove(p.path)
}

func (b *Binary) spawnMonitor(listener int, cgroup *os.File) (int, error) {
	attr := &syscall.SysProcAttr{}
	if cgroup != nil {
		attr.UseCgroupFD = true
		attr.CgroupFD = int(cgroup.Fd())
	}
	return b.spawn([]string{"cri-monitor"}, []uintptr{uintptr(listener)}, attr)
}

// request makes the LAUNCH packet and the list of its descriptors.
func (l *Launch) request(null *os.File, program int) (*packet, []int, error) {
	switch {
	case l.LogLineBytes < 0 || l.LogLineBytes > lineMax:
		return nil, nil, fmt.Errorf("log lines of %d bytes: 1 to %d are possible: %w", l.LogLineBytes, lineMax, unix.EINVAL)
	case len(l.Files) > slots-slotFiles || 4+len(l.Place)+len(l.Files) > descriptorsMax:
		return nil, nil, fmt.Errorf("%d descriptors for the program: %w", len(l.Files), unix.E2BIG)
	}
	p := &packet{kind: typeLaunch, body: words(uint32(len(l.Files)), uint32(l.LogLineBytes), uint32(len(l.Place)), 0)}
	if l.Terminal {
		p.flags |= launchTerminal
	}
	if l.Stdin {
		p.flags |= launchStdin
	}
	fds := append(make([]int, 0, 4+len(l.Place)+len(l.Files)), program)
	for _, f := range []*os.File{l.ExitDir, l.Log, l.OOM} {
		if f == nil {
			f = null
		}
		fds = append(fds, int(f.Fd()))
	}
	fds = appendFDs(fds, l.Place)
	return p, appendFDs(fds, l.Files), nil
}

func appendFDs(fds []int, files []*os.File) []int {
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	return fds
}

// launched waits for CREATED.
func (m *Monitor) launched(ctx context.Context, c *call, p Program) error {
	reply, err := m.wait(ctx, c)
	if err != nil {
		return err
	}
	if reply.kind == typeFailed {
		return reply.failed().failure(p)
	}
	if reply.kind != typeCreated {
		return fmt.Errorf("%w: type %d answers LAUNCH", ErrProtocol, reply.kind)
	}
	pid, ns := reply.started()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.CreatedAt = ns
	if m.status.State == StateEmpty {
		m.status.State, m.status.PID = StateCreated, int(pid)
	}
	return nil
}

// abandon lets the monitor undo the launch, which it does when it loses its
// connection, and makes sure that it ends. The signal is for a child that has
// become ready meanwhile.
func (m *Monitor) abandon() {
	_, _ = m.send(killPacket(0, unix.SIGKILL), nil)
	m.Close()
	ended := make(chan struct{})
	go func() {
		m.reap()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(abandonAfter):
		_ = unix.Kill(m.child, unix.SIGKILL) // not reaped yet, so the number is still its own
		<-ended
	}
}

// listen makes the socket in dir.
func listen(dir string) (fd int, path string, err error) {
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, "", os.NewSyscallError("socket", err)
	}
	path = filepath.Join(dir, socketFile)
	// The mode of the socket decides that of the file, without a moment in between.
	err = unix.Fchmod(fd, 0o600)
	if err == nil {
		err = withAddress(dir, func(a *unix.SockaddrUnix) error { return unix.Bind(fd, a) })
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, "", fmt.Errorf("listen on %s: %w", path, err)
	}
	return fd, path, nil
}

// withAddress calls use with the address of the socket in dir, which may be
// longer than an address can be.
func withAddress(dir string, use func(*unix.SockaddrUnix) error) error {
	path := filepath.Join(dir, socketFile)
	if len(path) <= sunPathMax {
		return use(&unix.SockaddrUnix{Name: path})
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return use(&unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(fd) + "/" + socketFile})
}
