package conmon

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// testProgram writes the wire form of launch programs step by step, on its
// own, so that the monitor is held to PROTOCOL.md and not to another encoder.
type testProgram struct {
	steps         []testStep
	data          []byte
	relocs        []uint64
	cloneFlags    uint64
	pidns, cgroup int32
	alter         func([]byte) // spoils the encoded program
}

type testStep struct {
	name             string
	nr               uint32
	args             []arg
	errnos1, errnos2 uint64
	skip1, skip2     uint16
	save             int16
	flags            uint16
}

type arg struct {
	kind  int // 0 value, 1 data, 2 slot
	value uint64
}

const (
	opJump  = 0x10000
	opFail  = 0x10001
	opReady = 0x10002
	opReap  = 0x10003
	opClose = 0x10004
	opClone = 0x10005

	flagKeep  = 1
	flagExact = 2

	programHeader = 72
	programStep   = 80
)

func newProgram() *testProgram { return &testProgram{pidns: -1, cgroup: -1} }

func value(v uint64) arg { return arg{value: v} }
func slot(n int) arg     { return arg{kind: 2, value: uint64(n)} }

func (p *testProgram) call(name string, nr uint32, args ...arg) *testStep {
	p.steps = append(p.steps, testStep{name: name, nr: nr, args: args, save: -1})
	return &p.steps[len(p.steps)-1]
}

func (p *testProgram) text(s string) arg {
	at := len(p.data)
	p.data = append(append(p.data, s...), 0)
	return arg{kind: 1, value: uint64(at)}
}

// list puts a NULL-terminated list of strings into the data.
func (p *testProgram) list(texts ...string) arg {
	offsets := make([]uint64, 0, len(texts))
	for _, s := range texts {
		offsets = append(offsets, p.text(s).value)
	}
	for len(p.data)%8 != 0 {
		p.data = append(p.data, 0)
	}
	at := uint64(len(p.data))
	for _, o := range offsets {
		p.relocs = append(p.relocs, uint64(len(p.data)))
		p.data = binary.LittleEndian.AppendUint64(p.data, o)
	}
	p.data = binary.LittleEndian.AppendUint64(p.data, 0)
	return arg{kind: 1, value: at}
}

// stdio makes slots 0 to 2 the process's.
func (p *testProgram) stdio() *testProgram {
	for i := range 3 {
		p.call("dup3", unix.SYS_DUP3, slot(i), value(uint64(i)), value(0))
	}
	return p
}

func (p *testProgram) ready() *testProgram {
	p.call("ready", opReady, value(^uint64(0)))
	return p
}

func (p *testProgram) execve(argv ...string) *testProgram {
	p.call("execve "+argv[0], unix.SYS_EXECVE, p.text(argv[0]), p.list(argv...), p.list("PATH=/bin"))
	return p
}

// initProgram runs a command as a container's init, without any isolation.
func initProgram(argv ...string) *testProgram {
	return newProgram().stdio().ready().execve(argv...)
}

func execProgram(argv ...string) *testProgram {
	return newProgram().stdio().execve(argv...)
}

func shell(script string) []string { return []string{"/bin/busybox", "sh", "-c", script} }

func (p *testProgram) StepName(i int) string {
	if i >= len(p.steps) {
		return "the end"
	}
	return fmt.Sprintf("%s (step %d of %d)", p.steps[i].name, i+1, len(p.steps))
}

func (p *testProgram) Encode() []byte {
	le := binary.LittleEndian
	relocsOff := programHeader + programStep*len(p.steps)
	dataOff := uint64(relocsOff+8*len(p.relocs)+15) &^ 15
	data := slices.Clone(p.data)
	b := le.AppendUint64(nil, 0x31474f5250495243)
	b = le.AppendUint64(b, dataOff+uint64(len(data)))
	b = le.AppendUint32(b, uint32(len(p.steps)))
	b = le.AppendUint32(b, uint32(len(p.relocs)))
	b = le.AppendUint64(b, programHeader)
	b = le.AppendUint64(b, uint64(relocsOff))
	b = le.AppendUint64(b, p.cloneFlags)
	b = le.AppendUint32(b, uint32(p.pidns))
	b = le.AppendUint32(b, uint32(p.cgroup))
	b = append(b, make([]byte, programHeader-len(b))...)
	for i := range p.steps {
		b = p.steps[i].append(b, dataOff)
	}
	for _, at := range p.relocs {
		b = le.AppendUint64(b, dataOff+at)
		le.PutUint64(data[at:], le.Uint64(data[at:])+dataOff)
	}
	b = append(b, make([]byte, int(dataOff)-len(b))...)
	b = append(b, data...)
	if p.alter != nil {
		p.alter(b)
	}
	return b
}

func (s *testStep) append(b []byte, dataOff uint64) []byte {
	le := binary.LittleEndian
	var args [6]uint64
	var dataMask, slotMask uint16
	for i, a := range s.args {
		args[i] = a.value
		switch a.kind {
		case 1:
			args[i] += dataOff
			dataMask |= 1 << i
		case 2:
			slotMask |= 1 << i
		}
	}
	b = le.AppendUint32(b, s.nr)
	b = le.AppendUint16(b, dataMask)
	b = le.AppendUint16(b, slotMask)
	b = le.AppendUint64(b, s.errnos1)
	b = le.AppendUint64(b, s.errnos2)
	b = le.AppendUint16(b, s.skip1)
	b = le.AppendUint16(b, s.skip2)
	b = le.AppendUint16(b, uint16(s.save))
	b = le.AppendUint16(b, s.flags)
	for _, a := range args {
		b = le.AppendUint64(b, a)
	}
	return b
}
