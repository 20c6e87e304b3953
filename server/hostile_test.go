package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// anyNetwork attaches whatever pod there is.
type anyNetwork struct{}

func (anyNetwork) Attach(context.Context, network.Pod) (*network.Attachment, error) {
	return &network.Attachment{Network: "any", IPs: []string{"192.0.2.1"}}, nil
}

func (anyNetwork) Restore(network.Pod, *network.Attachment) error { return nil }

func (anyNetwork) Detach(context.Context, network.Pod, *network.Attachment) error { return nil }
func (anyNetwork) Check(context.Context, network.Pod, *network.Attachment) error  { return nil }
func (anyNetwork) GC(context.Context, func() ([]string, error)) error             { return nil }

// attack is a request of which one field is wrong.
type attack struct {
	field string // path from the top of the request
	value string
	req   proto.Message
}

// attacks returns one request for each hostile value of each field that can be
// reached from base, which is otherwise as it was.
func attacks(base proto.Message) []attack {
	var all []attack
	var walk func(m protoreflect.MessageDescriptor, to []protoreflect.FieldDescriptor)
	walk = func(m protoreflect.MessageDescriptor, to []protoreflect.FieldDescriptor) {
		for i := range m.Fields().Len() {
			way := append(to[:len(to):len(to)], m.Fields().Get(i))
			for name, set := range hostile(way[len(way)-1]) {
				req := proto.Clone(base)
				set(holder(req.ProtoReflect(), way))
				all = append(all, attack{fieldPath(way), name, req})
			}
			if f := way[len(way)-1]; f.Message() != nil && !f.IsMap() {
				walk(f.Message(), way)
			}
		}
	}
	walk(base.ProtoReflect().Descriptor(), nil)
	return all
}

func fieldPath(way []protoreflect.FieldDescriptor) string {
	var names []string
	for _, f := range way {
		names = append(names, string(f.Name()))
	}
	return strings.Join(names, ".")
}

// holder returns the message that holds the last field of the way; what is
// missing on the way is made, in lists the first element.
func holder(m protoreflect.Message, way []protoreflect.FieldDescriptor) protoreflect.Message {
	for _, f := range way[:len(way)-1] {
		if !f.IsList() {
			m = m.Mutable(f).Message()
			continue
		}
		list := m.Mutable(f).List()
		if list.Len() == 0 {
			list.AppendMutable()
		}
		m = list.Get(0).Message()
	}
	return m
}

// hostile returns what sets a field to each of the values that are wrong, or may be.
func hostile(f protoreflect.FieldDescriptor) map[string]func(protoreflect.Message) {
	out := map[string]func(protoreflect.Message){
		"none": func(m protoreflect.Message) { m.Clear(f) },
	}
	if f.IsMap() {
		for name, s := range hostileStrings() {
			out["key "+name] = func(m protoreflect.Message) {
				m.Mutable(f).Map().Set(protoreflect.ValueOfString(s).MapKey(), protoreflect.ValueOfString("1"))
			}
			out["value "+name] = func(m protoreflect.Message) {
				m.Mutable(f).Map().Set(protoreflect.ValueOfString("net.x").MapKey(), protoreflect.ValueOfString(s))
			}
		}
		return out
	}
	if f.Message() != nil {
		out["empty"] = func(m protoreflect.Message) {
			if f.IsList() {
				m.Mutable(f).List().AppendMutable()
				return
			}
			m.Set(f, m.NewField(f))
		}
		return out
	}
	for name, v := range hostileScalars(f) {
		out[name] = func(m protoreflect.Message) {
			if f.IsList() {
				m.Mutable(f).List().Append(v)
				return
			}
			m.Set(f, v)
		}
	}
	return out
}

func hostileStrings() map[string]string {
	return map[string]string{
		"huge": strings.Repeat("9", 1<<20), "NUL": "a\x00b", "newline": "a\nb", "climbing": "../../../../etc", "blank": " ",
	}
}

func hostileScalars(f protoreflect.FieldDescriptor) map[string]protoreflect.Value {
	out := map[string]protoreflect.Value{}
	switch f.Kind() { //nolint:exhaustive // what CRI does not use is a panic
	case protoreflect.StringKind:
		for name, s := range hostileStrings() {
			out[name] = protoreflect.ValueOfString(s)
		}
	case protoreflect.BytesKind:
		for name, s := range hostileStrings() {
			out[name] = protoreflect.ValueOfBytes([]byte(s))
		}
		out["not UTF-8"] = protoreflect.ValueOfBytes([]byte("\xff\xfe"))
	case protoreflect.Int64Kind:
		for name, n := range map[string]int64{"-7": -7, "least": math.MinInt64, "most": math.MaxInt64} {
			out[name] = protoreflect.ValueOfInt64(n)
		}
	case protoreflect.Int32Kind:
		for name, n := range map[string]int32{"-7": -7, "least": math.MinInt32, "most": math.MaxInt32} {
			out[name] = protoreflect.ValueOfInt32(n)
		}
	case protoreflect.Uint32Kind:
		out["most"] = protoreflect.ValueOfUint32(math.MaxUint32)
	case protoreflect.Uint64Kind:
		out["most"] = protoreflect.ValueOfUint64(math.MaxUint64)
	case protoreflect.EnumKind:
		for name, n := range map[string]protoreflect.EnumNumber{"-7": -7, "99": 99, "9999": 9999} {
			out[name] = protoreflect.ValueOfEnum(n)
		}
	case protoreflect.BoolKind:
		out["true"] = protoreflect.ValueOfBool(true)
	default:
		panic("no hostile value for " + f.Kind().String())
	}
	return out
}

