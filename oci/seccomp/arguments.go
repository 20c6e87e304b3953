package seccomp

// span is what is known about a 32-bit word of an argument.
type span struct{ low, high uint32 }

const words = 2 * maxArgs // word 2n is the low half of argument n, 2n+1 the high half

// knowledge is what the tests on the way have shown, and what the accumulator
// holds. Tests that it decides are left out of the program.
type knowledge struct {
	spans       [words]span
	accumulator int8 // a word, or -1
}

func nothingKnown() knowledge {
	k := knowledge{accumulator: -1}
	for i := range k.spans {
		k.spans[i].high = ^uint32(0)
	}
	return k
}

// test compares one word with a constant.
type test struct {
	word    int8
	code    uint16 // opJEQ, opJGT or opJGE
	mask, k uint32
}

// decide gives the result of t if it is known.
func (k *knowledge) decide(t test) (result, known bool) {
	s := k.spans[t.word]
	switch {
	case t.mask == 0:
		return t.k == 0, true
	case t.mask != ^uint32(0):
		return s.low&t.mask == t.k, s.low == s.high
	case t.code == opJEQ:
		return s.low == t.k && s.high == t.k, s.low == s.high || t.k < s.low || t.k > s.high
	case t.code == opJGT:
		return s.low > t.k, s.low > t.k || s.high <= t.k
	default:
		return s.low >= t.k, s.low >= t.k || s.high < t.k
	}
}

// learn gives what is known after t had that result.
func (k knowledge) learn(t test, result bool) knowledge {
	k.accumulator = t.word
	if t.mask != ^uint32(0) {
		k.accumulator = -1
		return k
	}
	s := &k.spans[t.word]
	switch {
	case t.code == opJEQ && result:
		*s = span{t.k, t.k}
	case t.code == opJEQ && t.k == s.low:
		s.low++
	case t.code == opJEQ && t.k == s.high:
		s.high--
	case t.code == opJGT && result:
		s.low = t.k + 1
	case t.code == opJGT:
		s.high = t.k
	case t.code == opJGE && result:
		s.low = t.k
	case t.code == opJGE:
		s.high = t.k - 1
	}
	return k
}

// place is a position in the tests of a verdict.
type place struct{ rule, condition, step int16 }

// arguments writes the code of one verdict's conditions.
type arguments struct {
	*program
	rules    []rule
	otherway uint32   // the action when no rule matches
	later    []uint16 // by rule: the words that it and those behind it test
	done     map[situation]label
	learning bool
	budget   int // instructions left before learning is given up
}

type situation struct {
	place
	knowledge
}

// verdictCode assembles the tests of v and returns their start.
//
// What the tests have shown is followed along every path, which makes short
// programs of the usual rules but could make very long ones of unusual rules:
// then the tests are written out one after the other.
func (p *program) verdictCode(v verdict, otherway uint32) label {
	a := arguments{program: p, rules: v.rules, otherway: otherway}
	a.later = make([]uint16, len(v.rules)+1)
	count := 0
	for i := len(v.rules) - 1; i >= 0; i-- {
		a.later[i] = a.later[i+1]
		for _, c := range v.rules[i].conditions {
			a.later[i] |= 3 << (2 * c.arg)
			count++
		}
	}
	// The shorter of the two is kept; they are told apart by their lengths.
	mark, returns := len(p.code), append([]returnLabel(nil), p.returns...)
	write := func(learning bool, budget int) (label, int) {
		p.code, p.returns = p.code[:mark], append(p.returns[:0], returns...)
		clear(p.stones)
		a.done = make(map[situation]label, count)
		a.learning, a.budget = learning, budget
		at := a.code(place{}, nothingKnown())
		if a.budget <= 0 {
			return at, maxAssembled
		}
		return at, len(p.code) - mark
	}
	if len(v.rules) == 1 {
		at, _ := write(false, maxAssembled)
		return at
	}
	_, plain := write(false, maxAssembled)
	if at, learned := write(true, min(16+6*count, plain+1)); learned <= plain {
		return at
	}
	at, _ := write(false, maxAssembled)
	return at
}

// code returns the label of what is to be done at a place.
func (a *arguments) code(at place, known knowledge) label {
	if a.budget <= 0 || a.full {
		return a.ret(a.otherway)
	}
	var t test
	for {
		if int(at.rule) == len(a.rules) {
			return a.ret(a.otherway)
		}
		r := &a.rules[at.rule]
		if int(at.condition) == len(r.conditions) {
			return a.ret(r.action)
		}
		t = a.test(r.conditions[at.condition], at.step)
		result, decided := known.decide(t)
		if !decided {
			break
		}
		at = a.next(at, result)
	}
	a.forget(&known, at, t)
	key := situation{at, known}
	if l, ok := a.done[key]; ok {
		return l
	}
	yes := a.code(a.next(at, true), known.learn(t, true))
	no := a.code(a.next(at, false), known.learn(t, false))
	here := yes
	if yes != no {
		here = a.branch(t.code, t.k, yes, no)
		if t.mask != ^uint32(0) {
			here = a.then(opAnd, t.mask, here)
		}
	}
	// What follows may rely on the word even if the test itself is void.
	if known.accumulator != t.word && a.program.code[here-1].code != opRet {
		here = a.then(opLoad, dataArgs+4*uint32(t.word), here)
	}
	a.budget--
	a.done[key] = here
	return here
}

// forget drops what no later test can use, so that paths meet again.
func (a *arguments) forget(known *knowledge, at place, t test) {
	if known.accumulator != t.word {
		known.accumulator = -1
	}
	if !a.learning {
		accumulator := known.accumulator
		*known = nothingKnown()
		known.accumulator = accumulator
		return
	}
	for w := range known.spans {
		if a.later[at.rule]>>w&1 == 0 {
			known.spans[w] = span{high: ^uint32(0)}
		}
	}
}

// test gives the step-th test of a condition.
//
// A 64-bit equality is two tests (high, low), an order three (high greater,
// high equal, low); of a comparison of the low word only the last remains.
func (a *arguments) test(c condition, step int16) test {
	t := test{word: int8(2 * c.arg), code: opJEQ, mask: uint32(c.mask), k: uint32(c.value)}
	last := int16(1)
	order := false
	switch c.op {
	case opGreater, opLessEqual:
		t.code, last, order = opJGT, 2, true
	case opGreaterEqual, opLess:
		t.code, last, order = opJGE, 2, true
	case opEqual, opNotEqual, opMasked:
	}
	if c.low || step == last {
		return t
	}
	t.word++
	t.code, t.mask, t.k = opJEQ, uint32(c.mask>>32), uint32(c.value>>32)
	if order && step == 0 {
		t.code = opJGT
	}
	return t
}

// next gives the place after the test at a place had a result.
func (a *arguments) next(at place, result bool) place {
	c := a.rules[at.rule].conditions[at.condition]
	order := c.op.rank() != opEqual.rank()
	if !c.low {
		switch {
		case !order && at.step == 0 && result:
			return place{at.rule, at.condition, 1}
		case order && at.step == 0 && !result:
			return place{at.rule, at.condition, 1}
		case order && at.step == 1 && result:
			return place{at.rule, at.condition, 2}
		}
	}
	// result now says "equal", or for an order "greater".
	if c.op == opNotEqual || c.op == opLess || c.op == opLessEqual {
		result = !result
	}
	if result {
		return place{at.rule, at.condition + 1, 0}
	}
	return place{at.rule + 1, 0, 0}
}
