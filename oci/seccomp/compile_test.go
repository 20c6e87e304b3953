package seccomp

import (
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func defaultProfile(t testing.TB, arch string, caps ...string) *specs.LinuxSeccomp {
	t.Helper()
	p, err := DefaultFor(arch, caps, KernelVersion{6, 18})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestGoldenDefaultProfile(t *testing.T) {
	for _, c := range []struct {
		name, arch string
		native     bool
		caps       []string
	}{
		{"default-amd64", "amd64", false, nil},
		{"default-amd64-native", "amd64", true, nil},
		{"default-amd64-sysadmin", "amd64", false, []string{"CAP_SYS_ADMIN"}},
		{"default-arm64", "arm64", false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := defaultProfile(t, c.arch, c.caps...)
			if c.native {
				p.Architectures = nil
			}
			f, err := Compile(p, c.arch)
			if err != nil {
				t.Fatal(err)
			}
			if err := verify(decode(f.Instructions)); err != nil {
				t.Error(err)
			}
			got := fmt.Sprintf("%d instructions, flags %#x, unknown: %s\n%s", f.Len(), f.Flags, strings.Join(f.Unknown, " "),
				disassemble(decode(f.Instructions)))
			file := filepath.Join("testdata", c.name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the program has changed; see the change by: go test ./oci/seccomp -update && git diff")
			}
		})
	}
}

func one(action specs.LinuxSeccompAction, errno *uint, names ...string) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Syscalls:      []specs.LinuxSyscall{{Names: names, Action: action, ErrnoRet: errno}},
	}
}

func decide(t *testing.T, p *specs.LinuxSeccomp, arch string, d data) uint32 {
	t.Helper()
	f, err := Compile(p, arch)
	if err != nil {
		t.Fatal(err)
	}
	v, _ := run(decode(f.Instructions), &d)
	return v
}

func TestActions(t *testing.T) {
	five := uint(5)
	for _, c := range []struct {
		action specs.LinuxSeccompAction
		errno  *uint
		want   uint32
	}{
		{specs.ActKill, nil, 0},
		{specs.ActKillThread, nil, 0},
		{specs.ActKillProcess, nil, 0x80000000},
		{specs.ActTrap, nil, 0x30000},
		{specs.ActErrno, &five, 0x50005},
		{specs.ActTrace, nil, 0x7ff00001},
		{specs.ActTrace, &five, 0x7ff00005},
		{specs.ActLog, nil, 0x7ffc0000},
		{specs.ActAllow, nil, 0x7fff0000},
	} {
		d := data{arch: auditX8664, number: 39} // getpid
		if got := decide(t, one(c.action, c.errno, "getpid"), "amd64", d); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.action, got, c.want)
		}
		p := one(specs.ActLog, nil, "read")
		p.DefaultAction, p.DefaultErrnoRet = c.action, c.errno
		if c.action == specs.ActLog {
			p.Syscalls = nil
		}
		if got := decide(t, p, "amd64", d); got != c.want {
			// getpid is newer than read, the only call that the profile names.
			if c.action != specs.ActErrno || got != 0x50000|uint32(unix.ENOSYS) {
				t.Errorf("default %s: %#x, want %#x", c.action, got, c.want)
			}
		}
	}
}