// target is a server with one pod and one container, and what requests to it are based on.
type target struct {
	runtimeapi.RuntimeServiceClient
	conn   *grpc.ClientConn
	config Config
	root   string
	pod    string
	bases  map[string]proto.Message
}

func hostileParent() string { return fmt.Sprintf("/cri-hostile-%d", os.Getpid()) }

// noCgroups removes the parents of the pods, which are the kubelet's to remove;
// nothing may be in them.
func noCgroups(t *testing.T) {
	t.Helper()
	for _, name := range []string{"/here", "/new", ""} {
		dirs, err := filepath.Glob("/sys/fs/cgroup/*" + hostileParent() + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range dirs {
			if err := os.Remove(dir); err != nil {
				t.Errorf("left behind: %v", err)
			}
		}
	}
}

func hostilePod(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Uid: name, Namespace: "hostile"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: hostileParent() + "/" + name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
				Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER,
			}},
		},
	}
}

// newTarget serves a store whose network attaches all pods, with an image of one empty layer.
func newTarget(t *testing.T) *target {
	t.Helper()
	dir := t.TempDir()
	layer := filepath.Join(dir, "layer")
	if err := os.Mkdir(layer, 0o755); err != nil {
		t.Fatal(err)
	}
	image := &imageservice.Image{
		ID: busyboxID, RepoTags: []string{"docker.io/library/busybox:latest"}, Layers: []string{layer},
		Config: imagespec.Image{Config: imagespec.ImageConfig{Cmd: []string{"/true"}}},
	}
	images := newMemoryImages(image)
	images.pull = func(context.Context, string, *imageservice.Auth) (*imageservice.Image, error) { return image, nil }
	store, err := sandbox.Open(t.Context(), sandbox.Config{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"),
		CgroupDriver: "cgroupfs", CgroupParent: hostileParent(),
	}, anyNetwork{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Errorf("close the runtime: %v", err)
		}
		noCgroups(t)
	})
	config := Config{Runtime: store, Images: images, Version: "v1.2.3", CgroupDriver: "cgroupfs"}
	conn := serve(t, config).conn
	x := &target{RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(conn), conn: conn, config: config, root: filepath.Join(dir, "root")}
	x.fill(t)
	return x
}

// fill makes the pod and the container.
func (x *target) fill(t *testing.T) {
	t.Helper()
	config := hostilePod("here")
	pod, err := x.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	x.pod = pod.GetPodSandboxId()
	container := func(name string) *runtimeapi.CreateContainerRequest {
		return &runtimeapi.CreateContainerRequest{PodSandboxId: x.pod, SandboxConfig: config, Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: busyboxID},
			Mounts:  []*runtimeapi.Mount{{HostPath: x.root, ContainerPath: "/mnt"}},
			Devices: []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/nought", Permissions: "rw"}},
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
			}},
		}}
	}
	made, err := x.CreateContainer(t.Context(), container("here"))
	if err != nil {
		t.Fatal(err)
	}
	id, spec := made.GetContainerId(), &runtimeapi.ImageSpec{Image: busyboxID}
	x.bases = map[string]proto.Message{
		"RunPodSandbox":             &runtimeapi.RunPodSandboxRequest{Config: hostilePod("new")},
		"CreateContainer":           container("new"),
		"StopContainer":             &runtimeapi.StopContainerRequest{ContainerId: "0123456789"},
		"ContainerStatus":           &runtimeapi.ContainerStatusRequest{ContainerId: id},
		"PodSandboxStatus":          &runtimeapi.PodSandboxStatusRequest{PodSandboxId: x.pod},
		"ExecSync":                  &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/true"}},
		"Exec":                      &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"/true"}, Stdout: true},
		"Attach":                    &runtimeapi.AttachRequest{ContainerId: id, Stdout: true},
		"PortForward":               &runtimeapi.PortForwardRequest{PodSandboxId: x.pod, Port: []int32{80}},
		"UpdateContainerResources":  &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100}},
		"UpdatePodSandboxResources": &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: x.pod},
		"PullImage":                 &runtimeapi.PullImageRequest{Image: spec},
		"ImageStatus":               &runtimeapi.ImageStatusRequest{Image: spec},
	}
}

