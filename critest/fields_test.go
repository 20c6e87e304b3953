package critest

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The fields that no other test looks at; SPECIFICATION-CRI.md has all.

func TestTargetPIDNamespace(t *testing.T) {
	begin(t)
	p := run(t)
	target := p.start("exec sleep 4321")
	create := func(id string) (*container, error) {
		config := containerConfig(t, "cat /proc/1/cmdline | tr '\\0' ' '")
		config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{
			Network: ofNode, Pid: runtimeapi.NamespaceMode_TARGET, TargetId: id,
		}
		id, err := node.CRI.CreateContainer(t.Context(), p.id, config, p.config)
		return &container{t: t, id: id, pod: p, config: config}, err
	}
	c, err := create(target.id)
	if err != nil {
		t.Fatal(err)
	}
	c.start()
	if r := c.wait(); strings.TrimSpace(r.stdout) != "sleep 4321" {
		t.Errorf("%+v, want the target as process 1", r)
	}
	ended := p.start("true")
	ended.wait()
	other := run(t).start("sleep 1000")
	for name, id := range map[string]string{"none": "", "unknown": "0123456789", "ended": ended.id, "of another pod": other.id} {
		if _, err := create(id); err == nil {
			t.Errorf("target %s was accepted", name)
		} else if !peer {
			wantCode(t, err, codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition)
		}
	}
}

// The pod is what RunPodSandbox was told, whatever comes with later requests.
func TestSandboxConfigOfARequest(t *testing.T) {
	differs(t, "wants it")
	begin(t)
	p := run(t, podNetwork)
	other := podConfig(podNetwork)
	other.Hostname, other.LogDirectory = "another", "/no/such/directory"
	other.Linux.CgroupParent = "/no-such-parent"
	for name, sent := range map[string]*runtimeapi.PodSandboxConfig{"none": nil, "empty": {}, "another": other} {
		q := *p
		config := containerConfig(t, "hostname")
		answer, err := raw.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: sent})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		c := &container{t: t, id: answer.ContainerId, pod: &q, config: config}
		c.start()
		if r := c.wait(); strings.TrimSpace(r.stdout) != p.config.Hostname {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if _, err := node.Images.PullImage(t.Context(), spec(image(t, "busybox")), nil, other); err != nil {
		t.Errorf("pull: %v", err)
	}
}

func TestEnvironmentOfBytes(t *testing.T) {
	begin(t)
	p := run(t)
	value := []byte("\xff\xfe=\x01 \n\x80")
	c := p.start(`printf %s "$ODD" | od -An -tx1`, environment([]*runtimeapi.KeyValue{{Key: "ODD", Value: value}}))
	if got, want := strings.TrimSpace(c.wait().stdout), fmt.Sprintf("% x", value); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestDeviceOfTheHost(t *testing.T) {
	begin(t)
	p := run(t)
	device := func(permissions string) containerOption {
		return func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/loop-control", ContainerPath: "/dev/mine", Permissions: permissions}}
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("the host has no device that containers don't have: ", err)
	}
	try := `test -c /dev/mine && echo there; (: < /dev/mine) 2>/dev/null && echo read; (: > /dev/mine) 2>/dev/null && echo write; true`
	for permissions, want := range map[string]string{"rwm": "there\nread\nwrite", "r": "there\nread"} {
		if got := p.output(try, device(permissions)); got != want {
			t.Errorf("%s: %q, want %q", permissions, got, want)
		}
	}
	if err := p.refused("true", func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/no-such-device", ContainerPath: "/dev/mine", Permissions: "r"}}
	}); err == nil || !strings.Contains(err.Error(), "/dev/no-such-device") {
		t.Errorf("a missing device: %v", err)
	}
}

