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
	pid, err = bin.spawnMonitor(listener, &Launch{})
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
		"type 18":               {good(18, 0), 0, 5, unix.ENOSYS},
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

func TestBadPrograms(t *testing.T) {
	le := binary.LittleEndian
	put32 := func(at int, v uint32) func([]byte) { return func(b []byte) { le.PutUint32(b[at:], v) } }
	put64 := func(at int, v uint64) func([]byte) { return func(b []byte) { le.PutUint64(b[at:], v) } }
	step := func(at int, v uint64) func([]byte) { return put64(programHeader+at, v) }
	step16 := func(at int, v uint16) func([]byte) {
		return func(b []byte) { le.PutUint16(b[programHeader+at:], v) }
	}
	reloc := func(v uint64) func([]byte) {
		return func(b []byte) { le.PutUint64(b[le.Uint64(b[32:]):], v) }
	}
	tests := map[string]func([]byte){
		"magic":                    put64(0, 0),
		"total too small":          put64(8, 80),
		"total too large":          put64(8, 1<<40),
		"no steps":                 put32(16, 0),
		"too many steps":           put32(16, 0xffffffff),
		"too many relocations":     put32(20, 0xffffffff),
		"steps in the header":      put64(24, 8),
		"steps beyond the end":     put64(24, 1<<63),
		"steps not aligned":        put64(24, 73),
		"relocations in the steps": put64(32, 80),
		"relocations beyond":       put64(32, ^uint64(7)),
		"clone flag VM":            put64(40, 0x100),
		"clone flag THREAD":        put64(40, 0x10000),
		"clone flag unknown":       put64(40, 1<<60),
		"pidns slot 9":             put32(48, 9),
		"pidns slot 3":             put32(48, 3),
		"pidns slot -2":            put32(48, ^uint32(1)),
		"cgroup slot 300":          put32(52, 300),
		"slots used":               put32(56, 257),
		"header padding":           put32(60, 1),
		"reserved":                 put64(64, 1),
		"unknown pseudo call":      step(0, 0x10099),
		"pseudo call with masks":   step(0, 0x10001|1<<32),
		"JUMP too far":             func(b []byte) { step(0, opJump)(b); step(32, 100)(b) },
		"JUMP backwards":           func(b []byte) { step(0, opJump)(b); step(32, ^uint64(0))(b) },
		"FAIL 0":                   func(b []byte) { step(0, opFail)(b); step(32, 0)(b) },
		"FAIL huge":                func(b []byte) { step(0, opFail)(b); step(32, 4096)(b) },
		"READY slot 256":           func(b []byte) { step(0, opReady)(b); step(32, 256)(b) },
		"data mask bit 6":          step16(4, 1<<6),
		"slot mask bit 6":          step16(6, 1<<6),
		"data and slot":            func(b []byte) { step16(4, 2)(b); step16(6, 2)(b) },
		"data before the data":     func(b []byte) { step16(4, 1)(b); step(32, 72)(b) },
		"data beyond the end":      func(b []byte) { step16(4, 1)(b); step(32, 1<<20)(b) },
		"data offset wraps":        func(b []byte) { step16(4, 1)(b); step(32, ^uint64(0))(b) },
		"slot 256":                 func(b []byte) { step16(6, 1)(b); step(32, 256)(b) },
		"save 256":                 step16(28, 256),
		"save -2":                  step16(28, 0xfffe),
		"skip1 too far":            step16(24, 100),
		"skip2 too far":            step16(26, 0xffff),
		"step flag":                step16(30, 4),
		"reloc beyond the end":     reloc(1 << 40),
		"reloc at the very end":    func(b []byte) { reloc(uint64(len(b)) &^ 7)(b) },
		"reloc not aligned":        func(b []byte) { reloc(le.Uint64(b[le.Uint64(b[32:]):]) + 1)(b) },
		"reloc changes a step":     reloc(programHeader),
		"reloc to before the data": func(b []byte) { le.PutUint64(b[le.Uint64(b[le.Uint64(b[32:]):]):], 72) },
		"reloc to beyond the end":  func(b []byte) { le.PutUint64(b[le.Uint64(b[le.Uint64(b[32:]):]):], 1<<20) },
	}
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		m := started(t, bin, b.launch(initProgram("/bin/busybox", "sleep", "1000")))
		before := openFDs(t, m.child)
		for name, spoil := range tests {
			t.Run(name, func(t *testing.T) {
				p := execProgram("/bin/busybox", "true")
				p.alter = spoil
				if name == "pidns slot 3" { // fine in an exec
					if _, err := bin.Launch(testContext(t), newBox(t).launch(p)); !errors.Is(err, unix.EBADMSG) {
						t.Error(err)
					}
					return
				}
				_, err := m.Exec(testContext(t), ExecRequest{Program: p})
				if !errors.Is(err, ErrProtocol) || !errors.Is(err, unix.EBADMSG) {
					t.Error(err)
				}
			})
		}
		settle(t, m.child, before)
	})
}

