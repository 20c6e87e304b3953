package oci

import (
	"encoding/binary"
	"fmt"
)

// Pseudo system calls of a launch program; conmon/PROTOCOL.md defines them.
const (
	opJump  = 0x10000
	opFail  = 0x10001
	opReady = 0x10002
	opReap  = 0x10003
	opClose = 0x10004
	opClone = 0x10005
)

// Fixed slots of a launch program.
const (
	slotStdin  = 0
	slotStdout = 1
	slotStderr = 2
	slotInit   = 3 // a pidfd of the container's init, in exec programs
	slotFiles  = 8 // the first of the descriptors passed with the program
	maxSlots   = 256
)

const (
	programMagic = 0x31474f5250495243 // "CRIPROG1"
	headerSize   = 72
	stepSize     = 80

	flagKeep  = 1
	flagExact = 2
)

// File is a descriptor that a program wants from its caller.
type File int

// The descriptors that programs are given, in the order of Program.Files.
const (
	FileRoot     File = iota // the root file system as a detached mount
	FileMountNS              // an empty mount namespace with the directories /root and /mask
	FilePIDNS                // the PID namespace that the child is born in
	FileCgroup               // the directory of the cgroup (v2) that the child is born in
	FileTasks                // an open tasks file (v1) of CompileOptions.TaskFiles, as many as there are
	FileTerminal             // exec: a socket that the terminal's master is sent through
	FileResume               // of namespaces' programs: the pipe that ends a halt
	// FileSource and what follows are the sources of the mounts 0, 1, 2... as detached mounts.
	FileSource File = 1 << 16
)

type argKind uint8

const (
	argValue argKind = iota
	argData
	argSlot
)

// Arg is an argument of a step: a value, a piece of the program's data or
// the value of a slot.
type Arg struct {
	kind  argKind
	value uint64
	text  string // how the argument is printed; "": as a number or a slot
	quote bool   // text is the string itself
}

// tolerance is a set of errors that do not end the program.
type tolerance struct {
	errnos uint64 // bit n: errno n
	skip   uint16 // steps left out when one of them occurs
}

// Step is one system call of a launch program.
type Step struct {
	Name string // what the step does, as the user reads it in an error

	nr       uint32
	args     []Arg
	save     int16
	flags    uint16
	tolerate [2]tolerance
}

// Program is the list of steps that a container's first process runs before
// it becomes the workload. It is pure data: the monitor interprets it.
type Program struct {
	Steps      []Step
	Files      []File // descriptors to pass, in this order
	CloneFlags uint64

	pidNS  int // slot of the PID namespace to be born in, -1: none
	cgroup int // slot of the cgroup (v2) to be born in, -1: none
	data   []byte
	relocs []int // offsets in data of words that hold offsets into data
	slots  int   // slots in use
}

// Encode returns the wire form of p, as conmon/PROTOCOL.md defines it.
func (p *Program) Encode() []byte {
	le := binary.LittleEndian
	relocsOff := headerSize + len(p.Steps)*stepSize
	dataOff := (relocsOff + 8*len(p.relocs) + 15) &^ 15
	out := make([]byte, dataOff+len(p.data))
	le.PutUint64(out[0:], programMagic)
	le.PutUint64(out[8:], uint64(len(out)))
	le.PutUint32(out[16:], uint32(len(p.Steps)))
	le.PutUint32(out[20:], uint32(len(p.relocs)))
	le.PutUint64(out[24:], headerSize)
	le.PutUint64(out[32:], uint64(relocsOff))
	le.PutUint64(out[40:], p.CloneFlags)
	le.PutUint32(out[48:], uint32(int32(p.pidNS)))
	le.PutUint32(out[52:], uint32(int32(p.cgroup)))
	le.PutUint32(out[56:], uint32(p.slots))
	for i := range p.Steps {
		p.Steps[i].encode(out[headerSize+i*stepSize:], uint64(dataOff))
	}
	copy(out[dataOff:], p.data)
	for i, at := range p.relocs {
		le.PutUint64(out[relocsOff+8*i:], uint64(dataOff+at))
		word := out[dataOff+at:]
		le.PutUint64(word, le.Uint64(word)+uint64(dataOff))
	}
	return out
}

func (s *Step) encode(out []byte, dataOff uint64) {
	le := binary.LittleEndian
	var dataMask, slotMask uint16
	for i, a := range s.args {
		v := a.value
		switch a.kind {
		case argValue:
		case argData:
			dataMask |= 1 << i
			v += dataOff
		case argSlot:
			slotMask |= 1 << i
		}
		le.PutUint64(out[32+8*i:], v)
	}
	le.PutUint32(out[0:], s.nr)
	le.PutUint16(out[4:], dataMask)
	le.PutUint16(out[6:], slotMask)
	le.PutUint64(out[8:], s.tolerate[0].errnos)
	le.PutUint64(out[16:], s.tolerate[1].errnos)
	le.PutUint16(out[24:], s.tolerate[0].skip)
	le.PutUint16(out[26:], s.tolerate[1].skip)
	le.PutUint16(out[28:], uint16(s.save))
	le.PutUint16(out[30:], s.flags)
}

// StepName names step i for an error message.
func (p *Program) StepName(i int) string {
	if i < 0 || i >= len(p.Steps) {
		return fmt.Sprintf("step %d of %d", i+1, len(p.Steps))
	}
	return fmt.Sprintf("%s (step %d of %d)", p.Steps[i].Name, i+1, len(p.Steps))
}
