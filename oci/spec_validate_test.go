package oci

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestValidateSandbox(t *testing.T) {
	type config = runtimeapi.PodSandboxConfig
	linux := func(c *config) *runtimeapi.LinuxPodSandboxConfig { return c.Linux }
	sec := func(c *config) *runtimeapi.LinuxSandboxSecurityContext { return c.Linux.SecurityContext }
	for _, tt := range []struct {
		name   string
		change func(c *config)
		field  string // "": valid
		err    error
	}{
		{"valid", func(*config) {}, "", nil},
		{"no hostname", func(c *config) { c.Hostname = "" }, "", nil},
		{"slice", func(c *config) { linux(c).CgroupParent = "kubepods-burstable-pod1.slice" }, "", nil},
		{"cgroup path", func(c *config) { linux(c).CgroupParent = "/kubepods/burstable/pod1" }, "", nil},
		{"no metadata", func(c *config) { c.Metadata = nil }, "config.metadata", ErrInvalid},
		{"no name", func(c *config) { c.Metadata.Name = "" }, "config.metadata.name", ErrInvalid},
		{"no namespace", func(c *config) { c.Metadata.Namespace = "" }, "config.metadata.namespace", ErrInvalid},
		{"no uid", func(c *config) { c.Metadata.Uid = "" }, "config.metadata.uid", ErrInvalid},
		{"name not UTF-8", func(c *config) { c.Metadata.Name = "a\xff" }, "config.metadata.name", ErrInvalid},
		{"name with newline", func(c *config) { c.Metadata.Name = "a\nb" }, "config.metadata.name", ErrInvalid},
		{"name climbs", func(c *config) { c.Metadata.Name = ".." }, "config.metadata.name", ErrInvalid},
		{"uid is a path", func(c *config) { c.Metadata.Uid = "a/b" }, "config.metadata.uid", ErrInvalid},
		{"name too long", func(c *config) { c.Metadata.Name = strings.Repeat("a", 254) }, "config.metadata.name", ErrInvalid},
		{"hostname too long", func(c *config) { c.Hostname = strings.Repeat("a", 65) }, "config.hostname", ErrInvalid},
		{"hostname with blank", func(c *config) { c.Hostname = "a b" }, "config.hostname", ErrInvalid},
		{"hostname with newline", func(c *config) { c.Hostname = "a\n127.0.0.1 evil" }, "config.hostname", ErrInvalid},
		{"relative log directory", func(c *config) { c.LogDirectory = "var/log" }, "config.log_directory", ErrInvalid},
		{"log directory climbs", func(c *config) { c.LogDirectory = "/var/log/../../etc" }, "config.log_directory", ErrInvalid},
		{"DNS server adds a line", func(c *config) {
			c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"1.1.1.1", "1.1.1.1\nsearch x"}}
		}, "config.dns_config.servers[1]", ErrInvalid},
		{"DNS search of two words", func(c *config) { c.DnsConfig = &runtimeapi.DNSConfig{Searches: []string{"a b"}} }, "config.dns_config.searches[0]", ErrInvalid},
		{"DNS option empty", func(c *config) { c.DnsConfig = &runtimeapi.DNSConfig{Options: []string{""}} }, "config.dns_config.options[0]", ErrInvalid},
		{"port", func(c *config) { c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 65536}} }, "config.port_mappings[0].host_port", ErrInvalid},
		{"negative port", func(c *config) { c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: -1}} }, "config.port_mappings[0].container_port", ErrInvalid},
		{"protocol", func(c *config) { c.PortMappings = []*runtimeapi.PortMapping{{Protocol: 9}} }, "config.port_mappings[0].protocol", ErrInvalid},
		{"host IP", func(c *config) { c.PortMappings = []*runtimeapi.PortMapping{{HostIp: "localhost"}} }, "config.port_mappings[0].host_ip", ErrInvalid},
		{"nil port", func(c *config) { c.PortMappings = []*runtimeapi.PortMapping{nil} }, "config.port_mappings[0]", ErrInvalid},
		{"cgroup climbs", func(c *config) { linux(c).CgroupParent = "/kubepods/../system.slice" }, "config.linux.cgroup_parent", ErrInvalid},
		{"cgroup relative", func(c *config) { linux(c).CgroupParent = "kubepods" }, "config.linux.cgroup_parent", ErrInvalid},
		{"slice with empty part", func(c *config) { linux(c).CgroupParent = "a--b.slice" }, "config.linux.cgroup_parent", ErrInvalid},
		{"sysctl", func(c *config) { linux(c).Sysctls = map[string]string{"kernel.core_pattern": "x"} }, "config.linux.sysctls[kernel.core_pattern]", ErrInvalid},
		{"overhead", func(c *config) { linux(c).Overhead = &runtimeapi.LinuxContainerResources{CpuShares: -1} }, "config.linux.overhead.cpu_shares", ErrInvalid},
		{"group without user", func(c *config) { sec(c).RunAsGroup = int64Value(1) }, "config.linux.security_context.run_as_group", ErrInvalid},
		{"uid", func(c *config) { sec(c).RunAsUser = int64Value(-5) }, "config.linux.security_context.run_as_user", ErrInvalid},
		{"user namespace without mappings", func(c *config) { sec(c).NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{} }, "config.linux.security_context.namespace_options.userns_options.uids", ErrInvalid},
		{"user namespace without id 0", func(c *config) { userNS(c, 1, 100000, 10) }, "config.linux.security_context.namespace_options.userns_options.uids", ErrInvalid},
		{"user namespace, overlap inside", func(c *config) { userNS(c, 0, 100000, 10, 9, 200000, 10) }, "config.linux.security_context.namespace_options.userns_options.uids", ErrInvalid},
		{"user namespace, overlap outside", func(c *config) { userNS(c, 0, 100000, 10, 10, 100005, 10) }, "config.linux.security_context.namespace_options.userns_options.uids", ErrInvalid},
		{"user namespace, too far", func(c *config) { userNS(c, 0, 4294967290, 10) }, "config.linux.security_context.namespace_options.userns_options.uids[0]", ErrInvalid},
		{"user namespace, host PIDs", func(c *config) {
			userNS(c, 0, 100000, 10)
			sec(c).NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
		}, "config.linux.security_context.namespace_options.pid", ErrInvalid},
		{"user namespace, host IPC", func(c *config) {
			userNS(c, 0, 100000, 10)
			sec(c).NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE
		}, "config.linux.security_context.namespace_options.ipc", ErrInvalid},
		{"user namespace of a container", func(c *config) {
			sec(c).NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_CONTAINER}
		}, "config.linux.security_context.namespace_options.userns_options.mode", ErrInvalid},
		{"target", func(c *config) { sec(c).NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET }, "config.linux.security_context.namespace_options.pid", ErrInvalid},
		{"unknown mode", func(c *config) { sec(c).NamespaceOptions.Ipc = 17 }, "config.linux.security_context.namespace_options.ipc", ErrInvalid},
		{"SELinux label injection", func(c *config) { sec(c).SelinuxOptions = &runtimeapi.SELinuxOption{Type: "t:s0"} }, "config.linux.security_context.selinux_options.type", ErrInvalid},
		{"huge annotations", func(c *config) { c.Annotations = map[string]string{"a": strings.Repeat("x", maxMetadataBytes)} }, "config.annotations", ErrInvalid},
		{"label not UTF-8", func(c *config) { c.Labels = map[string]string{"a": "\xff"} }, "config.labels", ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := proto.CloneOf(testContainer().Pod)
			tt.change(c)
			checkFieldError(t, ValidateSandbox(c), tt.field, tt.err)
		})
	}
	checkFieldError(t, ValidateSandbox(nil), "config.metadata", ErrInvalid)
}

