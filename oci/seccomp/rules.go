package seccomp

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// operator is a comparison of a rule; its order has no meaning.
type operator uint8

const (
	opNotEqual operator = iota
	opLess
	opLessEqual
	opEqual
	opGreaterEqual
	opGreater
	opMasked
)

// rank orders the operators: of two rules that both match, the higher wins.
func (o operator) rank() int {
	switch o {
	case opMasked, opEqual, opNotEqual:
		return 3
	case opLess, opLessEqual:
		return 2
	case opGreater, opGreaterEqual:
		return 1
	}
	return 0
}

// condition compares one argument of a system call.
type condition struct {
	arg         uint8
	op          operator
	low         bool // compare the low 32 bits only
	mask, value uint64
}

// rule is an action and the conditions, sorted by argument, that must all hold.
type rule struct {
	conditions []condition
	action     uint32
}

// group is one entry of a profile's list: its calls as rows of the table, and
// its action under each of several alternative sets of conditions.
type group struct {
	rows         []uint16
	action       uint32
	alternatives [][]condition // none: unconditional
}

// verdict is what happens to a system call that has conditional rules only:
// in order of precedence, of which the first that matches decides.
type verdict struct {
	rules []rule
}

// add puts a rule in its place. Rules that can no longer be reached, because
// an earlier one matches whenever they do, are left out.
func (v *verdict) add(r rule) error {
	at := len(v.rules)
	for i, x := range v.rules {
		if before(r, x) {
			at = i
			break
		}
		if x.action != r.action && slices.Equal(x.conditions, r.conditions) {
			return fmt.Errorf("%w: two actions for the same arguments", ErrInvalid)
		}
		if implies(r, x) {
			return nil
		}
	}
	v.rules = slices.Insert(v.rules, at, r)
	rest := slices.DeleteFunc(v.rules[at+1:], func(x rule) bool { return implies(x, r) })
	v.rules = v.rules[:at+1+len(rest)]
	if len(v.rules) > MaxInstructions {
		return fmt.Errorf("%w: more than %d rules for one system call", ErrTooLarge, MaxInstructions)
	}
	return nil
}

// simplify leaves out rules that a later one makes needless, which is only
// certain when all have one action.
func (v *verdict) simplify() {
	for _, r := range v.rules {
		if r.action != v.rules[0].action {
			return
		}
	}
	for i := 0; i < len(v.rules); i++ {
		r := v.rules[i]
		if slices.ContainsFunc(v.rules[i+1:], func(x rule) bool { return implies(r, x) }) {
			v.rules = slices.Delete(v.rules, i, i+1)
			i--
		}
	}
}

// implies tells whether every condition of b is one of a.
func implies(a, b rule) bool {
	if len(a.conditions) < len(b.conditions) {
		return false
	}
	for _, c := range b.conditions {
		if !slices.Contains(a.conditions, c) {
			return false
		}
	}
	return true
}

// before tells whether a takes precedence over b.
func before(a, b rule) bool {
	for i := range min(len(a.conditions), len(b.conditions)) {
		if n := precedence(a.conditions[i], b.conditions[i]); n != 0 {
			return n > 0
		}
	}
	return len(a.conditions) < len(b.conditions)
}

func precedence(a, b condition) int {
	if a.arg != b.arg {
		return int(a.arg) - int(b.arg)
	}
	if n := a.op.rank() - b.op.rank(); n != 0 {
		return n
	}
	if a.value == b.value {
		return 0
	}
	if (a.value > b.value) == (a.op != opLess && a.op != opLessEqual) {
		return 1
	}
	return -1
}

// narrow gives the conditions as an ABI compares them, without those that
// always hold. ints are the arguments, as bits, that the kernel itself reads as
// 32-bit values.
func narrow(conditions []condition, a abi, ints uint8) []condition {
	if len(conditions) == 0 {
		return nil
	}
	out := make([]condition, 0, len(conditions))
	for _, c := range conditions {
		if !a.words64() || ints>>c.arg&1 != 0 {
			c.low = true
			c.mask &= 0xffffffff
			c.value &= 0xffffffff
		}
		c.value &= c.mask
		if c.op != opMasked || c.mask != 0 {
			out = append(out, c)
		}
	}
	return out
}

// intArguments are the arguments of a call, as bits, that are an int or an
// unsigned int on every architecture and that profiles have reason to test.
// The kernel drops their high halves, so a filter that compares them can be
// got round by a caller who sets some bit there (CVE-2019-10063: TIOCSTI).
func intArguments(name string) uint8 {
	switch name {
	case "socket", "socketpair", "setsockopt", "getsockopt":
		return 0b000111
	case "ioctl", "fcntl", "setns":
		return 0b000011
	case "personality", "prctl", "bpf", "keyctl", "seccomp", "arch_prctl":
		return 0b000001
	case "futex":
		return 0b000010
	}
	return 0
}

// operation gives the conditions of a rule made for a multiplexed call.
func operation(conditions []condition, number uint64) []condition {
	out := []condition{{arg: 0, op: opEqual, low: true, mask: 0xffffffff, value: number}}
	for _, c := range conditions {
		if c.arg != 0 {
			out = append(out, c)
		}
	}
	return out
}

func parseOperator(op specs.LinuxSeccompOperator) (operator, bool) {
	switch op {
	case specs.OpNotEqual:
		return opNotEqual, true
	case specs.OpLessThan:
		return opLess, true
	case specs.OpLessEqual:
		return opLessEqual, true
	case specs.OpEqualTo:
		return opEqual, true
	case specs.OpGreaterEqual:
		return opGreaterEqual, true
	case specs.OpGreaterThan:
		return opGreater, true
	case specs.OpMaskedEqual:
		return opMasked, true
	}
	return 0, false
}

// alternatives turns the arguments of a profile's rule into conditions.
func alternatives(args []specs.LinuxSeccompArg) ([][]condition, error) {
	var all []condition
	var seen [maxArgs]bool
	again := false
	for i, a := range args {
		op, ok := parseOperator(a.Op)
		if !ok {
			return nil, fmt.Errorf("args[%d].op: %w: %q is not an operator", i, ErrInvalid, a.Op)
		}
		if a.Index >= maxArgs {
			return nil, fmt.Errorf("args[%d].index: %w: %d, the last argument is %d", i, ErrInvalid, a.Index, maxArgs-1)
		}
		c := condition{arg: uint8(a.Index), op: op, mask: ^uint64(0), value: a.Value}
		if op == opMasked {
			c.mask, c.value = a.Value, a.ValueTwo
		}
		again = again || seen[a.Index]
		seen[a.Index] = true
		all = append(all, c)
	}
	if !again {
		slices.SortFunc(all, func(a, b condition) int { return int(a.arg) - int(b.arg) })
		return [][]condition{all}, nil
	}
	out := make([][]condition, len(all))
	for i := range all {
		out[i] = all[i : i+1 : i+1]
	}
	return out, nil
}
