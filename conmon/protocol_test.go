package conmon

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// raw is a connection on which anything can be said.
type raw struct {
	t  *testing.T
	fd int
}

// rawMonitor starts an empty monitor with one connection.
func rawMonitor(t *testing.T, bin *Binary, dir string) (conn *raw, pid int) {
	t.Helper()
	listener, _, err := listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	conn = rawDial(t, dir)
	pid, err = bin.spawnMonitor(listener, nil)
	if err != nil {
		t.Fatal(err)
	}
	ended := watchEnd(t, pid)
	t.Cleanup(func() {
		unix.Close(conn.fd)
		ended()
		_, _ = unix.Wait4(pid, nil, 0, nil)
	})
	return conn, pid
}

func rawDial(t *testing.T, dir string) *raw {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience.Seconds())})
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, socketFile)})
	}
	if err != nil {
		t.Fatal(err)
	}
	return &raw{t, fd}
}

func (r *raw) send(data []byte, fds ...int) {
	r.t.Helper()
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(r.fd, data, rights, nil, 0); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) say(p packet, fds ...int) {
	r.t.Helper()
	r.send(p.encode(nil), fds...)
}

// hear returns the next packet; false when the connection has ended.
func (r *raw) hear() (packet, bool) {
	r.t.Helper()
	b := make([]byte, packetMax)
	n, err := unix.Read(r.fd, b)
	for errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNRESET) {
		n, err = unix.Read(r.fd, b)
	}
	if err == nil && n == 0 {
		return packet{}, false
	}
	if err != nil {
		r.t.Fatal(err)
	}
	p, err := decodePacket(b[:n])
	if err != nil {
		r.t.Fatal(err)
	}
	return p, true
}

func (r *raw) want(kind uint16, id uint32) packet {
	r.t.Helper()
	p, ok := r.hear()
	if !ok || p.kind != kind || p.id != id {
		r.t.Fatalf("type %d, id %d, %v; want type %d, id %d", p.kind, p.id, ok, kind, id)
	}
	return p
}

func (r *raw) wantFailed(id, where uint32, errno unix.Errno) {
	r.t.Helper()
	p := r.want(typeFailed, id)
	f := p.failed()
	if f.where != where || f.err != uint32(errno) {
		r.t.Fatalf("where %d, %v; want %d, %v", f.where, unix.Errno(f.err), where, errno)
	}
}

func (r *raw) hello() {
	r.t.Helper()
	r.say(packet{kind: typeHello, id: 1, body: words(protocolVersion, protocolVersion)})
	r.want(typeHelloOK, 1)
}

func nullFDs(t *testing.T, n int) []int {
	t.Helper()
	f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fds := make([]int, n)
	for i := range fds {
		fds[i] = int(f.Fd())
	}
	return fds
}

