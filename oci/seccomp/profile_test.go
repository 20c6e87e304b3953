package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func allowed(p *specs.LinuxSeccomp, name string) bool {
	return slices.ContainsFunc(p.Syscalls, func(s specs.LinuxSyscall) bool {
		return s.Action == specs.ActAllow && len(s.Args) == 0 && slices.Contains(s.Names, name)
	})
}

func TestDefaultConditions(t *testing.T) {
	for _, c := range []struct {
		arch   string
		kernel KernelVersion
		caps   []string
		name   string
		want   bool
	}{
		{"amd64", KernelVersion{6, 18}, nil, "read", true},
		{"amd64", KernelVersion{6, 18}, nil, "mount", false},
		{"amd64", KernelVersion{6, 18}, []string{"CAP_SYS_ADMIN"}, "mount", true},
		{"amd64", KernelVersion{6, 18}, []string{"CAP_SYS_ADMIN"}, "clone", true},
		{"amd64", KernelVersion{6, 18}, nil, "clone", false},
		{"amd64", KernelVersion{4, 7}, nil, "ptrace", false},
		{"amd64", KernelVersion{4, 8}, nil, "ptrace", true},
		{"amd64", KernelVersion{5, 0}, nil, "ptrace", true},
		{"amd64", KernelVersion{4, 7}, []string{"CAP_SYS_PTRACE"}, "ptrace", true},
		{"amd64", KernelVersion{6, 18}, nil, "arch_prctl", true},
		{"arm64", KernelVersion{6, 18}, nil, "arch_prctl", false},
		{"arm64", KernelVersion{6, 18}, nil, "set_tls", true},
	} {
		p, err := DefaultFor(c.arch, c.caps, c.kernel)
		if err != nil {
			t.Fatal(err)
		}
		if got := allowed(p, c.name); got != c.want {
			t.Errorf("%s %v %v: %s allowed: %v", c.arch, c.kernel, c.caps, c.name, got)
		}
	}
	if _, err := DefaultFor("riscv64", nil, KernelVersion{6, 18}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("riscv64: %v", err)
	}
}

// TestDefaultAsPublished compares with what the profile's own loader makes of
// it for this machine.
func TestDefaultAsPublished(t *testing.T) {
	kernel, err := runningKernel()
	if err != nil {
		t.Fatal(err)
	}
	for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN", "CAP_BPF"}, {"CAP_SYS_PTRACE"}} {
		want, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := Default(caps, kernel)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("caps %v: differs", caps)
		}
	}
}

func TestLoadProfile(t *testing.T) {
	published, err := json.Marshal(moby.DefaultProfile())
	if err != nil {
		t.Fatal(err)
	}
	kernel := KernelVersion{6, 18}
	got, err := LoadProfile(published, nil, kernel)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Default(nil, kernel)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Compile(got, runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Compile(want, runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Instructions, b.Instructions) {
		t.Error("the default profile read from JSON compiles to something else")
	}
	resolved, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := LoadProfile(resolved, nil, kernel)
	if err != nil || !reflect.DeepEqual(plain, want) {
		t.Errorf("the resolved profile read from JSON differs (%v)", err)
	}
	old, err := LoadProfile([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"name":"read","action":"SCMP_ACT_ALLOW"}]}`), nil, kernel)
	if err != nil || !allowed(old, "read") {
		t.Errorf("name instead of names: %v", err)
	}
}

func TestLoadProfileErrors(t *testing.T) {
	for name, c := range map[string]struct {
		json string
		kind error
		text string
	}{
		"empty":          {``, ErrInvalid, "JSON"},
		"cut short":      {`{"defaultAction":`, ErrInvalid, "byte"},
		"two values":     {`{"defaultAction":"SCMP_ACT_ALLOW"} {}`, ErrInvalid, "byte"},
		"null":           {`null`, ErrInvalid, "defaultAction"},
		"array":          {`[]`, ErrInvalid, "array"},
		"nothing":        {`{}`, ErrInvalid, "defaultAction: "},
		"not UTF-8":      {"{\"defaultAction\":\"\xff\"}", ErrInvalid, "UTF-8"},
		"huge":           {strings.Repeat(" ", MaxProfileBytes+1), ErrTooLarge, "bytes"},
		"null rule":      {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null]}`, ErrInvalid, "syscalls[0]"},
		"both archs":     {`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86"}]}`, ErrInvalid, "archMap"},
		"both names":     {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"]}]}`, ErrInvalid, "names"},
		"negative index": {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_LOG","args":[{"index":-1,"op":"SCMP_CMP_EQ"}]}]}`, ErrInvalid, "index"},
		"large index":    {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_LOG","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}`, ErrInvalid, "syscalls[0].args[0].index"},
		"huge index":     {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_LOG","args":[{"index":99999999999999999999}]}]}`, ErrInvalid, "index"},
		"bad op":         {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_LOG","args":[{"op":"EQ"}]}]}`, ErrInvalid, "args[0].op"},
		"bad action":     {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"ALLOW"}]}`, ErrInvalid, "syscalls[0].action"},
		"notify":         {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_NOTIFY"}]}`, ErrUnsupported, "listener"},
		"min kernel":     {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_LOG","includes":{"minKernel":"x"}}]}`, ErrInvalid, "kernel"},
		"many rules":     {`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[` + strings.Repeat(`{},`, maxGroups) + `{}]}`, ErrTooLarge, "syscalls"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := LoadProfile([]byte(c.json), nil, KernelVersion{6, 18})
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v; want %v, with %q", err, c.kind, c.text)
			}
		})
	}
}