func TestNewerCalls(t *testing.T) {
	const eperm, enosys, allow = 0x50001, 0x50000 | 38, 0x7fff0000
	p := one(specs.ActAllow, nil, "read", "openat2", "breakpoint") // openat2 is 437 everywhere
	p.Architectures = []specs.Arch{specs.ArchX86, specs.ArchX32, specs.ArchARM}
	for _, c := range []struct {
		goarch       string
		arch, number uint32
		want         uint32
	}{
		{"amd64", auditX8664, 437, allow},
		{"amd64", auditX8664, 436, eperm},
		{"amd64", auditX8664, 438, enosys},
		{"amd64", auditX8664, 100000, enosys},
		{"amd64", auditX8664, x32Bit + 437, allow},
		{"amd64", auditX8664, x32Bit + 436, eperm},
		{"amd64", auditX8664, x32Bit + 438, enosys},
		{"amd64", auditX8664, x32Bit + 520, eperm}, // x32's execve is old
		{"amd64", auditX8664, x32Bit + 548, enosys},
		{"amd64", auditI386, 436, eperm},
		{"amd64", auditI386, 438, enosys},
		{"arm64", auditAARCH64, 438, enosys},
		{"arm64", auditARM, 438, enosys},
		{"arm64", auditARM, 0xf0001, allow},
		{"arm64", auditARM, 0xf0002, eperm},
		{"arm64", auditARM, 0xf0100, enosys},
		{"arm64", auditX8664, 0, 0},
	} {
		if got := decide(t, p, c.goarch, data{arch: c.arch, number: c.number}); got != c.want {
			t.Errorf("%s arch %#x number %#x: %#x, want %#x", c.goarch, c.arch, c.number, got, c.want)
		}
	}
	p.DefaultAction = specs.ActKillProcess
	if got := decide(t, p, "amd64", data{arch: auditX8664, number: 500}); got != 0x80000000 {
		t.Errorf("default KILL_PROCESS: newer call: %#x", got)
	}
}

// TestX32Closed: a profile without x32 must not let its calls pass as the
// x86-64 calls of the same number.
func TestX32Closed(t *testing.T) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	if got := decide(t, p, "amd64", data{arch: auditX8664, number: x32Bit + 1}); got != unix.SECCOMP_RET_KILL_THREAD {
		t.Errorf("x32 write: %#x", got)
	}
	if got := decide(t, p, "amd64", data{arch: auditX8664, number: ^uint32(0)}); got != unix.SECCOMP_RET_ALLOW {
		t.Errorf("a tracer's skipped call: %#x", got)
	}
	if got := decide(t, p, "amd64", data{arch: auditI386, number: 4}); got != unix.SECCOMP_RET_KILL_THREAD {
		t.Errorf("i386 write: %#x", got)
	}
}

