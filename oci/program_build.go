package oci

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// builder appends steps to a program. The first error sticks.
type builder struct {
	p    Program
	free []int // slots that are free again
	text map[string]uint64
	args []Arg // of all steps
	err  error
}

// Steps of the programs of usual containers and execs.
const (
	launchSteps = 400
	execSteps   = 120
)

// newBuilder makes room for a program of about so many steps.
func newBuilder(steps int) *builder {
	return &builder{
		p:    Program{pidNS: -1, cgroup: -1, slots: slotFiles, Steps: make([]Step, 0, steps)},
		text: make(map[string]uint64, steps/3),
		args: make([]Arg, 0, 3*steps),
	}
}

// program returns the finished program.
func (b *builder) program() (*Program, error) {
	if b.err != nil {
		return nil, b.err
	}
	return &b.p, nil
}

// file asks for one more descriptor and returns its slot. All files must be
// asked for before the first slot is taken.
func (b *builder) file(f File) int {
	b.p.Files = append(b.p.Files, f)
	b.p.slots++
	return slotFiles + len(b.p.Files) - 1
}

// taskFiles asks for the tasks files and returns the slot of the first one.
func (b *builder) taskFiles(opts *CompileOptions) int {
	first := slotFiles + len(b.p.Files)
	for range opts.TaskFiles {
		b.file(FileTasks)
	}
	return first
}

// slot takes a free slot.
func (b *builder) slot() int {
	if n := len(b.free); n > 0 {
		s := b.free[n-1]
		b.free = b.free[:n-1]
		return s
	}
	if b.p.slots == maxSlots {
		b.err = fmt.Errorf("launch program: more than %d descriptors at once (too many mounts): %w", maxSlots, ErrInvalid)
		return maxSlots - 1
	}
	b.p.slots++
	return b.p.slots - 1
}

// call appends a system call. The step may be changed through the returned
// pointer until the next one is appended.
func (b *builder) call(name string, nr uint32, args ...Arg) *Step {
	from := len(b.args)
	b.args = append(b.args, args...)
	b.p.Steps = append(b.p.Steps, Step{Name: name, nr: nr, args: b.args[from:len(b.args):len(b.args)], save: -1})
	return &b.p.Steps[len(b.p.Steps)-1]
}

// close appends the closing of slots and frees them.
func (b *builder) close(name string, slots ...int) {
	for _, s := range slots {
		b.call(name+": close", unix.SYS_CLOSE, slotArg(s))
		b.free = append(b.free, s)
	}
}

// to keeps the result of the step in a slot.
func (s *Step) to(slot int) *Step {
	s.save = int16(slot)
	return s
}

// allow makes errnos harmless; the next skip steps are then left out. It can
// be used twice on a step.
func (s *Step) allow(skip int, errnos ...unix.Errno) *Step {
	t := &s.tolerate[0]
	if t.errnos != 0 {
		t = &s.tolerate[1]
	}
	t.skip = uint16(skip)
	for _, e := range errnos {
		t.errnos |= 1 << uint(e)
	}
	return s
}

// keepErrno allows errnos but remembers them for a FAIL step.
func (s *Step) keepErrno(errnos ...unix.Errno) *Step {
	if s.tolerate[0].errnos == 0 {
		s.allow(0, unix.ENOENT)
	}
	s.allow(0, errnos...)
	s.flags |= flagKeep
	return s
}

func num[T ~int | ~uint | ~uint32 | ~uint64 | ~int64](v T) Arg {
	return Arg{value: uint64(v)}
}

func flags(v uint64, text string) Arg {
	return Arg{value: v, text: text}
}

func slotArg(s int) Arg {
	return Arg{kind: argSlot, value: uint64(s)}
}

func cwd() Arg {
	at := int64(unix.AT_FDCWD)
	return Arg{value: uint64(at), text: "AT_FDCWD"}
}

// null is an argument 0.
func null() Arg { return Arg{} }

// str puts a NUL-terminated string into the data, each text once.
func (b *builder) str(s string) Arg {
	if strings.IndexByte(s, 0) >= 0 && b.err == nil {
		b.err = fmt.Errorf("launch program: %.40q holds a NUL byte: %w", s, ErrInvalid)
	}
	at, ok := b.text[s]
	if !ok {
		at = uint64(len(b.p.data))
		b.p.data = append(append(b.p.data, s...), 0)
		b.text[s] = at
	}
	return Arg{kind: argData, value: at, text: s, quote: true}
}

// bytes puts raw bytes into the data, aligned to 8.
func (b *builder) bytes(v []byte, text string) Arg {
	b.align()
	at := len(b.p.data)
	b.p.data = append(b.p.data, v...)
	return Arg{kind: argData, value: uint64(at), text: text}
}

// words puts 64-bit values into the data.
func (b *builder) words(text string, v ...uint64) Arg {
	b.align()
	at := len(b.p.data)
	for _, w := range v {
		b.p.data = binary.LittleEndian.AppendUint64(b.p.data, w)
	}
	return Arg{kind: argData, value: uint64(at), text: text}
}

// strings puts a NULL-terminated vector of strings into the data.
func (b *builder) strings(v []string) Arg {
	offsets := make([]uint64, len(v))
	for i, s := range v {
		offsets[i] = b.str(s).value
	}
	b.align()
	at := len(b.p.data)
	for _, o := range offsets {
		b.pointer(o)
	}
	b.p.data = binary.LittleEndian.AppendUint64(b.p.data, 0)
	return Arg{kind: argData, value: uint64(at), text: fmt.Sprintf("%q", v)}
}

// pointer appends a word that holds the address of offset.
func (b *builder) pointer(offset uint64) {
	b.p.relocs = append(b.p.relocs, len(b.p.data))
	b.p.data = binary.LittleEndian.AppendUint64(b.p.data, offset)
}

func (b *builder) align() {
	for len(b.p.data)%8 != 0 {
		b.p.data = append(b.p.data, 0)
	}
}

// write appends the writing of text to a file of the host.
func (b *builder) write(name, path, text string) {
	f := b.slot()
	b.call(name+": open "+path, unix.SYS_OPENAT, cwd(), b.str(path), flags(unix.O_WRONLY|unix.O_CLOEXEC, "O_WRONLY|O_CLOEXEC")).to(f)
	b.call(name+": write", unix.SYS_WRITE, slotArg(f), b.str(text), num(len(text)))
	b.close(name, f)
}
