package critest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestVersion(t *testing.T) {
	begin(t)
	v, err := node.CRI.Version(t.Context(), "v1")
	if err != nil {
		t.Fatal(err)
	}
	if v.RuntimeName != node.Name || v.RuntimeApiVersion != "v1" || v.RuntimeVersion == "" || v.Version == "" {
		t.Errorf("version %v", v)
	}
}

func TestStatus(t *testing.T) {
	begin(t)
	s, err := node.CRI.Status(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.Status.Conditions {
		if (c.Type == "RuntimeReady" || c.Type == "NetworkReady") && !c.Status {
			t.Errorf("condition %v", c)
		}
	}
	if len(s.Info) == 0 {
		t.Error("verbose, but no info")
	}
	if s, err = node.CRI.Status(t.Context(), false); err != nil || len(s.Info) != 0 {
		t.Errorf("not verbose, but %v, %v", s, err)
	}
}

func TestRuntimeConfig(t *testing.T) {
	differs(t, "has no RuntimeConfig")
	begin(t)
	c, err := node.CRI.RuntimeConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if bySystemd() != (c.Linux.CgroupDriver == runtimeapi.CgroupDriver_SYSTEMD) {
		t.Errorf("cgroup driver %s", c.Linux.CgroupDriver)
	}
}

func TestSandboxLife(t *testing.T) {
	for _, test := range []struct {
		name    string
		options []podOption
	}{
		{"host network", nil},
		{"pod network", []podOption{podNetwork}},
		{"all of the host", []podOption{namespaces(runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE)}},
		{"shared pids", []podOption{namespaces(runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			begin(t)
			before := time.Now().UnixNano()
			p := run(t, test.options...)
			s := p.status()
			if s.State != runtimeapi.PodSandboxState_SANDBOX_READY {
				t.Errorf("state %s after RunPodSandbox", s.State)
			}
			if s.CreatedAt < before || s.CreatedAt > time.Now().UnixNano() {
				t.Errorf("created at %d, not between the call's begin and now", s.CreatedAt)
			}
			if s.Id != p.id || !proto.Equal(s.Metadata, p.config.Metadata) {
				t.Errorf("status %v", s)
			}
			want := p.config.Linux.SecurityContext.NamespaceOptions
			if got := s.Linux.GetNamespaces().GetOptions(); !proto.Equal(got, want) {
				t.Errorf("namespace options %v, want %v", got, want)
			}
			if err := node.CRI.StopPodSandbox(t.Context(), p.id); err != nil {
				t.Fatal(err)
			}
			if s := p.status(); s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("state %s after StopPodSandbox", s.State)
			}
			if err := node.CRI.StopPodSandbox(t.Context(), p.id); err != nil {
				t.Errorf("second stop: %v", err)
			}
			for range 2 {
				if err := node.CRI.RemovePodSandbox(t.Context(), p.id); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
			_, err := node.CRI.PodSandboxStatus(t.Context(), p.id, false)
			wantCode(t, err, codes.NotFound)
		})
	}
}

func TestSandboxAnnotationsAndLabelsByteForByte(t *testing.T) {
	differs(t, "at most 4096 bytes a label")
	begin(t)
	odd := map[string]string{
		"plain": "value", "empty": "", "space": " a  b\t\n", "quote": `"'\`, "utf": "ünï ☃ 🙂", "a/b.c": strings.Repeat("x", 100_000),
		"json": `{"a":[1,2,{"b":"\u0000"}]}`, "key with space": "1",
	}
	p := run(t, func(c *runtimeapi.PodSandboxConfig) { c.Labels, c.Annotations = odd, odd })
	check := func(what string, labels, annotations map[string]string) {
		t.Helper()
		for k, v := range odd {
			if labels[k] != v || annotations[k] != v {
				t.Errorf("%s: %q: label %.50q, annotation %.50q, want %.50q", what, k, labels[k], annotations[k], v)
			}
		}
		if len(labels) != len(odd) || len(annotations) != len(odd) {
			t.Errorf("%s: %d labels and %d annotations, want %d", what, len(labels), len(annotations), len(odd))
		}
	}
	s := p.status()
	check("status", s.Labels, s.Annotations)
	list, err := node.CRI.ListPodSandbox(t.Context(), &runtimeapi.PodSandboxFilter{Id: p.id})
	if err != nil || len(list) != 1 {
		t.Fatalf("list: %v, %v", list, err)
	}
	check("list", list[0].Labels, list[0].Annotations)
	c := p.create("true", func(c *runtimeapi.ContainerConfig) { c.Labels, c.Annotations = odd, odd })
	cs := c.status()
	check("container status", cs.Labels, cs.Annotations)
	cl, err := node.CRI.ListContainers(t.Context(), &runtimeapi.ContainerFilter{Id: c.id})
	if err != nil || len(cl) != 1 {
		t.Fatalf("list: %v, %v", cl, err)
	}
	check("container list", cl[0].Labels, cl[0].Annotations)
}

func TestListPodSandboxFilters(t *testing.T) {
	begin(t)
	label := func(v string) podOption {
		return func(c *runtimeapi.PodSandboxConfig) { c.Labels = map[string]string{"who": v, "all": node.Tag} }
	}
	a, b := run(t, label("a")), run(t, label("b"))
	if err := node.CRI.StopPodSandbox(t.Context(), b.id); err != nil {
		t.Fatal(err)
	}
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	not := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	for _, test := range []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		want   []*pod
	}{
		{"none", nil, []*pod{a, b}},
		{"empty", &runtimeapi.PodSandboxFilter{}, []*pod{a, b}},
		{"id", &runtimeapi.PodSandboxFilter{Id: a.id}, []*pod{a}},
		{"start of an id", &runtimeapi.PodSandboxFilter{Id: a.id[:16]}, []*pod{a}},
		{"unknown id", &runtimeapi.PodSandboxFilter{Id: "nobody"}, nil},
		{"ready", &runtimeapi.PodSandboxFilter{State: ready}, []*pod{a}},
		{"not ready", &runtimeapi.PodSandboxFilter{State: not}, []*pod{b}},
		{"label", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"who": "b"}}, []*pod{b}},
		{"two labels", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"who": "b", "all": node.Tag}}, []*pod{b}},
		{"label and state", &runtimeapi.PodSandboxFilter{State: ready, LabelSelector: map[string]string{"who": "b"}}, nil},
		{"id and state", &runtimeapi.PodSandboxFilter{Id: a.id, State: ready}, []*pod{a}},
	} {
		t.Run(test.name, func(t *testing.T) {
			list, err := node.CRI.ListPodSandbox(t.Context(), test.filter)
			if err != nil {
				t.Fatal(err)
			}
			var got, want []string
			for _, p := range list {
				got = append(got, p.Id)
			}
			for _, p := range test.want {
				want = append(want, p.id)
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

func TestUnknownSandbox(t *testing.T) {
	begin(t)
	for _, id := range []string{"nobody", strings.Repeat("0", 64)} {
		t.Run(fmt.Sprintf("%.12q", id), func(t *testing.T) {
			if err := node.CRI.StopPodSandbox(t.Context(), id); err != nil && !peer {
				t.Errorf("stop: %v", err) // containerd 1.6 says NotFound
			}
			if err := node.CRI.RemovePodSandbox(t.Context(), id); err != nil {
				t.Errorf("remove: %v", err)
			}
			_, err := node.CRI.PodSandboxStatus(t.Context(), id, false)
			wantCode(t, err, codes.NotFound)
			_, err = node.CRI.CreateContainer(t.Context(), id, containerConfig(t, "true"), podConfig())
			wantCode(t, err, codes.NotFound, codes.Unknown)
		})
	}
	for _, id := range []string{"../../etc", "\x00", strings.Repeat("a", 100_000)} {
		_, err := node.CRI.PodSandboxStatus(t.Context(), id, false)
		wantCode(t, err, codes.NotFound, codes.InvalidArgument)
		wantCode(t, node.CRI.RemovePodSandbox(t.Context(), id), codes.OK, codes.InvalidArgument)
	}
}

func TestRunPodSandboxTwiceIsOnePod(t *testing.T) {
	differs(t, "refuses the second call: name is reserved")
	begin(t)
	p := run(t)
	id, err := node.CRI.RunPodSandbox(t.Context(), p.config, "")
	if err != nil || id != p.id {
		t.Errorf("second RunPodSandbox: %s, %v, want %s", id, err, p.id)
	}
	again := proto.Clone(p.config).(*runtimeapi.PodSandboxConfig)
	again.Metadata.Attempt = 1
	id, err = node.CRI.RunPodSandbox(t.Context(), again, "")
	if err != nil || id == p.id {
		t.Fatalf("another attempt: %s, %v, want another pod than %s", id, err, p.id)
	}
	second := &pod{t: t, id: id, config: again}
	second.remove()
}

func TestRunPodSandboxRefuses(t *testing.T) {
	begin(t)
	for _, test := range []struct {
		name    string
		handler string
		option  podOption
	}{
		{"unknown runtime handler", "no-such-handler", func(*runtimeapi.PodSandboxConfig) {}},
		{"no metadata", "", func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }},
		{"no config", "", nil},
		{"sysctl of the host", "", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_POD
			c.Linux.Sysctls = map[string]string{"kernel.panic": "1"}
		}},
		{"sysctl without its namespace", "", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		}},
		{"sysctl that climbs", "", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_POD
			c.Linux.Sysctls = map[string]string{"net/../../../../tmp/x": "1"}
		}},
		{"long host name", "", func(c *runtimeapi.PodSandboxConfig) {
			podNetwork(c)
			c.Hostname = strings.Repeat("h", 65)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if peer && strings.HasPrefix(test.name, "sysctl that climbs") {
				t.Skip("containerd 1.6: not tried")
			}
			var config *runtimeapi.PodSandboxConfig
			if test.option != nil {
				config = podConfig(test.option)
				prepare(t, config)
			}
			answer, err := raw.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: test.handler})
			if err == nil {
				t.Error("the pod started")
				(&pod{t: t, id: answer.PodSandboxId}).remove()
			}
			if !peer {
				wantCode(t, err, codes.InvalidArgument, codes.FailedPrecondition, codes.NotFound)
			}
		})
	}
}
