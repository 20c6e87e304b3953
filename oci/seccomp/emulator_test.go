package seccomp

import (
	"encoding/binary"
	"fmt"
)

// data is struct seccomp_data.
type data struct {
	number, arch uint32
	args         [maxArgs]uint64
}

func (d *data) word(offset uint32) uint32 {
	switch {
	case offset == dataNumber:
		return d.number
	case offset == dataArch:
		return d.arch
	case offset >= dataArgs && offset < dataArgs+8*maxArgs && offset%4 == 0:
		v := d.args[(offset-dataArgs)/8]
		if offset%8 == 4 {
			v >>= 32
		}
		return uint32(v)
	}
	panic(fmt.Sprintf("load from offset %d", offset))
}

func decode(b []byte) []instruction {
	out := make([]instruction, len(b)/8)
	for i := range out {
		w := b[8*i:]
		out[i] = instruction{
			code: binary.LittleEndian.Uint16(w), jt: w[2], jf: w[3],
			k: binary.LittleEndian.Uint32(w[4:]),
		}
	}
	return out
}

// run interprets a checked program.
func run(p []instruction, d *data) (value uint32, steps int) {
	var a uint32
	for pc := 0; ; pc++ {
		steps++
		i := p[pc]
		var result bool
		switch i.code {
		case opLoad:
			a = d.word(i.k)
			continue
		case opAnd:
			a &= i.k
			continue
		case opJump:
			pc += int(i.k)
			continue
		case opRet:
			return i.k, steps
		case opJEQ:
			result = a == i.k
		case opJGT:
			result = a > i.k
		case opJGE:
			result = a >= i.k
		default:
			panic(fmt.Sprintf("instruction %#x", i.code))
		}
		if result {
			pc += int(i.jt)
		} else {
			pc += int(i.jf)
		}
	}
}

// verify is the kernel's checker: known instructions, forward jumps in range,
// a return at the end, aligned loads inside seccomp_data.
func verify(p []instruction) error {
	if len(p) == 0 || len(p) > MaxInstructions {
		return fmt.Errorf("%d instructions", len(p))
	}
	reached := make([]bool, len(p))
	reached[0] = true
	for pc, i := range p {
		if !reached[pc] {
			return fmt.Errorf("instruction %d is never reached", pc)
		}
		var to []int
		switch i.code {
		case opLoad:
			if i.k%4 != 0 || i.k >= dataArgs+8*maxArgs {
				return fmt.Errorf("instruction %d loads from %d", pc, i.k)
			}
			to = []int{pc + 1}
		case opAnd:
			to = []int{pc + 1}
		case opJump:
			to = []int{pc + 1 + int(i.k)}
		case opJEQ, opJGT, opJGE:
			to = []int{pc + 1 + int(i.jt), pc + 1 + int(i.jf)}
		case opRet:
		default:
			return fmt.Errorf("instruction %d: code %#x", pc, i.code)
		}
		for _, t := range to {
			if t >= len(p) {
				return fmt.Errorf("instruction %d leads to %d of %d", pc, t, len(p))
			}
			reached[t] = true
		}
	}
	if p[len(p)-1].code != opRet {
		return fmt.Errorf("the last instruction is %#x", p[len(p)-1].code)
	}
	return nil
}

// disassemble prints a program, one instruction a line.
func disassemble(p []instruction) string {
	var out []byte
	for pc, i := range p {
		out = fmt.Appendf(out, "%4d ", pc)
		to := func(n uint8) int { return pc + 1 + int(n) }
		switch i.code {
		case opLoad:
			name := map[uint32]string{dataNumber: "nr", dataArch: "arch"}[i.k]
			if name == "" {
				name = fmt.Sprintf("arg%d.%s", (i.k-dataArgs)/8, [...]string{"low", "high"}[i.k/4%2])
			}
			out = fmt.Appendf(out, "load %s", name)
		case opAnd:
			out = fmt.Appendf(out, "and  %#x", i.k)
		case opJump:
			out = fmt.Appendf(out, "goto %d", pc+1+int(i.k))
		case opRet:
			out = fmt.Appendf(out, "ret  %#x", i.k)
		default:
			sign := map[uint16]string{opJEQ: "==", opJGT: ">", opJGE: ">="}[i.code]
			out = fmt.Appendf(out, "if %s %#x goto %d else %d", sign, i.k, to(i.jt), to(i.jf))
		}
		out = append(out, '\n')
	}
	return string(out)
}
