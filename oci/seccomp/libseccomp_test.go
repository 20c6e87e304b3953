package seccomp

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// exporter is the C program that asks libseccomp.
func exporter(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "export")
	out, err := exec.CommandContext(t.Context(), "gcc", "-O1", "-o", bin, "testdata/export.c", "-lseccomp").CombinedOutput()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		t.Skip("needs gcc")
	case bytes.Contains(out, []byte("seccomp.h")) || bytes.Contains(out, []byte("-lseccomp")):
		t.Skip("needs libseccomp-dev")
	case err != nil:
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return bin
}

// known are the calls that libseccomp knows, by ABI.
type known [abiCount]map[string]uint32

func libraryNames(t *testing.T, bin string) *known {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), bin, "names").Output()
	if err != nil {
		t.Fatal(err)
	}
	var k known
	for i := range k {
		k[i] = map[string]uint32{}
	}
	for line := range strings.Lines(string(out)) {
		var a int
		var n uint32
		var name string
		if _, err := fmt.Sscan(line, &a, &n, &name); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		k[a][name] = n
	}
	return &k
}

// operators in the numbering of enum scmp_compare.
var scmpCompare = []specs.LinuxSeccompOperator{
	1: specs.OpNotEqual, 2: specs.OpLessThan, 3: specs.OpLessEqual, 4: specs.OpEqualTo,
	5: specs.OpGreaterEqual, 6: specs.OpGreaterThan, 7: specs.OpMaskedEqual,
}

// library has libseccomp compile a profile, in the way runc hands it over.
func library(t *testing.T, bin string, p *specs.LinuxSeccomp, archs []uint32) ([]instruction, error) {
	t.Helper()
	var in strings.Builder
	for _, a := range archs {
		fmt.Fprintf(&in, "arch %d\n", a)
	}
	otherwise, err := parseAction(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&in, "default %d\n", otherwise)
	for _, s := range p.Syscalls {
		action, err := parseAction(s.Action, s.ErrnoRet)
		if err != nil {
			t.Fatal(err)
		}
		if action == otherwise {
			continue
		}
		var count [maxArgs]int
		alternatives := [][]specs.LinuxSeccompArg{s.Args}
		for _, a := range s.Args {
			if count[a.Index]++; count[a.Index] > 1 && len(alternatives) == 1 {
				alternatives = nil
				for _, a := range s.Args {
					alternatives = append(alternatives, []specs.LinuxSeccompArg{a})
				}
			}
		}
		for _, n := range s.Names {
			for _, args := range alternatives {
				fmt.Fprintf(&in, "rule %d %s", action, n)
				for _, a := range args {
					fmt.Fprintf(&in, " %d %d %d %d", a.Index, slices.Index(scmpCompare, a.Op), a.Value, a.ValueTwo)
				}
				in.WriteByte('\n')
			}
		}
	}
	cmd := exec.CommandContext(t.Context(), bin)
	cmd.Stdin = strings.NewReader(in.String())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	return decode(out), nil
}

// machine is an architecture to compare on: its name, and the ABIs whose
// numbers are tried with their audit architecture.
type machine struct {
	goarch string
	archs  []specs.Arch
	tokens []uint32
	abis   []abi
	audit  []uint32
}

const scmpX32 = unix.AUDIT_ARCH_X86_64 &^ (1 << 31) // EM_X86_64|__AUDIT_ARCH_LE

func machines() []machine {
	return []machine{
		{
			"amd64",
			[]specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
			[]uint32{auditX8664, auditI386, scmpX32},
			[]abi{abiX8664, abiI386, abiX32},
			[]uint32{auditX8664, auditI386, auditX8664},
		},
		{
			"amd64",
			[]specs.Arch{specs.ArchX86_64},
			[]uint32{auditX8664},
			[]abi{abiX8664, abiI386, abiX32},
			[]uint32{auditX8664, auditI386, auditX8664},
		},
		{
			"arm64",
			[]specs.Arch{specs.ArchAARCH64, specs.ArchARM},
			[]uint32{auditAARCH64, auditARM},
			[]abi{abiARM64, abiARM},
			[]uint32{auditAARCH64, auditARM},
		},
		{
			"arm64",
			[]specs.Arch{specs.ArchAARCH64},
			[]uint32{auditAARCH64},
			[]abi{abiARM64, abiARM},
			[]uint32{auditAARCH64, auditARM},
		},
	}
}

