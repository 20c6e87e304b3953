package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// MaxInstructions is the longest program that the kernel takes (BPF_MAXINSNS).
const MaxInstructions = 4096

const (
	maxArgs   = 6
	maxGroups = 4096  // entries of a profile's list
	maxRules  = 65536 // calls times alternatives
)

// Filter is a compiled profile. It is immutable: it may be shared.
type Filter struct {
	// Instructions is an array of struct sock_filter, little endian, 8 bytes each.
	Instructions []byte
	// Flags are the SECCOMP_FILTER_FLAG_* to load it with.
	Flags uint32
	// Unknown are the names that no architecture of this package's tables has,
	// in the profile's order. They were ignored.
	Unknown []string
}

// Len is the number of instructions.
func (f *Filter) Len() int { return len(f.Instructions) / 8 }

// Compile makes the filter of a resolved profile for a machine of the given
// architecture, as Go names it: amd64 or arm64. The machine's own system calls
// are always filtered; those of its 32-bit architectures if the profile names
// the architecture, otherwise they kill the thread. Other architectures of the
// profile cannot occur and are ignored.
func Compile(profile *specs.LinuxSeccomp, arch string) (*Filter, error) {
	return compile(profile, arch, options{newer: true, ints: true})
}

type options struct {
	newer bool // ENOSYS for calls newer than the profile
	ints  bool // compare int arguments as ints
}

// compiler is the state of one compilation.
type compiler struct {
	program
	options
	groups   []group
	actions  []uint32 // by class
	verdicts []verdict
	interned map[string]class // verdicts by content
	targets  map[class]label
}

// auditArch are the architectures as the kernel reports them.
const (
	auditX8664   = unix.AUDIT_ARCH_X86_64
	auditI386    = unix.AUDIT_ARCH_I386
	auditAARCH64 = unix.AUDIT_ARCH_AARCH64
	auditARM     = unix.AUDIT_ARCH_ARM
)

func compile(profile *specs.LinuxSeccomp, arch string, o options) (*Filter, error) {
	if profile == nil {
		return nil, fmt.Errorf("%w: no profile", ErrInvalid)
	}
	if err := checkArchitectures(profile.Architectures); err != nil {
		return nil, err
	}
	flags, err := filterFlags(profile.Flags)
	if err != nil {
		return nil, err
	}
	c := compiler{options: o, interned: map[string]class{}, targets: map[class]label{}}
	unknown, err := c.parse(profile)
	if err != nil {
		return nil, err
	}
	switch arch {
	case "amd64":
		err = c.amd64(profile.Architectures)
	case "arm64":
		err = c.arm64(profile.Architectures)
	default:
		return nil, fmt.Errorf("%w: no system call table for architecture %q", ErrUnsupported, arch)
	}
	if err != nil {
		return nil, err
	}
	if !c.full {
		c.prune()
	}
	if c.full || len(c.code) > MaxInstructions {
		return nil, fmt.Errorf("%w: the program has %d instructions or more, the kernel takes %d: use fewer argument rules or architectures",
			ErrTooLarge, len(c.code), MaxInstructions)
	}
	return &Filter{Instructions: c.bytes(), Flags: flags, Unknown: unknown}, nil
}

// parse checks the profile and reads its rules.
func (c *compiler) parse(profile *specs.LinuxSeccomp) (unknown []string, err error) {
	otherwise, err := parseAction(profile.DefaultAction, profile.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	c.actions = []uint32{classDefault: otherwise, classNewer: otherwise, classBad: unix.SECCOMP_RET_KILL_THREAD}
	if c.newer && otherwise&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
		c.actions[classNewer] = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	if len(profile.Syscalls) > maxGroups {
		return nil, fmt.Errorf("%w: syscalls: %d entries, at most %d", ErrTooLarge, len(profile.Syscalls), maxGroups)
	}
	rules := 0
	for i := range profile.Syscalls {
		g, err := parseGroup(&profile.Syscalls[i], &unknown)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d].%w", i, err)
		}
		rules += len(profile.Syscalls[i].Names) * max(1, len(g.alternatives))
		if rules > maxRules {
			return nil, fmt.Errorf("%w: syscalls: more than %d rules", ErrTooLarge, maxRules)
		}
		c.groups = append(c.groups, g)
	}
	return unknown, nil
}

