package seccomp

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// reference decides a call by reading the profile afresh, rule by rule, with
// none of the compiler's shortcuts.
func reference(p *specs.LinuxSeccomp, a abi, d *data) uint32 {
	otherwise, _ := parseAction(p.DefaultAction, p.DefaultErrnoRet)
	var best *rule
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		action, _ := parseAction(s.Action, s.ErrnoRet)
		if action == otherwise {
			continue
		}
		for _, name := range s.Names {
			for _, r := range ruleForms(s, a, name, d.number) {
				r.action = action
				if !matches(r.conditions, a, d) {
					continue
				}
				if len(r.conditions) == 0 {
					if best == nil || len(best.conditions) > 0 {
						best = &r
					}
					continue
				}
				if best == nil || len(best.conditions) > 0 && before(r, *best) {
					best = &r
				}
			}
		}
	}
	if best == nil {
		return otherwise
	}
	return best.action
}

// ruleForms gives the rules that an entry makes for a number.
func ruleForms(s *specs.LinuxSyscall, a abi, name string, number uint32) []rule {
	var forms []rule
	sets := [][]condition{nil}
	if len(s.Args) > 0 {
		sets, _ = alternatives(s.Args)
	}
	row, ok := lookup(name)
	if !ok {
		return nil
	}
	if slot, ok := a.slot(row); ok && a.number(slot) == number {
		for _, c := range sets {
			forms = append(forms, rule{conditions: narrow(c, a, 0)})
		}
	}
	if slot, op, ok := multiplexed(row); ok && a == abiI386 && slot == number {
		for _, c := range sets {
			forms = append(forms, rule{conditions: operation(narrow(c, a, 0), op)})
		}
	}
	return forms
}

func matches(conditions []condition, a abi, d *data) bool {
	return !slices.ContainsFunc(conditions, func(c condition) bool {
		v, w := d.args[c.arg], c.value
		if !a.words64() {
			v &= 0xffffffff
		}
		switch c.op {
		case opNotEqual:
			return v == w
		case opLess:
			return v >= w
		case opLessEqual:
			return v > w
		case opEqual:
			return v != w
		case opGreaterEqual:
			return v < w
		case opGreater:
			return v <= w
		case opMasked:
			return v&c.mask != w
		}
		panic("operator")
	})
}