// boundaries are the argument values around those of the profile.
func boundaries(p *specs.LinuxSeccomp) []uint64 {
	set := map[uint64]bool{0: true, 1: true, ^uint64(0): true}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo, a.Value | a.ValueTwo, a.Value & a.ValueTwo} {
				for _, w := range []uint64{v - 1, v, v + 1} {
					for _, x := range []uint64{w, w ^ 1<<32, w ^ 1<<63, w & 0xffffffff, w | 0xffffffff<<32, w - 1<<32, w + 1<<32} {
						set[x] = true
					}
				}
			}
		}
	}
	out := make([]uint64, 0, len(set))
	for v := range set {
		out = append(out, v)
	}
	slices.Sort(out)
	return out
}

// conditional are the calls that a profile has conditions for.
func conditional(p *specs.LinuxSeccomp) map[string]bool {
	out := map[string]bool{"socketcall": true, "ipc": true}
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			if len(s.Args) > 0 {
				out[n] = true
			}
		}
	}
	return out
}

// differences compares two programs on all numbers of all ABIs.
//
// A difference counts against the library when the profile, read rule by rule,
// is on our side.
func differences(m machine, p *specs.LinuxSeccomp, ours, theirs []instruction, lib *known, random *rand.Rand) (found, wrong []string, tried int) {
	values := boundaries(p)
	conditions := conditional(p)
	names := namesByNumber()
	for i, a := range m.abis {
		var numbers []uint32
		for slot := range uint32(slotCount) {
			if slot < 700 || slot >= slotPrivate && a == abiARM {
				numbers = append(numbers, a.number(slot))
			}
		}
		numbers = append(numbers, a.base()+5000, armPrivate-1, armPrivate+100, x32Bit-1, 1<<31, ^uint32(0))
		for _, number := range numbers {
			name := names[a][number]
			tries := 3
			if conditions[name] {
				tries = 20 + 40*len(values)
			}
			d := data{number: number, arch: m.audit[i]}
			for try := range tries {
				for j := range d.args {
					d.args[j] = values[random.Intn(len(values))]
				}
				if try < len(values)*maxArgs { // each value in each argument
					d.args[try%maxArgs] = values[try/maxArgs]
				}
				x, _ := run(ours, &d)
				y, _ := run(theirs, &d)
				tried++
				if x == y {
					continue
				}
				if lacks(lib, a, name) {
					break
				}
				text := fmt.Sprintf("abi %d number %#x (%s) args %#x: %#x, library %#x", a, number, name, d.args, x, y)
				if x == reference(p, a, &d) {
					wrong = append(wrong, text)
					continue
				}
				found = append(found, text)
				break
			}
		}
	}
	d := data{arch: unix.AUDIT_ARCH_S390X}
	if x, _ := run(ours, &d); x != unix.SECCOMP_RET_KILL_THREAD {
		found = append(found, fmt.Sprintf("foreign architecture: %#x", x))
	}
	return found, wrong, tried
}

// lacks tells whether a call is one that libseccomp 2.5.4 does not know: those
// since Linux 6.8, the x86-64 calls of the probes, and a second name of arm's
// sync_file_range.
func lacks(lib *known, a abi, name string) bool {
	if _, ok := lib[a][name]; ok {
		return false
	}
	return slices.Contains([]string{
		"file_getattr", "file_setattr", "getxattrat", "listmount", "listns", "listxattrat", "lsm_get_self_attr", "lsm_list_modules",
		"lsm_set_self_attr", "mseal", "open_tree_attr", "removexattrat", "rseq_slice_yield", "setxattrat", "statmount", "uprobe",
		"uretprobe", "sync_file_range2",
	}, name)
}

