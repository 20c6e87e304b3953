package oci

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// testOptions are those of a host with cgroup v1 or v2, the same everywhere.
func testOptions(v2 bool) *CompileOptions {
	o := &CompileOptions{LastCap: 40, Own: [3]bool{true, true, true}, Seccomp: make([]byte, 8*3)}
	if v2 {
		o.CgroupV2 = true
		return o
	}
	o.TaskFiles = []string{"/sys/fs/cgroup/memory/pod/c/tasks", "/sys/fs/cgroup/pids/pod/c/tasks"}
	o.Hierarchies = []Hierarchy{{Name: "memory", Options: []string{"memory"}}, {Name: "systemd", Options: []string{"name=systemd"}}}
	return o
}

// readSpec reads a golden spec; nil for one whose outcome is an error.
func readSpec(t testing.TB, path string) *specs.Spec {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var golden struct{ Spec json.RawMessage }
	if err := json.Unmarshal(data, &golden); err != nil {
		t.Fatal(path, err)
	}
	if golden.Spec == nil {
		return nil
	}
	spec, err := DecodeSpec(golden.Spec)
	if err != nil {
		t.Fatal(path, err)
	}
	return spec
}

// compileSpec compiles the spec of a golden file.
func compileSpec(t testing.TB, spec *specs.Spec, o *CompileOptions) *Program {
	t.Helper()
	o.Sources = GivenSources(spec)
	p, err := Compile(spec, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// minimalSpec is the least that Compile takes.
func minimalSpec() *specs.Spec {
	return &specs.Spec{
		Process: &specs.Process{Args: []string{"true"}, Cwd: "/", Capabilities: &specs.LinuxCapabilities{}},
		Root:    &specs.Root{Path: "/"},
		Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}}},
	}
}

// TestCompileGolden compares the programs of the golden specs with those of
// before: every system call of a container's set-up, in order.
func TestCompileGolden(t *testing.T) {
	for _, c := range []struct {
		spec string
		v2   bool
	}{
		{"minimal", false},
		{"minimal", true},
		{"kubelet", false},
		{"privileged", false},
		{"mounts", false},
		{"readonly-rootfs-tty", false},
		{"shared-pid", false},
		{"host-namespaces", true},
		{"device", false},
		{"selinux", true},
		{"userns", false},
		{"userns", true},
		{"userns-host-network", false},
	} {
		name := c.spec + map[bool]string{false: ".v1", true: ".v2"}[c.v2]
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", "spec", c.spec+".golden.json")
			if _, err := os.Stat(path); err != nil {
				t.Fatal(err)
			}
			p := compileSpec(t, readSpec(t, path), testOptions(c.v2))
			var got bytes.Buffer
			if err := p.Print(&got); err != nil {
				t.Fatal(err)
			}
			compareGolden(t, filepath.Join("testdata", "program", name+".golden.txt"), got.Bytes())
			checkEncoding(t, p)
		})
	}
}

// TestCompileExecGolden does the same for the programs of execs.
func TestCompileExecGolden(t *testing.T) {
	spec := readSpec(t, filepath.Join("testdata", "spec", "kubelet.golden.json"))
	for name, o := range map[string]*CompileOptions{"exec.v1": testOptions(false), "exec-terminal.v1": testOptions(false), "exec-terminal.v2": testOptions(true)} {
		t.Run(name, func(t *testing.T) {
			process := ExecProcess(spec, []string{"sh", "-c", "true"}, strings.Contains(name, "terminal"))
			if process.Terminal {
				process.ConsoleSize = &specs.Box{Width: 80, Height: 25}
			}
			p, err := CompileExec(spec, process, o)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := p.Print(&got); err != nil {
				t.Fatal(err)
			}
			compareGolden(t, filepath.Join("testdata", "program", name+".golden.txt"), got.Bytes())
			checkEncoding(t, p)
		})
	}
}

func compareGolden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, got, 0o644)); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err, "; go test ./oci -update writes it")
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; go test ./oci -update shows how\n%s", path, firstDifference(string(want), string(got)))
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return "- " + w[i] + "\n+ " + g[i]
		}
	}
	return "one is longer"
}