func TestBadPackets(t *testing.T) {
	header := func(kind uint16, length, zero uint32, body ...byte) []byte {
		b := (&packet{kind: kind, id: 5, body: body}).encode(nil)
		binary.LittleEndian.PutUint32(b[8:], length)
		binary.LittleEndian.PutUint32(b[12:], zero)
		return b
	}
	good := func(kind, flags uint16, body ...uint32) []byte {
		return (&packet{kind: kind, flags: flags, id: 5, body: words(body...)}).encode(nil)
	}
	tests := map[string]struct {
		data  []byte
		fds   int
		id    uint32
		errno unix.Errno
	}{
		"one byte":              {[]byte{1}, 0, 0, unix.EPROTO},
		"short header":          {good(typeStatus, 0)[:15], 0, 0, unix.EPROTO},
		"length too small":      {header(typeStatus, 15, 0), 0, 5, unix.EPROTO},
		"length too large":      {header(typeStatus, 17, 0), 0, 5, unix.EPROTO},
		"length huge":           {header(typeStatus, 0xffffffff, 0), 0, 5, unix.EPROTO},
		"padding":               {header(typeStatus, 16, 1), 0, 5, unix.EPROTO},
		"body where none is":    {good(typeStatus, 0, 1), 0, 5, unix.EPROTO},
		"no body":               {good(typeKill, 0), 0, 5, unix.EPROTO},
		"half a body":           {good(typeKill, 0, 9), 0, 5, unix.EPROTO},
		"too long":              {make([]byte, 4096), 0, 0, unix.EPROTO},
		"too long, fair length": {append(header(typeStatus, 4096, 0), make([]byte, 4080)...), 0, 5, unix.EPROTO},
		"unknown flag":          {good(typeStatus, 1), 0, 5, unix.EPROTO},
		"unknown LAUNCH flag":   {good(typeLaunch, 4, 0, 0, 0, 0), 4, 5, unix.EPROTO},
		"unknown EXEC flag":     {good(typeExec, 2, 0, 0), 4, 5, unix.EPROTO},
		"type 0":                {good(0, 0), 0, 5, unix.ENOSYS},
		"type of a reply":       {good(typeOK, 0), 0, 5, unix.ENOSYS},
		"type 21":               {good(21, 0), 0, 5, unix.ENOSYS},
		"type of DETACHED":      {good(typeDetached, 0, 0, 0), 0, 5, unix.ENOSYS},
		"type 65535":            {good(65535, 0), 3, 5, unix.ENOSYS},
		"unwanted descriptor":   {good(typeStatus, 0), 1, 5, unix.EPROTO},
		"LAUNCH without":        {good(typeLaunch, 0, 0, 0, 0, 0), 0, 5, unix.EPROTO},
		"LAUNCH one short":      {good(typeLaunch, 0, 1, 0, 1, 0), 5, 5, unix.EPROTO},
		"LAUNCH one more":       {good(typeLaunch, 0, 1, 0, 1, 0), 7, 5, unix.EPROTO},
		"LAUNCH huge count":     {good(typeLaunch, 0, 0xffffffff, 0, 5, 0), 8, 5, unix.EPROTO},
		"LAUNCH wrapping count": {good(typeLaunch, 0, 4, 0, 0xfffffffc, 0), 4, 5, unix.EPROTO},
		"LAUNCH huge line":      {good(typeLaunch, 0, 0, 65537, 0, 0), 4, 5, unix.EPROTO},
		"LAUNCH padding":        {good(typeLaunch, 0, 0, 0, 0, 1), 4, 5, unix.EPROTO},
		"LAUNCH 249 files":      {good(typeLaunch, 0, 249, 0, 0, 0), 253, 5, unix.EPROTO},
		"EXEC huge count":       {good(typeExec, 0, 0xfffffffc, 0), 0, 5, unix.EPROTO},
		"EXEC padding":          {good(typeExec, 0, 0, 1), 4, 5, unix.EPROTO},
		"REOPEN_LOG without":    {good(typeReopenLog, 0), 0, 5, unix.EPROTO},
		"REOPEN_LOG two":        {good(typeReopenLog, 0), 2, 5, unix.EPROTO},
		"ATTACH nothing":        {good(typeAttach, 0), 0, 5, unix.EPROTO},
		"ATTACH only close":     {good(typeAttach, attachCloseStdin), 0, 5, unix.EPROTO},
		"ATTACH one short":      {good(typeAttach, everything), 2, 5, unix.EPROTO},
		"ATTACH one more":       {good(typeAttach, attachStdout), 2, 5, unix.EPROTO},
		"ATTACH body":           {good(typeAttach, attachStdout, 1), 1, 5, unix.EPROTO},
		"unknown ATTACH flag":   {good(typeAttach, 16|attachStdout), 1, 5, unix.EPROTO},
		"RESIZE without":        {good(typeResize, 0), 0, 5, unix.EPROTO},
		"RESIZE huge":           {good(typeResize, 0, 65536, 1), 0, 5, unix.EPROTO},
		"RESIZE descriptor":     {good(typeResize, 0, 80, 25), 1, 5, unix.EPROTO},
	}
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		conn, pid := rawMonitor(t, bin, b.dir)
		conn.hello()
		before := openFDs(t, pid)
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				conn := &raw{t, conn.fd}
				conn.send(test.data, nullFDs(t, test.fds)...)
				conn.wantFailed(test.id, whereProtocol, test.errno)
			})
		}
		settle(t, pid, before)
		conn.say(packet{kind: typeStatus, id: 9})
		if s := conn.want(typeStatusReply, 9); s.status() != (Status{}) {
			t.Errorf("%+v", s.status())
		}
	})
}