var namesByNumber = sync.OnceValue(func() (out [abiCount]map[uint32]string) {
	for a := range abiCount {
		out[a] = map[uint32]string{}
		for row := range tableLen {
			if slot, ok := a.slot(row); ok {
				out[a][a.number(slot)] = tableName(row)
			}
		}
	}
	return out
})

func compare(t *testing.T, bin string, lib *known, p *specs.LinuxSeccomp, m machine, random *rand.Rand) bool {
	t.Helper()
	p.Architectures = m.archs
	theirs, libErr := library(t, bin, p, m.tokens)
	f, err := compile(p, m.goarch, options{})
	if libErr != nil {
		return false // two actions for the same arguments
	}
	if err != nil {
		t.Fatalf("%s: %v\n%+v", m.goarch, err, p)
	}
	ours := decode(f.Instructions)
	if err := verify(ours); err != nil {
		t.Fatalf("%s: %v\n%s", m.goarch, err, disassemble(ours))
	}
	found, wrong, tried := differences(m, p, ours, theirs, lib, random)
	if len(found) > 0 {
		t.Errorf("%s, %d architectures: %d differences in %d inputs, first:\n%s\n%+v", m.goarch, len(m.archs), len(found), tried,
			strings.Join(found[:min(5, len(found))], "\n"), p.Syscalls[max(0, len(p.Syscalls)-12):])
		return false
	}
	t.Logf("%s, %d architectures: %d inputs, %d instructions, libseccomp %d; %d decided wrongly by it", m.goarch, len(m.archs), tried,
		len(ours), len(theirs), len(wrong))
	if len(wrong) > 0 {
		t.Log(wrong[0])
	}
	return len(wrong) == 0
}

func TestLibseccompTable(t *testing.T) {
	lib := libraryNames(t, exporter(t))
	missing := map[string]bool{}
	for a := range abiCount {
		for name, nr := range lib[a] {
			row, ok := lookup(name)
			if ok {
				var slot uint32
				if slot, ok = a.slot(row); ok && slot != nr && slot-slotPrivate+armPrivate != nr {
					t.Errorf("abi %d: %s is %d, in libseccomp %d", a, name, slot, nr)
				}
			}
			if !ok {
				missing[fmt.Sprintf("abi %d %s=%d", a, name, nr)] = true
			}
		}
		for row := range tableLen {
			_, ok := a.slot(row)
			if _, there := lib[a][tableName(row)]; ok && !there && !lacks(lib, a, tableName(row)) {
				t.Errorf("abi %d: libseccomp has no %s", a, tableName(row))
			}
		}
	}
	for m := range missing {
		t.Errorf("the table lacks %s", m)
	}
}

func TestLibseccompDefaultProfile(t *testing.T) {
	bin := exporter(t)
	lib := libraryNames(t, bin)
	random := rand.New(rand.NewSource(1))
	all := []string{
		"CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_TIME", "CAP_DAC_READ_SEARCH", "CAP_SYS_BOOT",
		"CAP_SYS_MODULE", "CAP_SYS_PACCT", "CAP_SYS_RAWIO", "CAP_SYS_TTY_CONFIG", "CAP_SYS_NICE", "CAP_SYSLOG", "CAP_BPF", "CAP_PERFMON",
	}
	for _, caps := range [][]string{nil, {"CAP_SYS_CHROOT"}, {"CAP_SYS_ADMIN"}, {"CAP_SYS_PTRACE", "CAP_SYS_NICE"}, all} {
		for _, m := range machines() {
			p, err := DefaultFor(m.goarch, caps, KernelVersion{6, 18})
			if err != nil {
				t.Fatal(err)
			}
			if !compare(t, bin, lib, p, m, random) {
				t.Errorf("caps %v", caps)
			}
		}
	}
}