// call sends a request and undoes what it did.
func (x *target) call(t *testing.T, m protoreflect.MethodDescriptor, req proto.Message) error {
	t.Helper()
	name := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		t.Fatal(err)
	}
	resp := kind.New().Interface()
	if m.IsStreamingServer() {
		stream, err := x.conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, name)
		if err != nil {
			t.Fatal(err)
		}
		for err = stream.SendMsg(req); err == nil; {
			err = stream.RecvMsg(resp)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	err = x.conn.Invoke(t.Context(), name, req, resp)
	switch r := resp.(type) {
	case *runtimeapi.RunPodSandboxResponse:
		if err == nil {
			_, undo := x.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.GetPodSandboxId()})
			if undo != nil {
				t.Errorf("remove the pod: %v", undo)
			}
		}
	case *runtimeapi.CreateContainerResponse:
		if err == nil {
			_, undo := x.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: r.GetContainerId()})
			if undo != nil {
				t.Errorf("remove the container: %v", undo)
			}
		}
	}
	return err
}

// Every field of every request, with values that are wrong: no panic, no error
// without a reason, a refusal names the field, and nothing is left behind.
func TestHostileFields(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	captureLog(t, "0")
	x := newTarget(t)
	for _, m := range allRPCs(t) {
		if m.Input().Fields().Len() == 0 {
			continue
		}
		t.Run(string(m.Name()), func(t *testing.T) {
			base := x.bases[string(m.Name())]
			if base == nil {
				kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
				if err != nil {
					t.Fatal(err)
				}
				base = kind.New().Interface()
			}
			for _, a := range attacks(base) {
				judge(t, a, x.call(t, m, a.req))
			}
		})
	}
	x.clean(t)
}

// free are the fields that may have any value, and why.
func free() map[string]string {
	return map[string]string{
		"version":                      "the kubelet's own, ignored",
		"filter.id":                    "passes nothing",
		"filter.pod_sandbox_id":        "passes nothing",
		"filter.state.state":           "passes nothing",
		"filter.label_selector":        "passes nothing",
		"filter.image.image":           "passes nothing",
		"labels":                       "kept and shown byte for byte",
		"annotations":                  "kept and shown byte for byte",
		"sandbox_config":               "what RunPodSandbox was given counts",
		"auth":                         "the registry's matter",
		"attempt":                      "a number like any other",
		"linux.resources.cpu_shares":   "clamped to what the kernel takes",
		"resources.cpu_shares":         "clamped to what the kernel takes",
		"overhead":                     "only added where containers have limits",
		"memory_limit_in_bytes":        "no limit, in effect",
		"memory_swap_limit_in_bytes":   "no limit, in effect",
		"linux.cpu_shares":             "clamped to what the kernel takes",
		"StopContainerRequest.timeout": "longer than anybody waits",
	}
}

// mild tells whether a hostile value is a good one for a field that takes words.
func mild(a attack) bool {
	switch a.value {
	case "none", "empty", "true":
		return true
	case "blank", "climbing", "newline", "value blank", "value climbing", "value newline":
		for _, words := range []string{
			"metadata.name", "metadata.uid", "metadata.namespace", "dns_config", "selinux_options", "command", "args", "envs", "cmd", "unified",
			"image.image", "user_specified_image", "seccomp_profile_path", "image_ref", "log_path",
		} {
			if strings.Contains(a.field, words) {
				return true
			}
		}
	case "-7":
		return strings.HasSuffix(a.field, "oom_score_adj")
	}
	return false
}

func accepted(a attack) bool {
	if mild(a) {
		return true
	}
	whole := "." + string(a.req.ProtoReflect().Descriptor().Name()) + "." + a.field + "."
	for field := range free() {
		if strings.Contains(whole, "."+field+".") {
			return true
		}
	}
	return false
}

func judge(t *testing.T, a attack, err error) {
	t.Helper()
	text, code := status.Convert(err).Message(), status.Code(err)
	switch {
	case err == nil:
		if !accepted(a) {
			t.Errorf("%s = %s was accepted", a.field, a.value)
		}
	case code == codes.InvalidArgument:
		// What is above the field may be what cannot be.
		if !slices.ContainsFunc(strings.Split(a.field, "."), func(name string) bool {
			return name != "config" && name != "linux" && strings.Contains(text, name) || a.field == name
		}) {
			t.Errorf("%s = %s: the error does not name the field: %.300s", a.field, a.value, text)
		}
	case !slices.Contains([]codes.Code{codes.NotFound, codes.FailedPrecondition, codes.Unimplemented}, code):
		t.Errorf("%s = %s: %.300v", a.field, a.value, err)
	}
}

// clean removes the pod and looks for what is left.
func (x *target) clean(t *testing.T) {
	t.Helper()
	if _, err := x.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: x.pod}); err != nil {
		t.Fatal(err)
	}
	if n, m := len(x.config.Runtime.Sandboxes()), len(x.config.Runtime.Containers()); n+m > 0 {
		t.Errorf("%d sandboxes and %d containers are left", n, m)
	}
	for _, dir := range []string{"sandboxes", "containers", "damaged"} {
		left, err := os.ReadDir(filepath.Join(x.root, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) || len(left) > 0 {
			t.Errorf("%s: %v, %v", dir, left, err)
		}
	}
	if held := x.config.Images.(*memoryImages).held(); held != "" {
		t.Errorf("images are held by %q", held)
	}
}