// A program that could still be changed is refused, as is what is none.
func TestUnsealedProgram(t *testing.T) {
	each(t, func(t *testing.T, bin *Binary) {
		b := newBox(t)
		started(t, bin, b.launch(initProgram("/bin/busybox", "sleep", "1000")))
		conn := rawDial(t, b.dir)
		defer unix.Close(conn.fd)
		conn.hello()
		open, err := unix.MemfdCreate("open", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(open)
		if _, err := unix.Write(open, execProgram("/bin/busybox", "true").Encode()); err != nil {
			t.Fatal(err)
		}
		null := nullFDs(t, 4)
		for _, fd := range []int{open, null[0], int(b.exitDir.Fd())} {
			conn.say(packet{kind: typeExec, id: 2, body: words(0, 0)}, append([]int{fd}, null[:3]...)...)
			conn.wantFailed(2, whereProtocol, unix.EPERM)
		}
	})
}

// Steps: tolerated errors, jumps, kept errors, exact results, slots.
func TestInterpreter(t *testing.T) {
	write := func(p *testProgram, s string) *testStep {
		return p.call("write "+s, unix.SYS_WRITE, slot(8), p.text(s), value(uint64(len(s))))
	}
	enoent := func(p *testProgram) *testStep {
		return p.call("missing", unix.SYS_OPENAT, value(^uint64(99)), p.text("/nonexistent"), value(0))
	}
	tests := map[string]struct {
		build func(p *testProgram)
		out   string
		step  int
		errno unix.Errno
	}{
		"jump": {func(p *testProgram) {
			p.call("jump", opJump, value(1))
			write(p, "a")
			write(p, "b")
			p.call("fail", opFail, value(5))
		}, "b", 3, 5},
		"first set": {func(p *testProgram) {
			s := enoent(p)
			s.errnos1, s.skip1 = 1<<unix.ENOENT, 1
			write(p, "a")
			write(p, "b")
			p.call("fail", opFail, value(5))
		}, "b", 3, 5},
		"second set": {func(p *testProgram) {
			s := enoent(p)
			s.errnos1, s.errnos2, s.skip2 = 1<<unix.EPERM, 1<<unix.ENOENT, 2
			write(p, "a")
			write(p, "b")
			write(p, "c")
			p.call("fail", opFail, value(5))
		}, "c", 4, 5},
		"kept error": {func(p *testProgram) {
			s := enoent(p)
			s.errnos2, s.flags = 1<<unix.ENOENT, flagKeep
			p.call("fail", opFail, value(5))
		}, "", 1, unix.ENOENT},
		"not kept": {func(p *testProgram) {
			s := enoent(p)
			s.errnos1, s.flags = 1<<unix.ENOENT, flagKeep
			p.call("fail", opFail, value(5))
		}, "", 1, 5},
		"not tolerated": {func(p *testProgram) {
			enoent(p).errnos1 = 1 << unix.EPERM
			write(p, "a")
		}, "", 0, unix.ENOENT},
		"errno above 63": {func(p *testProgram) {
			s := p.call("enotsock", unix.SYS_LISTEN, slot(8), value(1))
			s.errnos1, s.errnos2 = ^uint64(0), ^uint64(0)
		}, "", 0, unix.ENOTSOCK},
		"exact": {func(p *testProgram) {
			s := write(p, "abc")
			s.args = append(s.args, value(0), value(0), value(3))
			s.flags = flagExact
			s = write(p, "de")
			s.args = append(s.args, value(0), value(0), value(3))
			s.flags = flagExact
		}, "abcde", 1, unix.EIO},
		"result kept": {func(p *testProgram) {
			p.call("dup", unix.SYS_DUP, slot(8)).save = 255
			p.call("write", unix.SYS_WRITE, slot(255), p.text("x"), value(1))
			p.call("slot never set", unix.SYS_WRITE, slot(254), p.text("y"), value(1))
		}, "x", 2, unix.EBADF},
		"not kept on error": {func(p *testProgram) {
			p.call("dup", unix.SYS_DUP, slot(8)).save = 20
			s := enoent(p)
			s.save, s.errnos1 = 20, 1<<unix.ENOENT
			p.call("write", unix.SYS_WRITE, slot(20), p.text("x"), value(1))
			p.call("fail", opFail, value(5))
		}, "x", 3, 5},
		"close": {func(p *testProgram) {
			write(p, "a")
			p.call("close all", opClose)
			write(p, "b")
		}, "a", 2, unix.EBADF},
		"off the end by a jump": {func(p *testProgram) { p.call("jump", opJump, value(0)) }, "", 1, unix.ENOEXEC},
	}
	each(t, func(t *testing.T, bin *Binary) {
		m := started(t, bin, newBox(t).launch(initProgram("/bin/busybox", "sleep", "1000")))
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				p := newProgram()
				test.build(p)
				_, err = m.Exec(testContext(t), ExecRequest{Program: p, Files: []*os.File{w}})
				w.Close()
				var step *StepError
				if !errors.As(err, &step) || step.Step != test.step || step.Errno != test.errno {
					t.Errorf("%v (%+v), want step %d, %v", err, step, test.step, test.errno)
				}
				out := make([]byte, 100)
				n, _ := r.Read(out)
				if string(out[:n]) != test.out {
					t.Errorf("wrote %q, want %q", out[:n], test.out)
				}
			})
		}
	})
}