func TestCompileErrors(t *testing.T) {
	arg := func(a specs.LinuxSeccompArg) *specs.LinuxSeccomp {
		p := one(specs.ActAllow, nil, "read")
		p.Syscalls[0].Args = []specs.LinuxSeccompArg{a}
		return p
	}
	with := func(f func(*specs.LinuxSeccomp)) *specs.LinuxSeccomp {
		p := one(specs.ActAllow, nil, "read")
		f(p)
		return p
	}
	big := uint(5000)
	for _, c := range []struct {
		name  string
		p     *specs.LinuxSeccomp
		arch  string
		kind  error
		field string
	}{
		{"nil", nil, "amd64", ErrInvalid, "no profile"},
		{"architecture", one(specs.ActAllow, nil, "read"), "riscv64", ErrUnsupported, "riscv64"},
		{"notify", one(specs.ActNotify, nil, "read"), "amd64", ErrUnsupported, "syscalls[0].action"},
		{"default notify", with(func(p *specs.LinuxSeccomp) { p.DefaultAction = specs.ActNotify }), "amd64", ErrUnsupported, "defaultAction"},
		{"default missing", with(func(p *specs.LinuxSeccomp) { p.DefaultAction = "" }), "amd64", ErrInvalid, "defaultAction"},
		{"action", one("SCMP_ACT_PLAY", nil, "read"), "amd64", ErrInvalid, "SCMP_ACT_PLAY"},
		{"errno of allow", one(specs.ActAllow, &big, "read"), "amd64", ErrInvalid, "errnoRet"},
		{"errno", one(specs.ActErrno, &big, "read"), "amd64", ErrInvalid, "5000"},
		{"no names", one(specs.ActAllow, nil), "amd64", ErrInvalid, "syscalls[0].names"},
		{"empty name", one(specs.ActAllow, nil, "read", ""), "amd64", ErrInvalid, "syscalls[0].names[1]"},
		{"operator", arg(specs.LinuxSeccompArg{Op: "=="}), "amd64", ErrInvalid, "syscalls[0].args[0].op"},
		{"index", arg(specs.LinuxSeccompArg{Op: specs.OpEqualTo, Index: 6}), "amd64", ErrInvalid, "syscalls[0].args[0].index"},
		{"arch name", with(func(p *specs.LinuxSeccomp) { p.Architectures = []specs.Arch{"x86"} }), "amd64", ErrInvalid, "architectures[0]"},
		{"flag", with(func(p *specs.LinuxSeccomp) { p.Flags = []specs.LinuxSeccompFlag{"X"} }), "amd64", ErrInvalid, "flags[0]"},
		{"entries", with(func(p *specs.LinuxSeccomp) { p.Syscalls = make([]specs.LinuxSyscall, maxGroups+1) }), "amd64", ErrTooLarge, "syscalls"},
		{"conflict", with(func(p *specs.LinuxSeccomp) {
			p.Syscalls[0].Args = []specs.LinuxSeccompArg{{Op: specs.OpEqualTo}}
			s := p.Syscalls[0]
			s.Action = specs.ActLog
			p.Syscalls = append(p.Syscalls, s)
		}), "amd64", ErrInvalid, "syscalls[1], read"},
		{"instructions", with(func(p *specs.LinuxSeccomp) {
			for i := range 3000 {
				p.Syscalls[0].Args = append(p.Syscalls[0].Args, specs.LinuxSeccompArg{Op: specs.OpEqualTo, Value: uint64(i) << 31})
			}
		}), "amd64", ErrTooLarge, "4096"},
		{"rules", with(func(p *specs.LinuxSeccomp) {
			p.Syscalls[0].Names = strings.Fields(strings.Repeat("read ", 1000))
			p.Syscalls[0].Args = make([]specs.LinuxSeccompArg, 1000)
			for i := range p.Syscalls[0].Args {
				p.Syscalls[0].Args[i].Op = specs.OpEqualTo
			}
		}), "amd64", ErrTooLarge, "rules"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Compile(c.p, c.arch)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.field) {
				t.Errorf("%v; want %v, naming %s", err, c.kind, c.field)
			}
		})
	}
}

func TestFlags(t *testing.T) {
	p := one(specs.ActAllow, nil, "read", "made_up")
	for want, flags := range map[uint32][]specs.LinuxSeccompFlag{
		unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW: nil,
		0:                                   {},
		unix.SECCOMP_FILTER_FLAG_LOG:        {specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagWaitKillableRecv},
	} {
		p.Flags = flags
		f, err := Compile(p, "amd64")
		if err != nil || f.Flags != want {
			t.Errorf("%v: flags %#x, %v, want %#x", flags, f.Flags, err, want)
		}
		if !reflect.DeepEqual(f.Unknown, []string{"made_up"}) {
			t.Errorf("unknown: %q", f.Unknown)
		}
	}
}

// TestReference compares programs with the profile read rule by rule, also
// where rules with different actions overlap.
func TestReference(t *testing.T) {
	random := rand.New(rand.NewSource(7))
	actions := []specs.LinuxSeccompAction{specs.ActErrno, specs.ActAllow, specs.ActTrap, specs.ActLog, specs.ActKillProcess}
	for i := range 60 {
		m := machines()[i%4]
		p := randomProfile(random, actions[:2+i%4], false)
		p.Architectures = m.archs
		f, err := compile(p, m.goarch, options{})
		if errors.Is(err, ErrInvalid) {
			continue // two actions for the same arguments
		}
		if err != nil {
			t.Fatal(err)
		}
		program := decode(f.Instructions)
		if err := verify(program); err != nil {
			t.Fatalf("%v\n%s", err, disassemble(program))
		}
		for j, a := range m.abis[:len(m.archs)] {
			readAlike(t, p, program, a, m.audit[j], random)
		}
	}
}