func checkFieldError(t *testing.T, err error, field string, want error) {
	t.Helper()
	if want == nil {
		if err != nil {
			t.Errorf("error %v", err)
		}
		return
	}
	var fe *FieldError
	if !errors.As(err, &fe) || fe.Field != field || !errors.Is(err, want) {
		t.Errorf("error %v, want %v in field %s", err, want, field)
	}
	if err != nil && len(err.Error()) > 4096 {
		t.Errorf("error of %d bytes", len(err.Error()))
	}
}

func env(key, value string) []*runtimeapi.KeyValue {
	return []*runtimeapi.KeyValue{{Key: key, Value: []byte(value)}}
}

// Half a megabyte of environment is refused before anything is made, in
// whatever way it is put together.
func TestValidateContainerSizes(t *testing.T) {
	many := func(n, size int) []*runtimeapi.KeyValue {
		var out []*runtimeapi.KeyValue
		for i := range n {
			out = append(out, &runtimeapi.KeyValue{Key: fmt.Sprintf("V%06d", i), Value: []byte(strings.Repeat("x", size))})
		}
		return out
	}
	for _, tt := range []struct {
		name   string
		change func(c *runtimeapi.ContainerConfig)
		field  string
	}{
		{"100 KiB in one variable", func(c *runtimeapi.ContainerConfig) { c.Envs = env("A", strings.Repeat("x", 100<<10)) }, ""},
		{"400 KiB in 4000 variables", func(c *runtimeapi.ContainerConfig) { c.Envs = many(4000, 80) }, ""},
		{"512 KiB in one variable", func(c *runtimeapi.ContainerConfig) { c.Envs = env("A", strings.Repeat("x", 512<<10)) }, "config.envs[0].value"},
		{"500 kB in 5000 variables", func(c *runtimeapi.ContainerConfig) { c.Envs = many(5000, 92) }, "config.envs[4509]"},
		{"a huge argument", func(c *runtimeapi.ContainerConfig) { c.Args = []string{"a", strings.Repeat("x", 128<<10)} }, "config.args[1]"},
		{"many arguments", func(c *runtimeapi.ContainerConfig) { c.Args = make([]string, 100_000) }, "config.args"},
		{"NUL in an argument", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"a", "b\x00c"} }, "config.command[1]"},
		{"nil variable", func(c *runtimeapi.ContainerConfig) { c.Envs = []*runtimeapi.KeyValue{nil} }, "config.envs[0].key"},
		{"nil mount", func(c *runtimeapi.ContainerConfig) { c.Mounts = []*runtimeapi.Mount{nil} }, "config.mounts[0]"},
		{"writable image", func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: "a"}}}
		}, "config.mounts[0].readonly"},
		{"nil device", func(c *runtimeapi.ContainerConfig) { c.Devices = []*runtimeapi.Device{nil} }, "config.devices[0]"},
		{"long working directory", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/" + strings.Repeat("x", 5000) }, "config.working_dir"},
		{"long log path", func(c *runtimeapi.ContainerConfig) { c.LogPath = strings.Repeat("x", 5000) }, "config.log_path"},
		{"absolute log path", func(c *runtimeapi.ContainerConfig) { c.LogPath = "/etc/passwd" }, "config.log_path"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := testContainer()
			tt.change(c.Config)
			err := ValidateContainer(c.Config, c.Pod)
			if tt.field == "" {
				checkFieldError(t, err, "", nil)
				return
			}
			checkFieldError(t, err, tt.field, ErrInvalid)
		})
	}
	checkFieldError(t, ValidateContainer(nil, nil), "config.metadata", ErrInvalid)
}