// attachStreams connects to the container's own streams and returns what it ends with.
func (c *container) attachStreams(o remotecommand.StreamOptions) <-chan error {
	c.t.Helper()
	answer, err := raw.Attach(c.t.Context(), &runtimeapi.AttachRequest{
		ContainerId: c.id, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- stream(c.t.Context(), "SPDY", answer.Url, o) }()
	return ended
}

func TestAttachInput(t *testing.T) {
	begin(t)
	p := run(t)
	t.Run("stdin_once", func(t *testing.T) {
		c := p.start("cat; echo ended", func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
		shows := &screen{}
		if err := <-c.attachStreams(remotecommand.StreamOptions{Stdin: strings.NewReader("words\n"), Stdout: shows}); err != nil {
			t.Error(err)
		}
		if r := c.wait(); r.stdout != "words\nended\n" {
			t.Errorf("%+v, the client saw %q", r, shows)
		}
	})
	t.Run("stdin", func(t *testing.T) {
		c := p.start("while read x; do echo got $x; done", func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
		var clients []<-chan error
		for _, word := range []string{"one", "two"} {
			stdin, keyboard := io.Pipe()
			shows := &screen{}
			clients = append(clients, c.attachStreams(remotecommand.StreamOptions{Stdin: stdin, Stdout: shows}))
			if _, err := io.WriteString(keyboard, word+"\n"); err != nil {
				t.Fatal(err)
			}
			shows.await(t, "got "+word)
			if state := c.status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("after %s: %v", word, state)
			}
			if err := keyboard.Close(); err != nil {
				t.Error(err)
			}
		}
		c.stop(0) // until then the clients stay for output
		for _, ended := range clients {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("tty", func(t *testing.T) {
		c := p.start("tty; echo $TERM; read x; echo got-$x", func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true })
		c.prints("xterm")
		stdin, keyboard := io.Pipe()
		defer keyboard.Close()
		shows := &screen{}
		ended := c.attachStreams(remotecommand.StreamOptions{Stdin: stdin, Stdout: shows, Tty: true})
		if _, err := io.WriteString(keyboard, "typed\n"); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if r := c.wait(); !strings.Contains(r.stdout, "/dev/pts/") || !strings.Contains(r.stdout, "got-typed") || r.stderr != "" {
			t.Errorf("%+v", r)
		}
	})
}

func TestStatsFilters(t *testing.T) {
	differs(t, "leaves fields out")
	begin(t)
	labels := map[string]string{"who": "me"}
	p, other := run(t), run(t)
	c := p.start("sleep 1000", func(c *runtimeapi.ContainerConfig) { c.Labels, c.Annotations = labels, map[string]string{"a": "b"} })
	second, third := p.start("sleep 1000"), other.start("sleep 1000")
	for name, test := range map[string]struct {
		filter *runtimeapi.ContainerStatsFilter
		want   []string
	}{
		"none":             {nil, []string{c.id, second.id, third.id}},
		"start of an id":   {&runtimeapi.ContainerStatsFilter{Id: c.id[:20]}, []string{c.id}},
		"pod":              {&runtimeapi.ContainerStatsFilter{PodSandboxId: p.id}, []string{c.id, second.id}},
		"label":            {&runtimeapi.ContainerStatsFilter{LabelSelector: labels}, []string{c.id}},
		"pod and no label": {&runtimeapi.ContainerStatsFilter{PodSandboxId: other.id, LabelSelector: labels}, nil},
		"unknown":          {&runtimeapi.ContainerStatsFilter{Id: "nobody"}, nil},
	} {
		list, err := node.CRI.ListContainerStats(t.Context(), test.filter)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range list {
			got = append(got, s.Attributes.Id)
		}
		slices.Sort(got)
		slices.Sort(test.want)
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	one, err := node.CRI.ContainerStats(t.Context(), c.id)
	if err != nil {
		t.Fatal(err)
	}
	if want := (&runtimeapi.ContainerAttributes{Id: c.id, Metadata: c.config.Metadata, Labels: labels, Annotations: c.config.Annotations}); !proto.Equal(one.Attributes, want) {
		t.Errorf("attributes %v, want %v", one.Attributes, want)
	}
	for name, filter := range map[string]*runtimeapi.PodSandboxStatsFilter{
		"start of an id": {Id: p.id[:20]}, "label": {LabelSelector: p.config.Labels}, "both": {Id: p.id, LabelSelector: p.config.Labels},
	} {
		pods, err := node.CRI.ListPodSandboxStats(t.Context(), filter)
		if err != nil || len(pods) != 1 {
			t.Errorf("%s: %v, %v", name, pods, err)
			continue
		}
		want := &runtimeapi.PodSandboxAttributes{Id: p.id, Metadata: p.config.Metadata, Labels: p.config.Labels, Annotations: p.config.Annotations}
		if !proto.Equal(pods[0].Attributes, want) {
			t.Errorf("attributes %v, want %v", pods[0].Attributes, want)
		}
	}
}

func TestFeaturesInStatus(t *testing.T) {
	differs(t, "has no features in its status")
	begin(t)
	s, err := raw.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	handler := slices.IndexFunc(s.RuntimeHandlers, func(h *runtimeapi.RuntimeHandler) bool { return h.Name == "" })
	if handler < 0 || !s.RuntimeHandlers[handler].Features.GetRecursiveReadOnlyMounts() {
		t.Fatalf("handlers %v: no default handler with recursive_read_only_mounts", s.RuntimeHandlers)
	}
	want := &runtimeapi.RuntimeFeatures{
		SupplementalGroupsPolicy: true, MountOptions: true,
		UserNamespacesHostNetwork: s.RuntimeHandlers[handler].Features.GetUserNamespaces(),
	}
	if !proto.Equal(s.Features, want) {
		t.Errorf("features %v, want %v", s.Features, want)
	}
}