// readAlike compares a program with the profile on all calls of an ABI.
func readAlike(t *testing.T, p *specs.LinuxSeccomp, program []instruction, a abi, audit uint32, random *rand.Rand) {
	t.Helper()
	values, conditions := boundaries(p), conditional(p)
	for number, name := range namesByNumber()[a] {
		tries := 1
		if conditions[name] {
			tries = 100
		}
		for range tries {
			d := data{number: number, arch: audit}
			for k := range d.args {
				d.args[k] = values[random.Intn(len(values))]
			}
			got, _ := run(program, &d)
			if want := reference(p, a, &d); got != want {
				t.Fatalf("abi %d number %#x args %#x: %#x, want %#x\n%+v", a, number, d.args, got, want, p)
			}
		}
	}
}

// TestIntArguments: a bit that the kernel drops must not change the decision
// (CVE-2019-10063).
func TestIntArguments(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{
			Names: []string{"ioctl", "mmap"}, Action: specs.ActErrno,
			Args: []specs.LinuxSeccompArg{{Index: 1, Op: specs.OpEqualTo, Value: unix.TIOCSTI}},
		}}}
		audit := map[string]uint32{"amd64": auditX8664, "arm64": auditAARCH64}[arch]
		a := map[string]abi{"amd64": abiX8664, "arm64": abiARM64}[arch]
		for name, want := range map[string]uint32{"ioctl": unix.SECCOMP_RET_ERRNO | 1, "mmap": unix.SECCOMP_RET_ALLOW} {
			row, _ := lookup(name)
			slot, _ := a.slot(row)
			d := data{arch: audit, number: slot, args: [maxArgs]uint64{0, 1<<32 | unix.TIOCSTI}}
			if got := decide(t, p, arch, d); got != want {
				t.Errorf("%s %s: %#x, want %#x", arch, name, got, want)
			}
		}
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	for _, c := range []struct {
		name, arch string
		native     bool
	}{{"amd64+i386+x32", "amd64", false}, {"amd64", "amd64", true}, {"arm64+arm", "arm64", false}} {
		b.Run(c.name, func(b *testing.B) {
			p := defaultProfile(b, c.arch)
			if c.native {
				p.Architectures = nil
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Compile(p, c.arch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDefault(b *testing.B) {
	for b.Loop() {
		if _, err := Default(nil, KernelVersion{6, 18}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCacheHit(b *testing.B) {
	var c Cache
	for b.Loop() {
		p, err := c.Default(nil, KernelVersion{6, 18})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Compile(p, "amd64"); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzCompile makes profiles of colliding rules, which random JSON rarely is.
func FuzzCompile(f *testing.F) {
	for seed := range int64(8) {
		f.Add(seed, uint8(seed))
	}
	f.Fuzz(func(t *testing.T, seed int64, kind uint8) {
		random := rand.New(rand.NewSource(seed))
		actions := []specs.LinuxSeccompAction{specs.ActErrno, specs.ActAllow, specs.ActTrap, specs.ActLog, specs.ActKillProcess}
		p := randomProfile(random, actions[:2+kind%4], false)
		m := machines()[kind>>2%4]
		p.Architectures = m.archs
		for _, o := range []options{{}, {newer: true, ints: true}} {
			c, err := compile(p, m.goarch, o)
			if errors.Is(err, ErrInvalid) {
				continue // two actions for the same arguments
			}
			if err != nil {
				t.Fatal(err)
			}
			program := decode(c.Instructions)
			if err := verify(program); err != nil {
				t.Fatal(err)
			}
			if o == (options{}) {
				for i, a := range m.abis[:len(m.archs)] {
					readAlike(t, p, program, a, m.audit[i], random)
				}
			}
		}
	})
}
