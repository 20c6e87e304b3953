package server

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCheckID(t *testing.T) {
	for id, says := range map[string]string{
		"a":                                    "",
		"0123abcdef":                           "",
		"nginx_1.x-2":                          "",
		strings.Repeat("f", maxIDBytes):        "",
		"":                                     "is missing",
		strings.Repeat("f", maxIDBytes+1):      "129 bytes",
		"..":                                   "'.' cannot be part of one here",
		"../../etc":                            "'.' cannot",
		"a/b":                                  "'/' cannot",
		"/etc":                                 "'/' cannot",
		"a b":                                  "' ' cannot",
		"a\x00b":                               `'\x00' cannot`,
		"a\n":                                  `'\n' cannot`,
		"ä":                                    "'ä' cannot",
		"-rf":                                  "'-' cannot",
		strings.Repeat("f", maxMessageBytes/2): "bytes, at most",
	} {
		err := checkID("container_id", id)
		switch {
		case says == "" && err != nil:
			t.Errorf("%.20q: %v", id, err)
		case says != "" && (err == nil || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "container_id: ")):
			t.Errorf("%.20q: got %v, want %q", id, err, says)
		}
	}
}

func TestCheckImage(t *testing.T) {
	for name, says := range map[string]string{
		"busybox":                 "",
		"sha256:0123":             "",
		"":                        "config.image.image: is missing",
		"a b":                     "white space",
		"a\nb":                    "white space",
		"a\x7fb":                  "control character",
		strings.Repeat("x", 4097): "4097 bytes",
	} {
		err := checkImage("config.image", &runtimeapi.ImageSpec{Image: name})
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%.20q: got %v, want %q", name, err, says)
		}
	}
	if err := checkImage("image", nil); err == nil || err.Error() != "image: is missing" {
		t.Errorf("nil: %v", err)
	}
}

// What is wrong in a request is InvalidArgument and names the field, over the wire.
func TestInvalidRequests(t *testing.T) {
	captureLog(t, "0")
	conn := serve(t, testConfig(t, newMemoryImages())).conn
	r, i := runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	ctx := t.Context()
	spec := &runtimeapi.ImageSpec{Image: "x", RuntimeHandler: "kata"}
	for _, tc := range []struct {
		says string
		call func() (any, error)
	}{
		{"config: is missing", func() (any, error) { return r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{}) }},
		{"pod_sandbox_id: is missing", func() (any, error) { return r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{}) }},
		{"pod_sandbox_id: ", func() (any, error) {
			return r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: "../x"})
		}},
		{"pod_sandbox_id: ", func() (any, error) {
			return r.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "a/b"})
		}},
		{"pod_sandbox_id: is missing", func() (any, error) { return r.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{}) }},
		{"container_id: is missing", func() (any, error) { return r.StartContainer(ctx, &runtimeapi.StartContainerRequest{}) }},
		{"container_id: is missing", func() (any, error) { return r.StopContainer(ctx, &runtimeapi.StopContainerRequest{}) }},
		{"timeout: -1 is negative", func() (any, error) {
			return r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "a", Timeout: -1})
		}},
		{"container_id: is missing", func() (any, error) { return r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{}) }},
		{"container_id: is missing", func() (any, error) { return r.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{}) }},
		{"container_id: is missing", func() (any, error) { return r.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{}) }},
		{"container_id: is missing", func() (any, error) { return r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{Cmd: []string{"x"}}) }},
		{"cmd: has no command", func() (any, error) { return r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "a"}) }},
		{"cmd: has no command", func() (any, error) {
			return r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "a", Cmd: []string{"", "x"}})
		}},
		{"cmd[1]: holds a NUL byte", func() (any, error) {
			return r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "a", Cmd: []string{"x", "\x00"}})
		}},
		{"timeout: -5 is negative", func() (any, error) {
			return r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: "a", Cmd: []string{"x"}, Timeout: -5})
		}},
		{"image: is missing", func() (any, error) { return i.PullImage(ctx, &runtimeapi.PullImageRequest{}) }},
		{"image.runtime_handler: no runtime handler \"kata\"", func() (any, error) {
			return i.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec})
		}},
		{"image: is missing", func() (any, error) { return i.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{}) }},
		{"image.image: is missing", func() (any, error) {
			return i.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{}})
		}},
	} {
		_, err := tc.call()
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), tc.says) {
			t.Errorf("got %v, want InvalidArgument %q", err, tc.says)
		}
	}
}

// Ids that nothing has: NotFound, but success where CRI calls are idempotent.
func TestUnknownIDs(t *testing.T) {
	captureLog(t, "0")
	r := runtimeapi.NewRuntimeServiceClient(serve(t, testConfig(t, newMemoryImages())).conn)
	ctx := t.Context()
	const id = "0123456789abcdef"
	for name, tc := range map[string]struct {
		want codes.Code
		call func() (any, error)
	}{
		"StopPodSandbox": {codes.OK, func() (any, error) {
			return r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		}},
		"RemovePodSandbox": {codes.OK, func() (any, error) {
			return r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		}},
		"StopContainer": {codes.OK, func() (any, error) {
			return r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
		}},
		"RemoveContainer": {codes.OK, func() (any, error) {
			return r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
		}},
		"PodSandboxStatus": {codes.NotFound, func() (any, error) {
			return r.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
		}},
		"CreateContainer": {codes.NotFound, func() (any, error) {
			return r.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id})
		}},
		"StartContainer": {codes.NotFound, func() (any, error) {
			return r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		}},
		"ContainerStatus": {codes.NotFound, func() (any, error) {
			return r.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		}},
		"ReopenContainerLog": {codes.NotFound, func() (any, error) {
			return r.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
		}},
		"ExecSync": {codes.NotFound, func() (any, error) {
			return r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
		}},
		"ListContainers": {codes.OK, func() (any, error) { return r.ListContainers(ctx, &runtimeapi.ListContainersRequest{}) }},
		"ListPodSandbox": {codes.OK, func() (any, error) { return r.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}) }},
	} {
		_, err := tc.call()
		if status.Code(err) != tc.want {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
		if err != nil && !strings.Contains(err.Error(), id) {
			t.Errorf("%s: %v doesn't name the id", name, err)
		}
	}
}