// The image's environment counts too.
func TestContainerSpecImageTooLarge(t *testing.T) {
	c := readSpecCase(t, "testdata/spec/kubelet.json")
	for i := range 5000 {
		c.Image.Config.Env = append(c.Image.Config.Env, fmt.Sprintf("V%d=%s", i, strings.Repeat("x", 100)))
	}
	if _, err := ContainerSpec(c); !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v", err)
	}
}

// No message, however odd, makes ContainerSpec panic or return a spec that
// holds what cannot be executed.
func FuzzContainerSpec(f *testing.F) {
	add := func(c *Container) {
		config, err := proto.Marshal(c.Config)
		if err != nil {
			f.Fatal(err)
		}
		pod, err := proto.Marshal(c.Pod)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(config, pod)
	}
	add(testContainer())
	rich := testContainer()
	rich.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/a", HostPath: "/b", MountOptions: []string{"noexec"}}}
	rich.Config.Envs = env("A", "b")
	rich.Config.Linux = &runtimeapi.LinuxContainerConfig{
		Resources:       &runtimeapi.LinuxContainerResources{CpuShares: 2, MemoryLimitInBytes: 1 << 20},
		SecurityContext: &runtimeapi.LinuxContainerSecurityContext{Privileged: true},
	}
	add(rich)
	f.Fuzz(func(t *testing.T, configData, podData []byte) {
		c := testContainer()
		c.Config, c.Pod = &runtimeapi.ContainerConfig{}, &runtimeapi.PodSandboxConfig{}
		if proto.Unmarshal(configData, c.Config) != nil || proto.Unmarshal(podData, c.Pod) != nil {
			return
		}
		_ = ValidateSandbox(c.Pod)
		_ = LeftOut(c)
		spec, err := ContainerSpec(c)
		if err != nil {
			return
		}
		for _, s := range append(append([]string{spec.Process.Cwd}, spec.Process.Args...), spec.Process.Env...) {
			if strings.ContainsRune(s, 0) {
				t.Errorf("NUL byte in %q", s)
			}
		}
		for _, m := range spec.Mounts {
			if !strings.HasPrefix(m.Destination, "/") || strings.Contains(m.Destination+"/", "/../") {
				t.Errorf("mount on %q", m.Destination)
			}
		}
	})
}

// userNS gives the pod a user namespace with mappings inside, outside, length each.
func userNS(c *runtimeapi.PodSandboxConfig, m ...uint32) {
	ns := &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}
	for ; len(m) > 0; m = m[3:] {
		ns.Uids = append(ns.Uids, &runtimeapi.IDMapping{ContainerId: m[0], HostId: m[1], Length: m[2]})
	}
	ns.Gids = ns.Uids
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = ns
}
