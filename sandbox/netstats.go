package sandbox

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	maxNetFiles     = 4096    // that are kept open, one a pod
	maxNetDevBytes  = 1 << 20 // some 8,000 interfaces
	netDevFields    = 16
	podInterface    = "eth0" // what CNI is asked to call it
	loopback        = "lo"
	netDevChunkSize = 4096
)

// Interface is what went through a network interface of a pod.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Loopback tells whether it is the one that leads nowhere.
func (i *Interface) Loopback() bool { return i.Name == loopback }

// netFile is /proc/net/dev of a pod's network namespace, kept open. Unlike a
// request over netlink, reading it waits for no lock of the network's
// configuration, which another namespace may hold for long. It keeps the namespace alive.
type netFile struct {
	mu     sync.Mutex
	fd     int // 0: not open
	closed bool
	store  *Store
}

// close ends its use for good.
func (f *netFile) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.fd > 0 {
		_ = unix.Close(f.fd)
		f.store.netFiles.Add(-1)
	}
	f.fd = 0
}

// Interfaces returns the interfaces of the pod's own network, its main one
// first and loopback last; none with the host's network and once it is stopped.
func (b *Sandbox) Interfaces() ([]Interface, error) {
	st := b.Status()
	if st.NetNS == "" || st.State != sandboxReady {
		return nil, nil
	}
	data, err := b.net.read(b.store, st.NetNS)
	if err != nil {
		return nil, fmt.Errorf("network statistics of sandbox %s: %w", b.id, err)
	}
	list := parseNetDev(data)
	slices.SortStableFunc(list, func(x, y Interface) int { return cmp.Compare(rank(x.Name), rank(y.Name)) })
	return list, nil
}

func rank(name string) int {
	switch name {
	case podInterface:
		return 0
	case loopback:
		return 2
	}
	return 1
}

func (f *netFile) read(s *Store, netns string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, nil
	}
	fd := f.fd
	if fd == 0 {
		var err error
		if fd, err = openNetDev(netns); err != nil {
			return nil, err
		}
		if s.netFiles.Add(1) <= maxNetFiles {
			f.fd, f.store = fd, s
		} else {
			s.netFiles.Add(-1)
			defer unix.Close(fd)
		}
	}
	return readNetDev(fd)
}

func readNetDev(fd int) ([]byte, error) {
	data := make([]byte, 0, netDevChunkSize)
	for len(data) < maxNetDevBytes {
		data = slices.Grow(data, netDevChunkSize)
		n, err := unix.Pread(fd, data[len(data):cap(data)], int64(len(data)))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("read /proc/net/dev: %w", err)
		case n == 0:
			return data, nil
		}
		data = data[:len(data)+n]
	}
	return data, nil
}

// openNetDev opens the file on a thread that joins the namespace and ends.
func openNetDev(netns string) (int, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result, 1)
	go onOwnThread(func() {
		fd, err := joinAndOpen(netns)
		done <- result{fd, err}
	})
	r := <-done
	return r.fd, r.err
}

func joinAndOpen(netns string) (int, error) {
	ns, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", netns, err)
	}
	defer unix.Close(ns)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return 0, fmt.Errorf("join network namespace %s: %w", netns, err)
	}
	fd, err := unix.Open("/proc/thread-self/net/dev", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open /proc/net/dev: %w", err)
	}
	return fd, nil
}

// parseNetDev reads proc_pid_net(5); malformed lines, such as the two of the
// heading, are left out.
func parseNetDev(data []byte) []Interface {
	var list []Interface
	for line := range bytes.Lines(data) {
		name, text, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		var v [netDevFields]uint64
		n := 0
		for field := range bytes.FieldsSeq(text) {
			value, err := strconv.ParseUint(string(field), 10, 64)
			if err != nil || n == netDevFields {
				break
			}
			v[n] = value
			n++
		}
		if n < netDevFields {
			continue
		}
		list = append(list, Interface{
			// The pod names its interfaces, with any bytes: no client would decode the list.
			Name:    strings.ToValidUTF8(string(bytes.TrimSpace(name)), "\uFFFD"),
			RxBytes: v[0], RxPackets: v[1], RxErrors: v[2], RxDropped: v[3],
			TxBytes: v[8], TxPackets: v[9], TxErrors: v[10], TxDropped: v[11],
		})
	}
	return list
}