func parseGroup(s *specs.LinuxSyscall, unknown *[]string) (group, error) {
	action, err := parseAction(s.Action, s.ErrnoRet)
	if err != nil {
		return group{}, fmt.Errorf("action: %w", err)
	}
	g := group{action: action}
	if len(s.Names) == 0 {
		return group{}, fmt.Errorf("names: %w: empty", ErrInvalid)
	}
	g.rows = make([]uint16, 0, len(s.Names))
	for i, name := range s.Names {
		if name == "" {
			return group{}, fmt.Errorf("names[%d]: %w: empty", i, ErrInvalid)
		}
		if row, ok := lookup(name); ok {
			g.rows = append(g.rows, uint16(row))
		} else {
			*unknown = append(*unknown, name)
		}
	}
	if len(s.Args) > 0 {
		if g.alternatives, err = alternatives(s.Args); err != nil {
			return group{}, err
		}
	}
	return g, nil
}

// amd64 writes the program of an x86-64 machine. It is assembled from its end.
func (c *compiler) amd64(extra []specs.Arch) error {
	other := c.target(classBad)
	if slices.Contains(extra, specs.ArchX86) {
		i386, err := c.section(abiI386)
		if err != nil {
			return err
		}
		other = c.arch(auditI386, i386.fold(), other)
	}
	native, err := c.section(abiX8664)
	if err != nil {
		return err
	}
	var x32 stretches
	if slices.Contains(extra, specs.ArchX32) {
		if x32, err = c.section(abiX32); err != nil {
			return err
		}
	}
	// x32 calls carry AUDIT_ARCH_X86_64 and are told apart by a bit. Most are
	// treated like the x86-64 call of the same number: those that are not are
	// picked out first, then the bit is cleared.
	own := c.search(append(stretches(nil), native...).fold(), c.target)
	var elsewhere label
	if x32 != nil {
		c.targets[classElsewhere] = c.then(opAnd, ^uint32(x32Bit), own)
		elsewhere = c.search(difference(x32, native).fold(), c.target)
	} else {
		elsewhere = c.search(c.noX32(), c.target)
	}
	own = c.branch(opJGE, x32Bit, elsewhere, own)
	own = c.then(opLoad, dataNumber, own)
	c.then(opLoad, dataArch, c.branch(opJEQ, auditX8664, own, other))
	return nil
}

// noX32 treats x32 calls when the profile does not allow the ABI: as newer
// calls, which is what a kernel without x32 says, or else as of a foreign
// architecture, except number -1, by which a tracer skips a call.
func (c *compiler) noX32() stretches {
	var s stretches
	if c.actions[classNewer] != c.actions[classDefault] {
		s.add(x32Bit, classNewer)
		return s
	}
	s.add(x32Bit, classBad)
	s.add(^uint32(0), classDefault)
	return s
}

// arm64 writes the program of an AArch64 machine.
func (c *compiler) arm64(extra []specs.Arch) error {
	other := c.target(classBad)
	if slices.Contains(extra, specs.ArchARM) {
		arm, err := c.section(abiARM)
		if err != nil {
			return err
		}
		other = c.arch(auditARM, arm.fold(), other)
	}
	native, err := c.section(abiARM64)
	if err != nil {
		return err
	}
	own := c.then(opLoad, dataNumber, c.search(native.fold(), c.target))
	c.then(opLoad, dataArch, c.branch(opJEQ, auditAARCH64, own, other))
	return nil
}

// arch writes the code of a further architecture: the accumulator holds the
// call's architecture.
func (c *compiler) arch(audit uint32, s stretches, other label) label {
	section := c.then(opLoad, dataNumber, c.search(s, c.target))
	return c.branch(opJEQ, audit, section, other)
}

// target gives the code of a class.
func (c *compiler) target(k class) label {
	if k >= 0 && k < firstVerdict {
		return c.ret(c.actions[k])
	}
	if l, ok := c.targets[k]; ok {
		return c.near(l)
	}
	l := c.verdictCode(c.verdicts[k-firstVerdict], c.actions[classDefault])
	c.targets[k] = l
	return c.near(l)
}

