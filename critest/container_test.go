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

func TestContainerLife(t *testing.T) {
	begin(t)
	p := run(t)
	before := time.Now().UnixNano()
	c := p.create("echo out; echo err >&2; exit 7")
	s := c.status()
	if s.State != runtimeapi.ContainerState_CONTAINER_CREATED || s.CreatedAt < before || s.StartedAt != 0 || s.FinishedAt != 0 {
		t.Errorf("after CreateContainer: %v", s)
	}
	if s.LogPath != c.logPath() || !proto.Equal(s.Metadata, c.config.Metadata) || s.Id != c.id {
		t.Errorf("status %v", s)
	}
	c.start()
	r := c.wait()
	if r.code != 7 || r.reason != "Error" || r.stdout != "out\n" || r.stderr != "err\n" {
		t.Errorf("result %+v", r)
	}
	s = c.status()
	if s.StartedAt < s.CreatedAt || (s.FinishedAt < s.StartedAt && !peer) || s.FinishedAt > time.Now().UnixNano() {
		t.Errorf("times: created %d, started %d, finished %d", s.CreatedAt, s.StartedAt, s.FinishedAt)
	}
	if !strings.HasPrefix(s.ImageRef, "sha256:") && !strings.Contains(s.ImageRef, "@sha256:") {
		t.Errorf("image_ref %q", s.ImageRef)
	}
	if s.Image.GetImage() == "" {
		t.Error("no image in the status")
	}
	if err := node.CRI.StartContainer(t.Context(), c.id); err == nil {
		t.Error("an exited container started again")
	}
	c.stop(1)
	for range 2 {
		c.remove()
	}
	_, err := node.CRI.ContainerStatus(t.Context(), c.id, false)
	wantCode(t, err, codes.NotFound)
}

func TestExitCodes(t *testing.T) {
	begin(t)
	p := run(t)
	for script, want := range map[string]result{
		"exit 0":         {code: 0, reason: "Completed"},
		"exit 1":         {code: 1, reason: "Error"},
		"exit 255":       {code: 255, reason: "Error"},
		"kill -9 $$":     {code: 0, reason: "Completed"}, // PID 1 is safe from itself
		"no-such-applet": {code: 127, reason: "Error"},
		"/etc/passwd":    {code: 126, reason: "Error"},
	} {
		if r := p.finish(script); r.code != want.code || r.reason != want.reason {
			t.Errorf("%q: code %d, reason %q, want %+v", script, r.code, r.reason, want)
		}
	}
	host := run(t, namespaces(ofNode, ofNode, ofPod))
	for signal, want := range map[int]int32{9: 137, 15: 143, 11: 139} {
		if r := host.finish(fmt.Sprintf("kill -%d $$", signal)); r.code != want || r.reason != "Error" {
			t.Errorf("signal %d: code %d, reason %q, want %d", signal, r.code, r.reason, want)
		}
	}
}

func TestStartErrors(t *testing.T) {
	begin(t)
	p := run(t)
	for _, test := range []struct {
		name    string
		command []string
		codes   []int32
	}{
		{"not in the path", []string{"no-such-command"}, []int32{127, 128}},
		{"missing file", []string{"/no/such/file"}, []int32{127, 128}},
		{"not executable", []string{"/etc/not-executable"}, []int32{126, 128}},
		{"a directory", []string{"/etc"}, []int32{126, 128}},
		{"not a program", []string{"/etc/not-a-program"}, []int32{126, 128}},
		{"empty name", []string{""}, []int32{126, 127, 128}},
		{"long name", []string{strings.Repeat("x", 5000)}, []int32{126, 127, 128}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "not a program" || test.name == "long name" {
				differs(t, "calls it started; repeats the name")
			}
			config := containerConfig(t, "", func(c *runtimeapi.ContainerConfig) { c.Command = test.command })
			id, err := node.CRI.CreateContainer(t.Context(), p.id, config, p.config)
			if err != nil {
				if !peer && test.name != "empty name" {
					t.Errorf("CreateContainer failed instead of StartContainer: %v", err)
				}
				return
			}
			c := &container{t: t, id: id, pod: p, config: config}
			defer c.remove()
			err = node.CRI.StartContainer(t.Context(), id)
			if err == nil {
				t.Fatal("it started")
			}
			if len(err.Error()) > 2000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			s := c.status()
			if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || !slices.Contains(test.codes, s.ExitCode) {
				t.Errorf("state %s, code %d, want exited with one of %v", s.State, s.ExitCode, test.codes)
			}
			if s.Reason != "StartError" && s.Reason != "ContainerCannotRun" {
				t.Errorf("reason %q", s.Reason)
			}
			if s.Message == "" || s.FinishedAt == 0 {
				t.Errorf("message %q, finished at %d", s.Message, s.FinishedAt)
			}
		})
	}
}