func TestParseKernelVersion(t *testing.T) {
	for release, want := range map[string]KernelVersion{"6.18.44-fc": {6, 18}, "4.8": {4, 8}, "3.12-1-amd64": {3, 12}} {
		if got, err := ParseKernelVersion(release); got != want || err != nil {
			t.Errorf("%s: %v, %v", release, got, err)
		}
	}
	for _, release := range []string{"", "6", "linux", "-1.2"} {
		if got, err := ParseKernelVersion(release); err == nil {
			t.Errorf("%q: %v", release, got)
		}
	}
}

func TestCache(t *testing.T) {
	var c Cache
	kernel := KernelVersion{6, 18}
	get := func(caps ...string) (*specs.LinuxSeccomp, *Filter) {
		p, err := c.Default(caps, kernel)
		if err != nil {
			t.Error(err)
			return nil, nil
		}
		f, err := c.Compile(p, "amd64")
		if err != nil {
			t.Error(err)
		}
		return p, f
	}
	p, f := get("CAP_A", "CAP_B")
	if q, g := get("CAP_B", "CAP_A", "CAP_B"); p != q || f != g {
		t.Error("the same capabilities are not found again")
	}
	if q, g := get("CAP_SYS_ADMIN"); p == q || f == g {
		t.Error("other capabilities are taken for the same")
	}
	changed := *p
	changed.Flags = []specs.LinuxSeccompFlag{}
	if g, err := c.Compile(&changed, "amd64"); err != nil || f == g {
		t.Errorf("a changed profile is taken for the same (%v)", err)
	}
	if _, err := c.Compile(nil, "amd64"); !errors.Is(err, ErrInvalid) {
		t.Errorf("nil: %v", err)
	}
	if _, err := c.LoadProfile([]byte(`{`), nil, kernel); !errors.Is(err, ErrInvalid) {
		t.Errorf("bad JSON: %v", err)
	}
	var wait sync.WaitGroup
	for i := range 4 {
		wait.Go(func() {
			for j := range 2 * maxCached {
				get("CAP_SYS_PTRACE", strings.Repeat("X", (i+j)%100))
			}
		})
	}
	wait.Wait()
	if len(c.profiles) > maxCached || len(c.filters) > maxCached {
		t.Errorf("%d profiles, %d filters are kept", len(c.profiles), len(c.filters))
	}
}

func FuzzProfile(f *testing.F) {
	published, err := json.Marshal(moby.DefaultProfile())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(published)
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86"],"syscalls":[` +
		`{"names":["read","socket","x"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_GT"},{"index":0,"value":9,"op":"SCMP_CMP_LE"}]},` +
		`{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":5,"value":255,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"},{"index":1,"value":4294967296,"op":"SCMP_CMP_NE"}]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, m := range machines() {
			p, err := LoadProfileFor(m.goarch, text, []string{"CAP_SYS_ADMIN"}, KernelVersion{6, 18})
			if err != nil {
				continue
			}
			p.Architectures = m.archs
			c, err := compile(p, m.goarch, options{})
			if err != nil {
				if !errors.Is(err, ErrTooLarge) && !strings.Contains(err.Error(), "two actions") {
					t.Fatalf("a profile that loads does not compile: %v", err)
				}
				continue
			}
			program := decode(c.Instructions)
			if err := verify(program); err != nil {
				t.Fatal(err)
			}
			if len(text) > 4096 {
				continue
			}
			values := boundaries(p)
			random := rand.New(rand.NewSource(int64(len(text))))
			for range 16 {
				i := random.Intn(len(m.archs))
				d := data{number: m.abis[i].number(uint32(random.Intn(460))), arch: m.audit[i]}
				for k := range d.args {
					d.args[k] = values[random.Intn(len(values))]
				}
				got, _ := run(program, &d)
				if want := reference(p, m.abis[i], &d); got != want {
					t.Fatalf("%+v: %#x, want %#x", d, got, want)
				}
			}
		}
	})
}
