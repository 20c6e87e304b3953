package seccomp

// class is what a section does with a call: an index into the compiler's
// actions, or behind firstVerdict into its verdicts.
type class int32

const (
	classDefault class = iota
	classNewer         // newer than the profile
	classBad           // of another architecture

	classElsewhere class = -1 // as the other section of the architecture does it
	firstVerdict   class = 1 << 16
)

// stretch is a range of numbers, from first to the next stretch, that is
// treated alike but for a few single numbers in it.
type stretch struct {
	first   uint32
	class   class
	singles []single
}

type single struct {
	number uint32
	class  class
}

// maxChain is how many single numbers are compared one after the other.
const maxChain = 3

// stretches collects the numbers of a section in ascending order.
type stretches []stretch

func (s *stretches) add(first uint32, c class) {
	if n := len(*s); n > 0 && (*s)[n-1].class == c {
		return
	}
	*s = append(*s, stretch{first: first, class: c})
}

// fold takes stretches of one number between two of the same class out: one
// comparison for equality serves them better than two for order.
func (s stretches) fold() stretches {
	out := s[:0]
	for i := 0; i < len(s); i++ {
		x := s[i]
		if n := len(out); n > 0 && i+1 < len(s) && s[i+1].first-x.first == 1 && s[i+1].class == out[n-1].class {
			out[n-1].singles = append(out[n-1].singles, single{x.first, x.class})
			i++ // the next stretch continues the last
			continue
		}
		out = append(out, x)
	}
	return out
}

// search writes the code that finds the stretch of the number in the
// accumulator; target gives the code of a class.
func (p *program) search(s stretches, target func(class) label) label {
	if len(s) == 1 {
		return p.chain(s[0].singles, target(s[0].class), target)
	}
	total := 0
	for i := range s {
		total += 1 + len(s[i].singles)
	}
	split, left := 1, 1+len(s[0].singles)
	for split < len(s)-1 && 2*left < total {
		left += 1 + len(s[split].singles)
		split++
	}
	high := p.search(s[split:], target)
	low := p.search(s[:split], target)
	return p.branch(opJGE, s[split].first, high, low)
}

func (p *program) chain(s []single, rest label, target func(class) label) label {
	if len(s) > maxChain {
		mid := len(s) / 2
		high := p.chain(s[mid:], p.near(rest), target)
		low := p.chain(s[:mid], p.near(rest), target)
		return p.branch(opJGE, s[mid].number, high, low)
	}
	at := rest
	for i := len(s) - 1; i >= 0; i-- {
		at = p.branch(opJEQ, s[i].number, target(s[i].class), at)
	}
	return at
}