// section decides what is done with each call of an ABI.
func (c *compiler) section(a abi) (stretches, error) {
	var slots [slotCount]slotRules
	verdicts, newest, err := c.collect(a, &slots)
	if err != nil {
		return nil, err
	}
	special, last := a.special()
	limit := uint32(slotPrivate)
	if special >= slotPrivate {
		limit = slotCount
	}
	s := make(stretches, 0, 256)
	for i := range limit {
		k := slots[i].always
		switch {
		case k != classDefault:
		case slots[i].verdict != 0:
			k = c.intern(verdicts[slots[i].verdict-1])
		case int(i) > newest && newest >= 0 && (i < special || i > last):
			k = classNewer
		}
		s.add(a.number(i), k)
	}
	return s, nil
}

// slotRules is what the profile says of one call: a class for all its
// arguments, or else an index into the verdicts plus one, or nothing.
type slotRules struct {
	always  class
	verdict int32
}

// collect gathers the rules of every call of an ABI. newest is the newest call
// that the profile names, not counting the ABI's special ones, or -1.
func (c *compiler) collect(a abi, slots *[slotCount]slotRules) (verdicts []verdict, newest int, err error) {
	special, last := a.special()
	newest = -1
	put := func(slot uint32, r rule) error {
		if slot < special || slot > last {
			newest = max(newest, int(slot))
		}
		s := &slots[slot]
		switch {
		case r.action == c.actions[classDefault] || s.always != classDefault:
			return nil
		case len(r.conditions) == 0:
			s.always = c.action(r.action)
			return nil
		case s.verdict == 0:
			verdicts = append(verdicts, verdict{})
			s.verdict = int32(len(verdicts))
		}
		return verdicts[s.verdict-1].add(r)
	}
	for gi := range c.groups {
		g := &c.groups[gi]
		for _, row := range g.rows {
			if err := c.rules(a, int(row), g, put); err != nil {
				return nil, 0, fmt.Errorf("syscalls[%d], %s: %w", gi, tableName(int(row)), err)
			}
		}
	}
	return verdicts, newest, nil
}

// action gives the class of an action.
func (c *compiler) action(value uint32) class {
	i := slices.Index(c.actions, value)
	if i < 0 {
		i = len(c.actions)
		c.actions = append(c.actions, value)
	}
	return class(i)
}

// rules gives put the rules of a group for a row of the table.
func (c *compiler) rules(a abi, row int, g *group, put func(uint32, rule) error) error {
	own, there := a.slot(row)
	shared, number, also := uint32(0), uint64(0), false
	if a == abiI386 {
		shared, number, also = multiplexed(row)
	}
	sets := g.alternatives
	if sets == nil {
		sets = [][]condition{nil}
	}
	var ints uint8
	if c.ints && g.alternatives != nil {
		ints = intArguments(tableName(row))
	}
	for _, set := range sets {
		set = narrow(set, a, ints)
		if also {
			if err := put(shared, rule{operation(set, number), g.action}); err != nil {
				return err
			}
		}
		if there {
			if err := put(own, rule{set, g.action}); err != nil {
				return err
			}
		}
	}
	return nil
}

// intern gives the class of a verdict; equal verdicts share one.
func (c *compiler) intern(v verdict) class {
	v.simplify()
	var key []byte
	for _, r := range v.rules {
		key = binary.LittleEndian.AppendUint32(key, r.action)
		key = append(key, byte(len(r.conditions)))
		for _, t := range r.conditions {
			key = append(key, t.arg, byte(t.op))
			if t.low {
				key[len(key)-1] |= 0x80
			}
			key = binary.LittleEndian.AppendUint64(key, t.mask)
			key = binary.LittleEndian.AppendUint64(key, t.value)
		}
	}
	if k, ok := c.interned[string(key)]; ok {
		return k
	}
	k := firstVerdict + class(len(c.verdicts))
	c.verdicts = append(c.verdicts, v)
	c.interned[string(key)] = k
	return k
}

// difference gives the calls of s, in numbers above x32Bit, that are treated
// otherwise than their counterparts in native.
func difference(s, native stretches) stretches {
	var out stretches
	i, j := 0, 0
	for i < len(s) || j < len(native) {
		at := ^uint32(0)
		if i < len(s) {
			at = s[i].first
		}
		if j < len(native) {
			at = min(at, native[j].first+x32Bit)
		}
		if i < len(s) && s[i].first == at {
			i++
		}
		if j < len(native) && native[j].first+x32Bit == at {
			j++
		}
		k := s[i-1].class
		if k == native[j-1].class {
			k = classElsewhere
		}
		out.add(at, k)
	}
	return out
}