func TestListContainersFilters(t *testing.T) {
	begin(t)
	a, b := run(t), run(t)
	label := func(v string) containerOption {
		return func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"who": v, "all": node.Tag} }
	}
	created, running := a.create("true", label("created")), a.start("sleep 1000", label("running"))
	exited := b.start("true", label("exited"))
	exited.wait()
	state := func(s runtimeapi.ContainerState) *runtimeapi.ContainerStateValue {
		return &runtimeapi.ContainerStateValue{State: s}
	}
	for _, test := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   []*container
	}{
		{"none", nil, []*container{created, running, exited}},
		{"id", &runtimeapi.ContainerFilter{Id: running.id}, []*container{running}},
		{"start of an id", &runtimeapi.ContainerFilter{Id: running.id[:20]}, []*container{running}},
		{"unknown id", &runtimeapi.ContainerFilter{Id: "nobody"}, nil},
		{"pod", &runtimeapi.ContainerFilter{PodSandboxId: a.id}, []*container{created, running}},
		{"start of a pod's id", &runtimeapi.ContainerFilter{PodSandboxId: b.id[:20]}, []*container{exited}},
		{"created", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_CREATED)}, []*container{created}},
		{"running", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_RUNNING)}, []*container{running}},
		{"exited", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_EXITED)}, []*container{exited}},
		{"unknown state", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_UNKNOWN)}, nil},
		{"label", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"who": "exited"}}, []*container{exited}},
		{"pod and label", &runtimeapi.ContainerFilter{PodSandboxId: a.id, LabelSelector: map[string]string{"who": "exited"}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			list, err := node.CRI.ListContainers(t.Context(), test.filter)
			if err != nil {
				t.Fatal(err)
			}
			var got, want []string
			for _, c := range list {
				got = append(got, c.Id)
			}
			for _, c := range test.want {
				want = append(want, c.id)
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

func TestUnknownContainer(t *testing.T) {
	differs(t, "says NotFound to StopContainer")
	begin(t)
	for _, id := range []string{"nobody", strings.Repeat("f", 64)} {
		if err := node.CRI.StopContainer(t.Context(), id, 1); err != nil {
			t.Errorf("stop %q: %v", id, err)
		}
		if err := node.CRI.RemoveContainer(t.Context(), id); err != nil {
			t.Errorf("remove %q: %v", id, err)
		}
		_, err := node.CRI.ContainerStatus(t.Context(), id, false)
		wantCode(t, err, codes.NotFound)
		wantCode(t, node.CRI.StartContainer(t.Context(), id), codes.NotFound)
		wantCode(t, node.CRI.ReopenContainerLog(t.Context(), id), codes.NotFound, codes.Unknown)
		_, err = raw.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
		wantCode(t, err, codes.NotFound, codes.Unknown)
	}
	for _, id := range []string{"../x", "\x00", strings.Repeat("a", 100_000)} {
		_, err := node.CRI.ContainerStatus(t.Context(), id, false)
		wantCode(t, err, codes.NotFound, codes.InvalidArgument)
		wantCode(t, node.CRI.StartContainer(t.Context(), id), codes.NotFound, codes.InvalidArgument)
		wantCode(t, node.CRI.RemoveContainer(t.Context(), id), codes.OK, codes.InvalidArgument)
	}
}

func TestCreateContainerTwiceIsOneContainer(t *testing.T) {
	differs(t, "refuses the second call: name is reserved")
	begin(t)
	p := run(t)
	c := p.create("true")
	id, err := node.CRI.CreateContainer(t.Context(), p.id, c.config, p.config)
	if err != nil || id != c.id {
		t.Errorf("second CreateContainer: %s, %v, want %s", id, err, c.id)
	}
	again := proto.Clone(c.config).(*runtimeapi.ContainerConfig)
	again.Metadata.Attempt++
	id, err = node.CRI.CreateContainer(t.Context(), p.id, again, p.config)
	if err != nil || id == c.id {
		t.Errorf("another attempt: %s, %v", id, err)
	}
}

func TestCreateContainerRefuses(t *testing.T) {
	begin(t)
	p := run(t)
	for _, test := range []struct {
		name   string
		option containerOption
	}{
		{"no image", func(c *runtimeapi.ContainerConfig) { c.Image = nil }},
		{"unknown image", func(c *runtimeapi.ContainerConfig) { c.Image.Image = depot.Address + "/never/pulled:latest" }},
		{"no metadata", func(c *runtimeapi.ContainerConfig) { c.Metadata = nil }},
		{"log path climbs", func(c *runtimeapi.ContainerConfig) { c.LogPath = "../../../../../../tmp/critest-log" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			if peer && test.name == "log path climbs" {
				t.Skip("containerd 1.6: follows it")
			}
			config := containerConfig(t, "true", test.option)
			id, err := node.CRI.CreateContainer(t.Context(), p.id, config, p.config)
			if err == nil {
				t.Errorf("container %s was made", id)
			}
			if !peer {
				wantCode(t, err, codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition)
			}
		})
	}
	t.Run("no command at all", func(t *testing.T) {
		if err := p.refused("", withImage(t, "no-command")); err == nil {
			t.Error("no error")
		}
	})
	t.Run("stopped pod", func(t *testing.T) {
		q := run(t)
		if err := node.CRI.StopPodSandbox(t.Context(), q.id); err != nil {
			t.Fatal(err)
		}
		if err := q.refused("true"); err == nil {
			t.Error("no error")
		}
	})
}

func TestVerboseStatusIsJSON(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("sleep 1000")
	answer, err := node.CRI.ContainerStatus(t.Context(), c.id, true)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(answer.Info["info"], `"pid"`) {
		t.Errorf("info %q", answer.Info)
	}
	pod, err := node.CRI.PodSandboxStatus(t.Context(), p.id, true)
	if err != nil || len(pod.Info) == 0 {
		t.Errorf("info %v, %v", pod, err)
	}
}

func TestManyContainersAtOnce(t *testing.T) {
	begin(t)
	p := run(t)
	const n = 20
	type outcome struct {
		c   *container
		err error
	}
	results := make(chan outcome, n)
	for i := range n {
		config := containerConfig(t, fmt.Sprintf("echo %d; exit %d", i, i))
		go func() {
			id, err := node.CRI.CreateContainer(t.Context(), p.id, config, p.config)
			if err == nil {
				err = node.CRI.StartContainer(t.Context(), id)
			}
			results <- outcome{&container{t: t, id: id, pod: p, config: config}, err}
		}()
	}
	for range n {
		got := <-results
		if got.err != nil {
			t.Error(got.err)
			continue
		}
		if r := got.c.wait(); strings.TrimSpace(r.stdout) != fmt.Sprint(r.code) {
			t.Errorf("code %d, output %q", r.code, r.stdout)
		}
	}
}