func openFDs(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// settle waits until a process has no more than want descriptors: an answer
// may be here before what it was about is closed.
func settle(t testing.TB, pid, want int) {
	t.Helper()
	ctx := testContext(t)
	for n := openFDs(t, pid); n != want; n = openFDs(t, pid) {
		if ctx.Err() != nil {
			t.Fatalf("%d descriptors, want %d", n, want)
		}
	}
}

func TestHandshake(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		conn, pid := rawMonitor(t, bin, b.dir)
		conn.say(packet{kind: typeStatus, id: 2})
		conn.wantFailed(2, whereProtocol, unix.EPROTO)
		conn.say(packet{kind: typeHello, id: 3, body: words(2, 7)})
		conn.wantFailed(3, whereProtocol, unix.EPROTONOSUPPORT)
		conn.say(packet{kind: typeHello, id: 4, body: words(0, 0)})
		conn.wantFailed(4, whereProtocol, unix.EPROTONOSUPPORT)
		conn.say(packet{kind: typeHello, id: 5, body: words(0, 7)})
		p := conn.want(typeHelloOK, 5)
		if v, got := binary.LittleEndian.Uint32(p.body), binary.LittleEndian.Uint32(p.body[4:]); v != 1 || int(got) != pid {
			t.Errorf("version %d, pid %d, want 1, %d", v, got, pid)
		}
		for kind, errno := range map[uint16]unix.Errno{typeStart: unix.EBUSY, typeKill: unix.ESRCH, typeExec: unix.ESRCH, typeReopenLog: unix.ESRCH} {
			p := packet{kind: kind, id: 6}
			var fds []int
			switch kind {
			case typeKill:
				p.body = words(9, 0)
			case typeExec:
				p.body, fds = words(0, 0), nullFDs(t, 4)
			case typeReopenLog:
				fds = nullFDs(t, 1)
			}
			conn.say(p, fds...)
			conn.wantFailed(6, whereState, errno)
		}
		conn.say(packet{kind: typeShutdown, id: 7})
		conn.want(typeOK, 7)
		if p, ok := conn.hear(); ok {
			t.Errorf("type %d after SHUTDOWN", p.kind)
		}
	})
}

// A packet of no bytes is the end of a connection, and of an empty monitor.
func TestEmptyPacketAndNobody(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		conn, pid := rawMonitor(t, bin, newBox(t).dir)
		conn.hello()
		ended := watchEnd(t, pid)
		if _, err := unix.SendmsgN(conn.fd, nil, nil, nil, 0); err != nil {
			t.Fatal(err)
		}
		ended()
	})
}

func TestForeignUser(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		conn, _ := rawMonitor(t, bin, b.dir)
		conn.hello()
		path := filepath.Join(b.dir, socketFile)
		for dir := b.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
		foreign := make(chan *raw)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			const nobody, keep = 65534, ^uintptr(0)
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, nobody, keep); errno != 0 {
				t.Error(errno)
			}
			foreign <- rawDial(t, b.dir)
		}()
		f := <-foreign
		defer unix.Close(f.fd)
		if p, ok := f.hear(); ok {
			t.Errorf("a foreign user hears type %d", p.kind)
		}
		conn.say(packet{kind: typeStatus, id: 2})
		conn.want(typeStatusReply, 2)
	})
}

func TestManyConnections(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		conn, pid := rawMonitor(t, bin, b.dir)
		conn.hello()
		before := openFDs(t, pid)
		for range 3 {
			var others []*raw
			for range 63 {
				o := rawDial(t, b.dir)
				o.hello()
				others = append(others, o)
			}
			surplus := rawDial(t, b.dir)
			if _, ok := surplus.hear(); ok {
				t.Error("a 65th connection is served")
			}
			unix.Close(surplus.fd)
			for _, o := range others {
				unix.Close(o.fd)
			}
			conn.say(packet{kind: typeStatus, id: 2})
			conn.want(typeStatusReply, 2)
		}
		settle(t, pid, before)
	})
}

// A client that takes no answers loses its connection, and nobody else does.
func TestDeafClient(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		conn, _ := rawMonitor(t, bin, b.dir)
		conn.hello()
		deaf := rawDial(t, b.dir)
		defer unix.Close(deaf.fd)
		deaf.hello()
		request := (&packet{kind: typeStatus, id: 2}).encode(nil)
		var err error
		for i := 0; err == nil && i < 1_000_000; i++ {
			err = unix.Sendmsg(deaf.fd, request, nil, nil, unix.MSG_NOSIGNAL)
		}
		if !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
			t.Fatal("not dropped:", err)
		}
		conn.say(packet{kind: typeStatus, id: 2})
		conn.want(typeStatusReply, 2)
	})
}

// A client that is slow gets all answers that its processes can have.
func TestSlowClient(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		conn, _ := rawMonitor(t, bin, newBox(t).dir)
		conn.hello()
		const answers = 512
		for i := range answers {
			conn.say(packet{kind: typeStatus, id: uint32(2 + i)})
		}
		for unread := 1; unread > 0; runtime.Gosched() { // by the monitor
			var err error
			if unread, err = unix.IoctlGetInt(conn.fd, unix.SIOCOUTQ); err != nil {
				t.Fatal(err)
			}
		}
		for i := range answers {
			conn.want(typeStatusReply, uint32(2+i))
		}
	})
}
