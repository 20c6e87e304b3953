package faults

import (
	wire "encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// fuse is a file system with one file, "file", that stops answering on demand:
// who waits for it then cannot even be killed.
type fuse struct {
	Dir string

	device *os.File
	served chan struct{}

	mu    sync.Mutex
	hangs bool
	held  [][]byte // requests that nobody has answered
}

// The parts of linux/fuse.h that are needed.
const (
	fuseLookup      = 1
	fuseForget      = 2
	fuseGetattr     = 3
	fuseOpen        = 14
	fuseRead        = 15
	fuseStatfs      = 17
	fuseRelease     = 18
	fuseFlush       = 25
	fuseInit        = 26
	fuseOpendir     = 27
	fuseReleasedir  = 29
	fuseAccess      = 34
	fuseInterrupt   = 36
	fuseBatchForget = 42

	fuseInHeader  = 40
	fuseOutHeader = 16
	fuseMaxBytes  = 1<<20 + 4096
	fuseFileNode  = 2
)

func mountFuse(t *testing.T) *fuse {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		t.Skip("no FUSE in this kernel")
	}
	if err != nil {
		t.Fatal(err)
	}
	f := &fuse{Dir: t.TempDir(), served: make(chan struct{})}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("faults", f.Dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatal(errors.Join(err, unix.Close(fd)))
	}
	f.device = os.NewFile(uintptr(fd), "/dev/fuse") // not before: what is not mounted cannot be polled
	go f.serve()
	t.Cleanup(func() {
		err := errors.Join(unix.Unmount(f.Dir, unix.MNT_DETACH), f.device.Close())
		<-f.served
		if err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fuse) serve() {
	defer close(f.served)
	buffer := make([]byte, fuseMaxBytes)
	for {
		n, err := f.device.Read(buffer)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) { // the request was taken back
			continue
		}
		if err != nil || n < fuseInHeader {
			return
		}
		request := append([]byte(nil), buffer[:n]...)
		f.mu.Lock()
		if f.hangs {
			f.held = append(f.held, request)
		} else {
			f.answer(request)
		}
		f.mu.Unlock()
	}
}

// hang leaves all requests unanswered from now on.
func (f *fuse) hang() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hangs = true
}

// waiting is the number of requests that wait for an answer.
func (f *fuse) waiting() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.held)
}

// release answers what waits, and everything after it.
func (f *fuse) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, request := range f.held {
		f.answer(request)
	}
	f.hangs, f.held = false, nil
}

func (f *fuse) answer(request []byte) {
	var body []byte
	var errno unix.Errno
	node := wire.LittleEndian.Uint64(request[16:])
	le := wire.LittleEndian
	switch le.Uint32(request[4:]) {
	case fuseForget, fuseBatchForget, fuseInterrupt:
		return
	case fuseInit:
		body = make([]byte, 64)
		le.PutUint32(body, 7)
		le.PutUint32(body[4:], 31)
		le.PutUint32(body[20:], 1<<16) // the longest write
	case fuseLookup:
		if string(request[fuseInHeader:len(request)-1]) != "file" {
			errno = unix.ENOENT
			break
		}
		body = append(make([]byte, 40), fuseAttributes(fuseFileNode)...)
		le.PutUint64(body, fuseFileNode)
	case fuseGetattr:
		body = append(make([]byte, 16), fuseAttributes(node)...)
	case fuseOpen, fuseOpendir:
		body = make([]byte, 16)
		le.PutUint32(body[8:], 1) // direct: each read comes here
	case fuseRead:
		body = []byte("content\n")
		if le.Uint64(request[fuseInHeader+8:]) > 0 {
			body = nil
		}
	case fuseStatfs:
		body = make([]byte, 80)
	case fuseFlush, fuseRelease, fuseReleasedir, fuseAccess:
	default:
		errno = unix.ENOSYS
	}
	reply := make([]byte, fuseOutHeader, fuseOutHeader+len(body))
	le.PutUint32(reply, uint32(fuseOutHeader+len(body)))
	le.PutUint32(reply[4:], uint32(-int32(errno)))
	copy(reply[8:], request[8:16])
	_, _ = f.device.Write(append(reply, body...)) // the one who asked may be gone
}

func fuseAttributes(node uint64) []byte {
	le := wire.LittleEndian
	a := make([]byte, 88)
	mode := uint32(unix.S_IFDIR | 0o755)
	if node == fuseFileNode {
		mode = unix.S_IFREG | 0o644
	}
	le.PutUint64(a, node)
	le.PutUint64(a[8:], 8)
	le.PutUint32(a[60:], mode)
	le.PutUint32(a[64:], 1) // links
	le.PutUint32(a[80:], 4096)
	return a
}
