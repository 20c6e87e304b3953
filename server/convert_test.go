package server

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

func podState() *sandbox.SandboxStatus {
	return &sandbox.SandboxStatus{
		ID: "p1",
		Config: &runtimeapi.PodSandboxConfig{
			Metadata:    &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u1", Attempt: 2},
			Hostname:    "web",
			Labels:      map[string]string{"app": "web"},
			Annotations: map[string]string{"note": "kept\n"},
			Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			}},
		},
		Handler:   "plain",
		State:     runtimeapi.PodSandboxState_SANDBOX_READY,
		CreatedAt: 42,
		IPs:       []string{"10.0.0.2", "fd00::2", "fd00::3"},
		NetNS:     "/run/x/sandboxes/p1/ns/net",
		PausePID:  77,
		Cgroup:    "/kubepods/pod1",
	}
}

func containerState() *sandbox.ContainerStatus {
	return &sandbox.ContainerStatus{
		ID: "c1", SandboxID: "p1",
		Config: &runtimeapi.ContainerConfig{
			Metadata:    &runtimeapi.ContainerMetadata{Name: "main", Attempt: 3},
			Image:       &runtimeapi.ImageSpec{Image: busyboxID, UserSpecifiedImage: "mirror.example:5000/busybox:1"},
			Labels:      map[string]string{"app": "web", "tier": "front"},
			Annotations: map[string]string{"note": "kept"},
			Mounts:      []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/srv/../srv/data", Readonly: true}},
			Envs:        []*runtimeapi.KeyValue{{Key: "RAW", Value: []byte("\xff")}},
		},
		ImageID: busyboxID, State: runtimeapi.ContainerState_CONTAINER_EXITED,
		CreatedAt: 1, StartedAt: 2, FinishedAt: 3, ExitCode: 137,
		Reason: "OOMKilled", Message: "exec \xff: no such file", LogPath: "/var/log/pods/x/main/3.log", PID: 99,
		User:      &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: 5, Gid: 6, SupplementalGroups: []int64{6, 7}}},
		Resources: &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512}},
		Rootfs:    "/proc/99/root", StopSignal: 3,
	}
}

func TestPodStatus(t *testing.T) {
	st := podState()
	want := &runtimeapi.PodSandboxStatus{
		Id: "p1", Metadata: st.Config.GetMetadata(), CreatedAt: 42, RuntimeHandler: "plain",
		Network: &runtimeapi.PodSandboxNetworkStatus{
			Ip: "10.0.0.2", AdditionalIps: []*runtimeapi.PodIP{{Ip: "fd00::2"}, {Ip: "fd00::3"}},
		},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{
			Options: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
		Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"note": "kept\n"},
	}
	if got := podStatus(st); !proto.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	bare := podStatus(&sandbox.SandboxStatus{ID: "p2", Config: &runtimeapi.PodSandboxConfig{}})
	if bare.GetLinux().GetNamespaces().GetOptions() == nil || bare.GetNetwork() == nil {
		t.Errorf("the kubelet needs options and network: %v", bare)
	}
	item := podItem(st)
	if item.GetId() != "p1" || item.GetRuntimeHandler() != "plain" || item.GetCreatedAt() != 42 || item.GetLabels()["app"] != "web" {
		t.Errorf("item %v", item)
	}
}

func TestContainerStatus(t *testing.T) {
	st := containerState()
	want := &runtimeapi.ContainerStatus{
		Id: "c1", Metadata: st.Config.GetMetadata(), State: runtimeapi.ContainerState_CONTAINER_EXITED,
		CreatedAt: 1, StartedAt: 2, FinishedAt: 3, ExitCode: 137,
		Image:    &runtimeapi.ImageSpec{Image: mirrorTag, UserSpecifiedImage: "mirror.example:5000/busybox:1"},
		ImageRef: mirrorDigest, ImageId: busyboxID,
		Reason: "OOMKilled", Message: "exec \uFFFD: no such file",
		Labels: st.Config.GetLabels(), Annotations: st.Config.GetAnnotations(), Mounts: st.Config.GetMounts(),
		LogPath: st.LogPath, Resources: st.Resources, User: st.User,
		StopSignal: runtimeapi.Signal_SIGNAL_SIGQUIT,
	}
	names := newImageNames(newMemoryImages(busybox()))
	got := containerStatus(st, names)
	if !proto.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if _, err := proto.Marshal(got); err != nil {
		t.Errorf("cannot be sent: %v", err)
	}
	item := containerItem(st, names)
	if item.GetImageId() != got.GetImageId() || item.GetImageRef() != got.GetImageRef() || !proto.Equal(item.GetImage(), got.GetImage()) {
		t.Errorf("list and status differ: %v", item)
	}
	if item.GetPodSandboxId() != "p1" || item.GetState() != st.State || item.GetCreatedAt() != 1 {
		t.Errorf("item %v", item)
	}
}

