package conmon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// State is where a container is in its life.
type State uint32

// The states in the order in which a container passes them.
const (
	StateEmpty   State = 0
	StateCreated State = 1
	StateRunning State = 2
	StateExited  State = 3
)

// String returns the state's name in lower case.
func (s State) String() string {
	names := [...]string{"empty", "created", "running", "exited"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint32(s))
}

// Status is what a monitor says of its container.
type Status struct {
	State        State
	PID          int    // init's on the host, 0 once it has exited
	CreatedAt    int64  // ns since the epoch
	StartedAt    int64  // ns since the epoch, 0: not yet
	LogBytes     uint64 // written to the log, time stamps included
	DroppedBytes uint64 // what the log did not take
	Exit         Exit   // meaningful in StateExited
}

// Monitor is a connection to a monitor. All methods may be called at one time
// from several goroutines.
type Monitor struct {
	dir   string
	child int           // pid when it is this process's child, else 0
	null  *os.File      // the Binary's
	done  chan struct{} // closed when exit or gone is decided

	mu       sync.Mutex
	conn     *os.File // nil once closed
	calls    map[uint32]*call
	lastID   uint32
	status   Status
	decided  bool   // done is closed
	exited   bool   // status.Exit is true
	closed   bool   // by Close
	features uint16 // flags of HELLO_OK

	reaped sync.Once
}

// call is a request that waits for its reply. Calls of EXEC and ATTACH get a second one.
type call struct {
	id     uint32
	first  chan packet   // closed without a value when the connection is lost
	exited chan struct{} // of an EXEC or ATTACH: closed once exit or slow, and err are final
	exit   Exit
	slow   bool  // the attachment was given up
	err    error // why there is no answer, once a channel is closed without
}

// Connect finds the monitor that serves the container with state directory
// dir. The error is ErrGone when there is none.
func (b *Binary) Connect(ctx context.Context, dir string) (*Monitor, error) {
	m := &Monitor{dir: dir, null: b.null, done: make(chan struct{})}
	err := m.dial()
	if err == nil {
		m.read()
		err = m.learn(ctx)
	}
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("connect to the monitor in %s: %w", dir, err)
	}
	return m, nil
}

// learn asks for the status. A monitor may end as soon as it has told of the
// exit, which is all there is to learn then.
func (m *Monitor) learn(ctx context.Context) error {
	_, err := m.Status(ctx)
	if errors.Is(err, ErrGone) && m.State() == StateExited {
		return nil
	}
	return err
}

// note takes over what a monitor has said of its container, unless later news
// have come in meanwhile.
func (m *Monitor) note(s Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.State >= m.status.State {
		exit := m.status.Exit
		m.status = s
		if m.exited {
			m.status.Exit = exit
		}
	}
}

// PID is the host's number of the container's init, 0 once it has exited.
func (m *Monitor) PID() int { return m.known().PID }

// CreatedAt is when the container was created, in ns since the epoch.
func (m *Monitor) CreatedAt() int64 { return m.known().CreatedAt }

// StartedAt is when the container was started, in ns since the epoch; 0 when
// it was not.
func (m *Monitor) StartedAt() int64 { return m.known().StartedAt }

// State is the container's state as far as it was told; it never waits.
func (m *Monitor) State() State { return m.known().State }

func (m *Monitor) known() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status
}

// Start lets the created container run its command and returns when that was,
// in ns since the epoch. When the command cannot be run the error is a
// *StepError, and an exit follows.
func (m *Monitor) Start(ctx context.Context) (int64, error) {
	reply, err := m.request(ctx, &packet{kind: typeStart}, nil, typeStarted)
	if err != nil {
		return 0, fmt.Errorf("start: %w", err)
	}
	_, ns := reply.started()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.StartedAt = ns
	if m.status.State < StateRunning {
		m.status.State = StateRunning
	}
	return ns, nil
}

// Kill sends a signal to the container's init.
func (m *Monitor) Kill(ctx context.Context, sig unix.Signal) error {
	if _, err := m.request(ctx, killPacket(0, sig), nil, typeOK); err != nil {
		return fmt.Errorf("signal %d: %w", int(sig), err)
	}
	return nil
}

// ReopenLog makes the monitor write to log from now on; the file stays the
// caller's.
func (m *Monitor) ReopenLog(ctx context.Context, log *os.File) error {
	if _, err := m.request(ctx, &packet{kind: typeReopenLog}, []int{int(log.Fd())}, typeOK); err != nil {
		return fmt.Errorf("reopen the log: %w", err)
	}
	return nil
}

// Status asks the monitor.
func (m *Monitor) Status(ctx context.Context) (Status, error) {
	reply, err := m.request(ctx, &packet{kind: typeStatus}, nil, typeStatusReply)
	if err != nil {
		return Status{}, fmt.Errorf("status: %w", err)
	}
	s := reply.status()
	m.note(s)
	return s, nil
}

// Shutdown ends a monitor whose container has exited, along with exec
// processes that are left. One that is gone already is no error.
func (m *Monitor) Shutdown(ctx context.Context) error {
	_, err := m.request(ctx, &packet{kind: typeShutdown}, nil, typeOK)
	if err != nil && !errors.Is(err, ErrGone) {
		return fmt.Errorf("shut the monitor down: %w", err)
	}
	return nil
}

// Done is closed when the container has exited or the monitor is gone.
func (m *Monitor) Done() <-chan struct{} { return m.done }

// Exit says, after Done, how the container ended; ErrGone when the monitor
// ended without telling. The exit record may know more then.
func (m *Monitor) Exit() (Exit, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.exited {
		return Exit{}, ErrGone
	}
	return m.status.Exit, nil
}

// Close lets go of the connection; the container goes on. What waits on it
// ends with ErrGone.
func (m *Monitor) Close() error {
	m.mu.Lock()
	conn := m.conn
	m.conn, m.closed = nil, true
	m.mu.Unlock()
	if conn == nil {
		return nil
	}
	return conn.Close()
}