// randomProfile makes a profile of many rules for few calls, so that they
// collide. A tame one stays clear of what libseccomp 2.5 gets wrong:
//   - when the first call of an architecture's list has no number there, the
//     filter compares the architecture instead of the call's number;
//   - lower and upper bounds on one argument are merged into one comparison;
//   - of two upper bounds with different high words only one is kept;
//   - a bound or an inequality in a rule with several conditions loses the
//     rules behind it;
//   - rules with different actions are merged in the order they came.
func randomProfile(random *rand.Rand, actions []specs.LinuxSeccompAction, tame bool) *specs.LinuxSeccomp {
	names := []string{"read", "write", "clone", "socket", "shutdown", "personality", "prctl", "ioctl", "rt_sigaction", "capset"}
	if !tame {
		names = append(names, "no_such_call", "breakpoint", "socketcall", "futex_time64", "recv", "msgctl", "mseal", "time", "accept",
			"send", "semop", "shmat")
	}
	pool := []uint64{
		0, 1, 2, 3, 40, 0x7fffffff, 0x80000000, 0xffffffff, 1 << 32, 1<<32 | 1, 5<<32 | 40, 0x7E020000, ^uint64(0), 1 << 63, random.Uint64(),
	}
	operators := []int{1, 2, 3, 4, 5, 6, 7}
	if tame {
		operators = [][]int{{4, 7}, {1}, {2}, {3}, {5}, {6}}[random.Intn(6)]
		if operators[0] == 2 || operators[0] == 3 {
			pool = pool[:8]
		}
	}
	p := &specs.LinuxSeccomp{DefaultAction: actions[0]}
	for range 1 + random.Intn(25) {
		s := specs.LinuxSyscall{Action: actions[1+random.Intn(len(actions)-1)]}
		for range 1 + random.Intn(3) {
			s.Names = append(s.Names, names[random.Intn(len(names))])
		}
		args := [...]int{0, 1, 1, 1, 1, 1, 2, 2, 3}[random.Intn(9)]
		if tame && len(operators) == 1 {
			args = min(args, 1)
		}
		for range args {
			s.Args = append(s.Args, specs.LinuxSeccompArg{
				Index: uint([...]int{0, 0, 0, 1, 1, 2, 3, 4, 5}[random.Intn(9)]), Op: scmpCompare[operators[random.Intn(len(operators))]],
				Value: pool[random.Intn(len(pool))], ValueTwo: pool[random.Intn(len(pool))],
			})
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	return p
}

func TestLibseccompRandomProfiles(t *testing.T) {
	bin := exporter(t)
	lib := libraryNames(t, bin)
	for name, actions := range map[string][]specs.LinuxSeccompAction{
		"allow": {specs.ActErrno, specs.ActAllow}, "errno": {specs.ActAllow, specs.ActErrno}, "log": {specs.ActKillProcess, specs.ActLog},
		"trace": {specs.ActTrap, specs.ActTrace}, "kill": {specs.ActLog, specs.ActKill}, "trap": {specs.ActTrace, specs.ActTrap},
		"kill process": {specs.ActAllow, specs.ActKillProcess},
	} {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewSource(int64(len(name))))
			for i := range 24 {
				m := machines()[i%4]
				if !compare(t, bin, lib, randomProfile(random, actions, true), m, random) {
					t.Errorf("profile %d: libseccomp decides differently", i)
				}
			}
		})
	}
}

// TestLibseccompWildProfiles shows that where libseccomp and this package
// differ, the profile as written is on this package's side.
func TestLibseccompWildProfiles(t *testing.T) {
	bin := exporter(t)
	lib := libraryNames(t, bin)
	random := rand.New(rand.NewSource(2))
	same := 0
	const profiles = 60
	for i := range profiles {
		actions := []specs.LinuxSeccompAction{specs.ActErrno, specs.ActAllow, specs.ActTrap, specs.ActLog, specs.ActKillProcess}[:2+i%4]
		if compare(t, bin, lib, randomProfile(random, actions, false), machines()[i%4], random) {
			same++
		}
	}
	t.Logf("%d of %d profiles treated alike", same, profiles)
}