// checkEncoding verifies what the monitor would refuse.
func checkEncoding(t *testing.T, p *Program) {
	t.Helper()
	le := binary.LittleEndian
	b := p.Encode()
	if got := le.Uint64(b[8:]); got != uint64(len(b)) {
		t.Errorf("total is %d of %d bytes", got, len(b))
	}
	data := le.Uint64(b[32:]) + 8*uint64(le.Uint32(b[20:]))
	for i := range p.Steps {
		s := b[headerSize+i*stepSize:]
		left := len(p.Steps) - i - 1
		if int(le.Uint16(s[24:])) > left || int(le.Uint16(s[26:])) > left {
			t.Errorf("%s skips past the end", p.StepName(i))
		}
		for a := range 6 {
			v := le.Uint64(s[32+8*a:])
			if le.Uint16(s[4:])>>a&1 == 1 && (v < data || v >= uint64(len(b))) {
				t.Errorf("%s: argument %d is at %d, outside the data", p.StepName(i), a, v)
			}
			if le.Uint16(s[6:])>>a&1 == 1 && v >= maxSlots {
				t.Errorf("%s: argument %d is slot %d", p.StepName(i), a, v)
			}
		}
	}
	for i := range p.relocs {
		at := le.Uint64(b[le.Uint64(b[32:])+8*uint64(i):])
		if to := le.Uint64(b[at:]); at < data || to < data || to > uint64(len(b)) {
			t.Errorf("relocation %d at %d leads to %d", i, at, to)
		}
	}
}

// TestSlotsAreSet follows a program and finds a slot that is used before a step has set it.
func TestSlotsAreSet(t *testing.T) {
	paths, err := filepath.Glob("testdata/spec/*.golden.json")
	if err != nil || len(paths) == 0 {
		t.Fatal("no golden specs", err)
	}
	for _, path := range paths {
		spec := readSpec(t, path)
		if spec == nil {
			continue
		}
		p := compileSpec(t, spec, testOptions(false))
		set := map[uint64]bool{slotStdin: true, slotStdout: true, slotStderr: true}
		for i := range p.Files {
			set[uint64(slotFiles+i)] = true
		}
		for i := range p.Steps {
			for _, a := range p.Steps[i].args {
				if a.kind == argSlot && !set[a.value] {
					t.Errorf("%s: %s uses an empty slot: %s", path, p.StepName(i), &p.Steps[i])
				}
			}
			if s := p.Steps[i].save; s >= 0 {
				set[uint64(s)] = true
			}
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *specs.Spec)
		want   error
		text   string
	}{
		"no process": {func(s *specs.Spec) { s.Process = nil }, ErrInvalid, "process"},
		"no command": {func(s *specs.Spec) { s.Process.Args = nil }, ErrInvalid, "process.args"},
		"empty":      {func(s *specs.Spec) { s.Process.Args = []string{""} }, ErrInvalid, "process.args[0]"},
		"NUL":        {func(s *specs.Spec) { s.Process.Env = []string{"A=b\x00c"} }, ErrInvalid, "NUL"},
		"capability": {func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_X"} }, ErrInvalid, "CAP_X"},
		"rlimit":     {func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, ErrInvalid, "RLIMIT_X"},
		"relative":   {func(s *specs.Spec) { s.Mounts = []specs.Mount{{Destination: "x", Type: "tmpfs"}} }, ErrInvalid, "mounts[0]"},
		"id map":     {func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{}} }, ErrInvalid, "uidMappings"},
		"new user namespace": {func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		}, ErrUnsupported, "without a path"},
		"unmapped user": {func(s *specs.Spec) {
			userSpec(s)
			s.Process.User.UID = 10
		}, ErrInvalid, "user 10"},
		"unmapped group": {func(s *specs.Spec) {
			userSpec(s)
			s.Process.User.AdditionalGids = []uint32{7, 10}
		}, ErrInvalid, "group 10"},
		"device in user namespace": {func(s *specs.Spec) {
			userSpec(s)
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x"}}
		}, ErrUnsupported, "bind mounts"},
		"user namespace, host PIDs": {func(s *specs.Spec) {
			userSpec(s)
			s.Linux.Namespaces = s.Linux.Namespaces[:2]
		}, ErrUnsupported, "PID namespace"},
		"mapped mount": {func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/x", Type: "bind", Source: "/x", UIDMappings: []specs.LinuxIDMapping{{}}}}
		}, ErrInvalid, "uidMappings"},
		"time": {func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		}, ErrUnsupported, "time"},
		"host mounts":  {func(s *specs.Spec) { s.Linux.Namespaces = nil }, ErrUnsupported, "mount namespace"},
		"hooks":        {func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}} }, ErrUnsupported, "hooks"},
		"device place": {func(s *specs.Spec) { devSpec(s, "/etc/x") }, ErrUnsupported, "/etc/x"},
		"too many":     {manyMounts, ErrInvalid, "too many mounts"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := minimalSpec()
			c.change(spec)
			_, err := Compile(spec, testOptions(false))
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %v naming %q", err, c.want, c.text)
			}
		})
	}
}

