package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// specCase is what a testdata/spec/NAME.json holds. What it leaves out is as
// testContainer has it.
type specCase struct {
	Comment    string                         `json:"comment"`
	Pod        *runtimeapi.PodSandboxConfig   `json:"pod"`
	Config     *runtimeapi.ContainerConfig    `json:"config"`
	Image      *imagespec.Image               `json:"image"`
	User       *User                          `json:"user"`
	Host       *Host                          `json:"host"` // on top of testHost
	Namespaces *Namespaces                    `json:"namespaces"`
	Cgroup     string                         `json:"cgroup"`
	Files      *PodFiles                      `json:"files"`
	Labels     Labels                         `json:"labels"`
	Rlimits    []specs.POSIXRlimit            `json:"rlimits"`
	Devices    map[string][]specs.LinuxDevice `json:"devices"`
	Seccomp    *specs.LinuxSeccomp            `json:"seccomp"`
}

// specGolden is what a testdata/spec/NAME.golden.json holds.
type specGolden struct {
	Error   string      `json:"error,omitempty"`
	Spec    *specs.Spec `json:"spec,omitempty"`
	LeftOut []string    `json:"leftOut,omitempty"`
}

func testHost() *Host {
	return &Host{
		Hostname: "node1", Kernel: "6.18.5",
		Capabilities: capabilityNames(), Bounding: capabilityNames(),
		HugepageSizes: []string{"2MB", "1GB"}, Swap: true, SysResource: true, CgroupV2: true,
		PrivilegedDevices: []specs.LinuxDevice{
			{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229},
			{Path: "/dev/sda", Type: "b", Major: 8},
		},
	}
}

func testContainer() *Container {
	return &Container{
		ID: "c0ffee",
		Pod: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "ns", Uid: "uid-1"},
			Hostname: "pod",
			Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			}},
		},
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "app"},
			Image:    &runtimeapi.ImageSpec{Image: "registry.example/app:1"},
			Command:  []string{"/bin/app"},
		},
		User:       User{Home: "/root", AdditionalGids: []uint32{0}},
		Host:       testHost(),
		Rootfs:     "rootfs",
		Namespaces: Namespaces{Net: "/run/pod/ns/net", IPC: "/run/pod/ns/ipc", UTS: "/run/pod/ns/uts"},
		Cgroup:     "/kubepods/besteffort/poduid-1/c0ffee",
		Files: PodFiles{
			Hostname: "/run/pod/hostname", Hosts: "/run/pod/hosts", ResolvConf: "/run/pod/resolv.conf", Shm: "/run/pod/shm",
		},
	}
}

func readSpecCase(t *testing.T, file string) *Container {
	t.Helper()
	c := testContainer()
	in := specCase{User: &c.User, Host: c.Host, Namespaces: &c.Namespaces, Files: &c.Files, Cgroup: c.Cgroup}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if in.Comment == "" {
		t.Errorf("%s has no comment", file)
	}
	if in.Pod != nil {
		c.Pod = in.Pod
	}
	if in.Config != nil {
		c.Config = in.Config
	}
	c.Cgroup, c.Image, c.Labels, c.Rlimits, c.Devices, c.Seccomp = in.Cgroup, in.Image, in.Labels, in.Rlimits, in.Devices, in.Seccomp
	return c
}

func TestContainerSpecGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/spec/*.json")
	if err != nil || len(inputs) == 0 {
		t.Fatal("no testdata/spec/*.json", err)
	}
	for _, input := range inputs {
		name, isInput := strings.CutSuffix(input, ".json")
		if strings.HasSuffix(name, ".golden") || !isInput {
			continue
		}
		t.Run(filepath.Base(name), func(t *testing.T) {
			c := readSpecCase(t, input)
			golden := specGolden{}
			spec, err := ContainerSpec(c)
			if err != nil {
				golden.Error = err.Error()
			} else {
				golden.Spec, golden.LeftOut = spec, LeftOut(c)
			}
			got, err := json.MarshalIndent(&golden, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			if *update {
				if err := os.WriteFile(name+".golden.json", got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(name + ".golden.json")
			if err != nil {
				t.Fatal(err, "; go test ./oci -update writes it")
			}
			if !bytes.Equal(got, want) {
				t.Errorf("differs from %s.golden.json; if that is meant: go test ./oci -update, then git diff\n%s", name, got)
			}
		})
	}
}

// The same input gives the same spec, the input stays as it was, and no two specs
// share what one of them might change.
func TestContainerSpecPure(t *testing.T) {
	c := readSpecCase(t, "testdata/spec/kubelet.json")
	before, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	first, err := ContainerSpec(c)
	if err != nil {
		t.Fatal(err)
	}
	firstJSON, _ := json.Marshal(first)
	second, err := ContainerSpec(c)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(first, second) {
		t.Error("two specs of one container differ")
	}
	for i := range first.Mounts {
		first.Mounts[i].Options[0] = "changed"
	}
	first.Process.Env[0], first.Process.Args[0] = "changed", "changed"
	first.Process.User.AdditionalGids[0] = 12345
	if again, _ := json.Marshal(second); !bytes.Equal(again, firstJSON) {
		t.Error("two specs share memory")
	}
	after, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("ContainerSpec changed its argument")
	}
}

func TestEnvironment(t *testing.T) {
	for _, tt := range []struct {
		name  string
		image []string
		envs  []*runtimeapi.KeyValue
		tty   bool
		home  string
		want  []string
	}{
		{
			name: "nothing given",
			want: []string{"HOSTNAME=pod", defaultPath, "HOME=/root"},
		},
		{
			name: "request over image over default", tty: true, home: "/home/u",
			image: []string{"PATH=/image", "A=image", "HOSTNAME=fake", "B=1"},
			envs:  []*runtimeapi.KeyValue{{Key: "A", Value: []byte("request")}, {Key: "C", Value: []byte("a=b\nc")}},
			want:  []string{"PATH=/image", "A=request", "HOSTNAME=pod", "B=1", "C=a=b\nc", "TERM=xterm", "HOME=/home/u"},
		},
		{
			name: "HOME, TERM and HOSTNAME of the request", tty: true,
			envs: []*runtimeapi.KeyValue{{Key: "HOME", Value: []byte("/h")}, {Key: "TERM", Value: []byte("vt100")}, {Key: "HOSTNAME", Value: []byte("x")}},
			want: []string{"HOSTNAME=x", "HOME=/h", "TERM=vt100", defaultPath},
		},
		{
			name:  "image's entries without a name",
			image: []string{"NOVALUE", "=x", "OK="},
			want:  []string{"OK=", "HOSTNAME=pod", defaultPath, "HOME=/root"},
		},
		{
			name: "bytes that are no text",
			envs: []*runtimeapi.KeyValue{{Key: "BIN", Value: []byte{0xff, 0xfe, '\n', 1}}},
			want: []string{"HOSTNAME=pod", "BIN=\xff\xfe\n\x01", defaultPath, "HOME=/root"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := testContainer()
			c.Image = &imagespec.Image{Config: imagespec.ImageConfig{Env: tt.image}}
			c.Config.Envs, c.Config.Tty = tt.envs, tt.tty
			if tt.home != "" {
				c.User.Home = tt.home
			}
			got, err := c.env()
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("env = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestArgs(t *testing.T) {
	for _, tt := range []struct {
		entrypoint, cmd, command, args, want []string
	}{
		{[]string{"e"}, []string{"c"}, nil, nil, []string{"e", "c"}},
		{[]string{"e"}, []string{"c"}, nil, []string{"a"}, []string{"e", "a"}},
		{[]string{"e"}, []string{"c"}, []string{"x"}, nil, []string{"x"}},
		{[]string{"e"}, []string{"c"}, []string{"x"}, []string{"a"}, []string{"x", "a"}},
		{nil, []string{"c"}, nil, nil, []string{"c"}},
		{nil, []string{"c"}, nil, []string{"a"}, []string{"a"}},
		{[]string{"e"}, nil, nil, nil, []string{"e"}},
		{nil, nil, nil, []string{"a", "b"}, []string{"a", "b"}},
		{nil, nil, nil, nil, nil},
		{nil, nil, []string{""}, nil, nil},
	} {
		c := testContainer()
		c.Image = &imagespec.Image{Config: imagespec.ImageConfig{Entrypoint: tt.entrypoint, Cmd: tt.cmd}}
		c.Config.Command, c.Config.Args = tt.command, tt.args
		got, err := c.args()
		if tt.want == nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%+v: %v, want an error", tt, err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%+v: got %q, %v", tt, got, err)
		}
	}
}

func TestEncodeSpec(t *testing.T) {
	spec := &specs.Spec{Version: specs.Version, Process: &specs.Process{
		Args: []string{"a"}, Env: []string{"A=text", "B=\xff\x00\xfe", "C=\u2028<&>\n", "D=\xc3"},
	}}
	data, err := EncodeSpec(spec)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeSpec(data)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, spec) {
		t.Errorf("got %q, want %q", got.Process.Env, spec.Process.Env)
	}
	// Any reader of the runtime specification understands the rest.
	var plain specs.Spec
	if err := json.Unmarshal(data, &plain); err != nil || len(plain.Process.Env) != 4 || plain.Process.Env[0] != "A=text" {
		t.Errorf("plain reader: %+v, %v", plain.Process, err)
	}
	for _, bad := range []string{``, `null`, `[]`, `{"process":{}}`, `{"ociVersion":"1","criRuntimeBinaryEnv":{"0":"QQ=="}}`, `{"ociVersion":"1","process":{"env":["A=b"]},"criRuntimeBinaryEnv":{"-1":"QQ=="}}`} {
		if _, err := DecodeSpec([]byte(bad)); err == nil {
			t.Errorf("DecodeSpec(%q): no error", bad)
		}
	}
}

func FuzzDecodeSpec(f *testing.F) {
	f.Add([]byte(`{"ociVersion":"1.3.0","process":{"env":["A=\ufffd"]},"criRuntimeBinaryEnv":{"0":"Qf8="}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, err := DecodeSpec(data)
		if err != nil {
			return
		}
		again, err := EncodeSpec(spec)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeSpec(again)
		if err != nil {
			t.Fatal(err)
		}
		if spec.Process != nil && !reflect.DeepEqual(spec.Process.Env, back.Process.Env) && len(spec.Process.Env) > 0 {
			t.Errorf("env %q came back as %q", spec.Process.Env, back.Process.Env)
		}
	})
}

func TestExecProcess(t *testing.T) {
	c := testContainer()
	spec, err := ContainerSpec(c)
	if err != nil {
		t.Fatal(err)
	}
	before, _ := json.Marshal(spec)
	p := ExecProcess(spec, []string{"sh", "-c", "true"}, true)
	if !p.Terminal || !reflect.DeepEqual(p.Args, []string{"sh", "-c", "true"}) || p.Env[len(p.Env)-1] != defaultTerm {
		t.Errorf("process %+v", p)
	}
	if !reflect.DeepEqual(p.User, spec.Process.User) || !reflect.DeepEqual(p.Capabilities, spec.Process.Capabilities) || p.Cwd != spec.Process.Cwd {
		t.Error("user, capabilities or directory differ from the container's")
	}
	p.Env[0] = "changed"
	if after, _ := json.Marshal(spec); !bytes.Equal(before, after) {
		t.Error("ExecProcess changed the container's spec")
	}
	if p := ExecProcess(spec, []string{"true"}, false); p.Terminal || len(p.Env) != len(spec.Process.Env) {
		t.Errorf("without terminal: %+v", p)
	}
}

func BenchmarkContainerSpec(b *testing.B) {
	c := testContainer()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ContainerSpec(c); err != nil {
			b.Fatal(err)
		}
	}
}