func TestImageNames(t *testing.T) {
	untagged := busybox()
	untagged.RepoTags, untagged.RepoDigests = nil, nil
	for _, tc := range []struct {
		name       string
		images     *memoryImages
		spec       *runtimeapi.ImageSpec
		image, ref string
	}{
		{"by id", newMemoryImages(busybox()), imageSpec(busyboxID), busyboxTag, busyboxDigest},
		{"by short name", newMemoryImages(busybox()), imageSpec("busybox:1"), busyboxTag, busyboxDigest},
		{"by another name", newMemoryImages(busybox()), imageSpec(mirrorTag), mirrorTag, mirrorDigest},
		{"tag that moved on", newMemoryImages(busybox()), imageSpec("mirror.example:5000/busybox:0"), busyboxTag, mirrorDigest},
		{"no names", newMemoryImages(untagged), imageSpec(busyboxID), busyboxID, busyboxID},
		{"image is gone", newMemoryImages(), imageSpec("busybox:1"), "busybox:1", busyboxID},
		{"not a reference", newMemoryImages(busybox()), imageSpec("///"), busyboxTag, busyboxDigest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			names := newImageNames(tc.images)
			st := &sandbox.ContainerStatus{ImageID: busyboxID, Config: &runtimeapi.ContainerConfig{Image: tc.spec}}
			for range 2 { // the second is remembered
				if got := names.of(st); got.spec.GetImage() != tc.image || got.ref != tc.ref {
					t.Errorf("got %s, %s", got.spec.GetImage(), got.ref)
				}
			}
		})
	}
}

func TestStopSignal(t *testing.T) {
	for linux, want := range map[int]runtimeapi.Signal{
		0:       runtimeapi.Signal_SIGNAL_SIGTERM,
		1:       runtimeapi.Signal_SIGNAL_SIGHUP,
		3:       runtimeapi.Signal_SIGNAL_SIGQUIT,
		9:       runtimeapi.Signal_SIGNAL_SIGKILL,
		15:      runtimeapi.Signal_SIGNAL_SIGTERM,
		34:      runtimeapi.Signal_SIGNAL_SIGRTMIN,
		37:      runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3,
		49:      runtimeapi.Signal_SIGNAL_SIGRTMINPLUS15,
		50:      runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14,
		63:      runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS1,
		64:      runtimeapi.Signal_SIGNAL_SIGRTMAX,
		65:      runtimeapi.Signal_SIGNAL_SIGTERM,
		-1:      runtimeapi.Signal_SIGNAL_SIGTERM,
		1 << 40: runtimeapi.Signal_SIGNAL_SIGTERM,
	} {
		if got := stopSignal(linux); got != want {
			t.Errorf("%d: got %v, want %v", linux, got, want)
		}
	}
	// Every signal that a process can get has a name in the CRI.
	for linux := 1; linux <= 64; linux++ {
		if got := stopSignal(linux); got == runtimeapi.Signal_SIGNAL_SIGTERM && linux != 15 && linux != 32 && linux != 33 {
			t.Errorf("%d has none", linux)
		}
	}
}

func TestFitMessage(t *testing.T) {
	const room = maxMessageBytes - 64
	for _, tc := range []struct{ stdout, stderr, wantOut, wantErr int }{
		{0, 0, 0, 0},
		{10, 20, 10, 20},
		{room, 0, room, 0},
		{maxMessageBytes, 0, room, 0},
		{0, maxMessageBytes, 0, room},
		{maxMessageBytes, maxMessageBytes, room / 2, room / 2},
		{maxMessageBytes, 100, room - 100, 100},
		{100, maxMessageBytes, 100, room - 100},
	} {
		stdout, stderr := fitMessage(make([]byte, tc.stdout), make([]byte, tc.stderr))
		if len(stdout) != tc.wantOut || len(stderr) != tc.wantErr {
			t.Errorf("%d, %d: got %d, %d", tc.stdout, tc.stderr, len(stdout), len(stderr))
		}
		resp := &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: -1}
		if size := proto.Size(resp); size > maxMessageBytes {
			t.Errorf("%d, %d: message of %d bytes", tc.stdout, tc.stderr, size)
		}
	}
}