func userSpec(s *specs.Spec) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "/u"}, specs.LinuxNamespace{Type: specs.PIDNamespace})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 1000, Size: 10}}
	s.Linux.GIDMappings = s.Linux.UIDMappings
}

func devSpec(s *specs.Spec, path string) {
	s.Mounts = []specs.Mount{{Destination: "/dev", Type: "tmpfs"}}
	s.Linux.Devices = []specs.LinuxDevice{{Path: path, Type: "c", Major: 1, Minor: 3}}
}

func manyMounts(s *specs.Spec) {
	for range maxSlots {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/m", Source: "/m", Type: "bind"})
	}
}

// TestExecuteSearchesPath checks one execve a candidate, in the order of PATH.
func TestExecuteSearchesPath(t *testing.T) {
	for name, c := range map[string]struct {
		args, env, want []string
	}{
		"absolute": {[]string{"/bin/x"}, nil, []string{`"/bin/x"`}},
		"relative": {[]string{"./x"}, nil, []string{`"./x"`}},
		"default":  {[]string{"x"}, nil, []string{`"/usr/local/sbin/x"`, `"/usr/local/bin/x"`, `"/usr/sbin/x"`, `"/usr/bin/x"`, `"/sbin/x"`, `"/bin/x"`}},
		"last":     {[]string{"x"}, []string{"PATH=/a", "PATH=/b:/c"}, []string{`"/b/x"`, `"/c/x"`}},
		"here":     {[]string{"x"}, []string{"PATH=:/b"}, []string{`"./x"`, `"/b/x"`}},
	} {
		t.Run(name, func(t *testing.T) {
			spec := minimalSpec()
			spec.Process.Args, spec.Process.Env = c.args, c.env
			p, err := Compile(spec, testOptions(false))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i := range p.Steps {
				if p.Steps[i].nr == unix.SYS_EXECVE {
					got = append(got, p.Steps[i].args[0].String())
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if last := p.Steps[len(p.Steps)-1].nr; last != unix.SYS_EXECVE && last != opFail {
				t.Errorf("the last step is %s", syscallName(last))
			}
		})
	}
}

// TestSeccompComesLast checks that after the filter only capset and execve are called.
func TestSeccompComesLast(t *testing.T) {
	for _, nnp := range []bool{false, true} {
		spec := minimalSpec()
		spec.Process.NoNewPrivileges = nnp
		p, err := Compile(spec, testOptions(false))
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(p.Steps, func(s Step) bool { return s.nr == unix.SYS_SECCOMP })
		if at < 0 {
			t.Fatal("no filter is loaded")
		}
		for _, s := range p.Steps[at+1:] {
			if s.nr != unix.SYS_EXECVE && s.nr != opFail && (nnp || s.nr != unix.SYS_CAPSET) {
				t.Errorf("no_new_privs %v: %s after the filter", nnp, &s)
			}
		}
	}
}

func FuzzCompile(f *testing.F) {
	paths, _ := filepath.Glob("testdata/spec/*.golden.json")
	for _, path := range paths {
		if spec := readSpec(f, path); spec != nil {
			data, err := EncodeSpec(spec)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, err := DecodeSpec(data)
		if err != nil {
			return
		}
		p, err := Compile(spec, testOptions(false))
		if err == nil {
			checkEncoding(t, p)
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	spec := readSpec(b, "testdata/spec/minimal.golden.json")
	o := testOptions(false)
	for b.Loop() {
		p, err := Compile(spec, o)
		if err != nil {
			b.Fatal(err)
		}
		p.Encode()
	}
}
