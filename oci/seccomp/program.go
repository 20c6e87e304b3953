package seccomp

import "encoding/binary"

// Classic BPF, as far as the kernel's cache of constant decisions understands
// it: other instructions would cost every allowed call a run of the filter.
const (
	opLoad = 0x20 // BPF_LD|BPF_W|BPF_ABS
	opAnd  = 0x54 // BPF_ALU|BPF_AND|BPF_K
	opJump = 0x05 // BPF_JMP|BPF_JA
	opJEQ  = 0x15
	opJGT  = 0x25
	opJGE  = 0x35
	opRet  = 0x06
)

// Offsets in struct seccomp_data.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16
)

// reach is the longest conditional jump (255) less what may slip in between
// when the other branch needs a stepping stone.
const reach = 250

type instruction struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

// label names an instruction by its distance from the end of the program.
type label int

// program is assembled backwards, so that every target exists before the
// instruction that jumps to it.
type program struct {
	code    []instruction // last instruction first
	stones  map[label]label
	returns []returnLabel
	full    bool // more than maxAssembled instructions: give up
}

type returnLabel struct {
	value uint32
	at    label
}

// maxAssembled bounds the work on a hostile profile; the result is refused
// because of MaxInstructions in any case.
const maxAssembled = 3 * MaxInstructions

func (p *program) emit(i instruction) label {
	if len(p.code) >= maxAssembled {
		p.full = true
		return label(len(p.code))
	}
	p.code = append(p.code, i)
	return label(len(p.code))
}

func (p *program) distance(to label) int { return len(p.code) - int(to) }

// ret gives a return of value within reach.
func (p *program) ret(value uint32) label {
	for i := range p.returns {
		r := &p.returns[i]
		if r.value != value {
			continue
		}
		if p.distance(r.at) > reach {
			r.at = p.emit(instruction{code: opRet, k: value})
		}
		return r.at
	}
	at := p.emit(instruction{code: opRet, k: value})
	p.returns = append(p.returns, returnLabel{value, at})
	return at
}

// near gives a label within reach that does the same as to.
func (p *program) near(to label) label {
	if p.distance(to) <= reach {
		return to
	}
	if i := p.code[to-1]; i.code == opRet {
		return p.ret(i.k)
	}
	if s, ok := p.stones[to]; ok && p.distance(s) <= reach {
		return s
	}
	if p.stones == nil {
		p.stones = map[label]label{}
	}
	s := p.emit(instruction{code: opJump, k: uint32(p.distance(to))})
	p.stones[to] = s
	return s
}

// branch emits a conditional jump.
func (p *program) branch(code uint16, k uint32, yes, no label) label {
	if yes == no {
		return yes
	}
	yes = p.near(yes)
	no = p.near(no)
	return p.emit(instruction{code: code, jt: uint8(p.distance(yes)), jf: uint8(p.distance(no)), k: k})
}

// then emits an instruction that falls through to next.
func (p *program) then(code uint16, k uint32, next label) label {
	if d := p.distance(next); d != 0 {
		p.emit(instruction{code: opJump, k: uint32(d)})
	}
	return p.emit(instruction{code: code, k: k})
}

// bytes gives the program as the kernel reads it: an array of sock_filter.
func (p *program) bytes() []byte {
	out := make([]byte, 0, 8*len(p.code))
	for n := len(p.code) - 1; n >= 0; n-- {
		i := p.code[n]
		out = binary.LittleEndian.AppendUint16(out, i.code)
		out = append(out, i.jt, i.jf)
		out = binary.LittleEndian.AppendUint32(out, i.k)
	}
	return out
}

// prune takes out what no path reaches: returns and stepping stones for which
// a nearer copy was made.
func (p *program) prune() {
	n := len(p.code)
	reached := make([]bool, n)
	reached[n-1] = true
	for at := n - 1; at >= 0; at-- {
		if !reached[at] {
			continue
		}
		switch i := p.code[at]; i.code {
		case opRet:
		case opJump:
			reached[at-1-int(i.k)] = true
		case opLoad, opAnd:
			reached[at-1] = true
		default:
			reached[at-1-int(i.jt)] = true
			reached[at-1-int(i.jf)] = true
		}
	}
	kept := make([]int, n) // how many are kept before each
	for at := 1; at < n; at++ {
		kept[at] = kept[at-1]
		if reached[at-1] {
			kept[at]++
		}
	}
	out := p.code[:0]
	for at, i := range p.code {
		if !reached[at] {
			continue
		}
		shorter := func(distance int) int { return kept[at] - 1 - kept[at-1-distance] }
		switch i.code {
		case opRet, opLoad, opAnd:
		case opJump:
			i.k = uint32(shorter(int(i.k)))
		default:
			i.jt, i.jf = uint8(shorter(int(i.jt))), uint8(shorter(int(i.jf)))
		}
		out = append(out, i)
	}
	p.code = out
}
