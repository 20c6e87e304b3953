package conmon

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

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
		"CLONE with flag THREAD":   func(b []byte) { step(0, opClone)(b); step(32, 0x10000)(b) },
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