func TestFilters(t *testing.T) {
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	notReady := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	for i, tc := range []struct {
		filter *runtimeapi.PodSandboxFilter
		want   bool
	}{
		{nil, true},
		{&runtimeapi.PodSandboxFilter{}, true},
		{&runtimeapi.PodSandboxFilter{Id: "p"}, true},
		{&runtimeapi.PodSandboxFilter{Id: "p1"}, true},
		{&runtimeapi.PodSandboxFilter{Id: "p12"}, false},
		{&runtimeapi.PodSandboxFilter{State: ready}, true},
		{&runtimeapi.PodSandboxFilter{State: notReady}, false},
		{&runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: 99}}, false},
		{&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, true},
		{&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "db"}}, false},
		{&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"none": ""}}, false},
		{&runtimeapi.PodSandboxFilter{Id: "p", State: ready, LabelSelector: map[string]string{"app": "db"}}, false},
	} {
		if got := matchPod(tc.filter, podState()); got != tc.want {
			t.Errorf("pod filter %d (%v): %v", i, tc.filter, got)
		}
	}
	exited := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}
	for i, tc := range []struct {
		filter *runtimeapi.ContainerFilter
		want   bool
	}{
		{nil, true},
		{&runtimeapi.ContainerFilter{Id: "c", PodSandboxId: "p", State: exited, LabelSelector: map[string]string{"app": "web", "tier": "front"}}, true},
		{&runtimeapi.ContainerFilter{Id: "x"}, false},
		{&runtimeapi.ContainerFilter{PodSandboxId: "p2"}, false},
		{&runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{}}, false},
		{&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"app": "web", "tier": "back"}}, false},
	} {
		if got := matchContainer(tc.filter, containerState()); got != tc.want {
			t.Errorf("container filter %d (%v): %v", i, tc.filter, got)
		}
	}
}

func TestContainerInfo(t *testing.T) {
	st := containerState()
	st.Bundle = t.TempDir()
	file := filepath.Join(st.Bundle, "config.json")
	for _, tc := range []struct {
		name, content string // "": no file
		wrong         string
	}{
		{"good", `{"ociVersion":"1.3.0"}`, ""},
		{"missing", "", "no such file"},
		{"not JSON", `{"ociVersion":`, "not JSON"},
		{"huge", `"` + strings.Repeat("x", maxSpecBytes) + `"`, "more than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.content == "" {
				_ = os.Remove(file)
			} else if err := os.WriteFile(file, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			text := toJSON(containerInfo(st))
			var got struct {
				SandboxID        string
				PID              int
				Config           map[string]any
				RuntimeSpec      map[string]string
				RuntimeSpecError string
			}
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Fatalf("%v in %.200s", err, text)
			}
			if got.SandboxID != "p1" || got.PID != 99 || got.Config["image"] == nil {
				t.Errorf("got %+v", got)
			}
			if tc.wrong == "" && got.RuntimeSpec["ociVersion"] != "1.3.0" || !strings.Contains(got.RuntimeSpecError, tc.wrong) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestPodInfo(t *testing.T) {
	var buf bytes.Buffer
	if err := json.Indent(&buf, []byte(toJSON(podInfo(podState()))), "", " "); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"pid": 77`, `"path": "/run/x/sandboxes/p1/ns/net"`, `"type": "network"`, `"cgroupsPath": "/kubepods/pod1"`, `"fd00::2"`} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("lacks %s:\n%s", want, &buf)
		}
	}
}

func TestToJSON(t *testing.T) {
	for _, v := range []any{nil, "a\xff", func() {}, []string(nil), map[string]any{"x": make(chan int)}} {
		if text := toJSON(v); !json.Valid([]byte(text)) {
			t.Errorf("%T: %q", v, text)
		}
	}
}
