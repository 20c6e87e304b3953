package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// tree makes a directory with files (path: content) and links (path -> target).
func tree(t *testing.T, entries ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var err error
		if name, target, ok := strings.Cut(e, " -> "); ok {
			err = os.Symlink(target, filepath.Join(dir, name))
		} else {
			name, content, _ := strings.Cut(e, ": ")
			err = errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// tryRun creates and starts a container of config, which ends by itself, and returns its output.
func (f *fixture) tryRun(b *Sandbox, config *runtimeapi.ContainerConfig, image *Image) (string, error) {
	f.t.Helper()
	c, err := b.CreateContainer(context.Background(), config, image)
	if err != nil {
		return "", err
	}
	if err := c.Start(context.Background()); err != nil {
		return "", err
	}
	st := f.await(c)
	log, err := os.ReadFile(st.LogPath)
	if err != nil {
		f.t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(log)) {
		fields := strings.SplitN(line, " ", 4)
		out.WriteString(fields[3])
	}
	if err := errors.Join(c.Remove(context.Background()), os.Remove(st.LogPath)); err != nil {
		f.t.Error(err)
	}
	return strings.TrimSpace(out.String()), nil
}

// volumeCase is a container with one mount.
type volumeCase struct {
	name   string
	mount  *runtimeapi.Mount
	script string
	want   string // output; with err: in the text of the error
	err    error
}

func (f *fixture) volumes(t *testing.T, b *Sandbox, image *Image, cases []volumeCase) {
	t.Helper()
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g := *f
			g.t = t
			config := containerConfig(fmt.Sprintf("c%d", i), runtimeapi.NamespaceMode_CONTAINER, "sh", "-c", c.script)
			config.Mounts = []*runtimeapi.Mount{c.mount}
			got, err := g.tryRun(b, config, image)
			switch {
			case c.err != nil:
				if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %q, %v; want %v with %q", got, err, c.err, c.want)
				}
			case err != nil || got != c.want:
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func imageMounts() []volumeCase {
	of := func(image, sub string) *runtimeapi.Mount {
		return &runtimeapi.Mount{ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: image}, ImageSubPath: sub, Readonly: true}
	}
	return []volumeCase{
		{"one layer", of("one", ""), "cat /v/a/file; ls -ldn /v/a | awk '{print $3}'", "lower\n0", nil},
		{"two layers", of("two", ""), "cat /v/a/file /v/a/only", "upper\nlow", nil},
		{"no layers", of("none", ""), "ls -a /v", ".\n..", nil},
		{"read-only", of("two", ""), "touch /v/x 2>&1 | grep -o Read-only", "Read-only", nil},
		{"read-only, one layer", of("one", "a"), "touch /v/x 2>&1 | grep -o Read-only", "Read-only", nil},
		{"directory", of("one", "a"), "cat /v/file", "lower", nil},
		{"directory of two layers", of("two", "a/"), "cat /v/file", "upper", nil},
		{"file", of("two", "a/file"), "cat /v", "upper", nil},
		{"link inside", of("two", "inside"), "cat /v", "upper", nil},
		{"link out of the image", of("two", "outside"), "", "does not exist", ErrInvalid},
		{"link out of the image, one layer", of("one", "outside"), "", "does not exist", ErrInvalid},
		{"climbing link", of("one", "climbs/hostname"), "", "does not exist", ErrInvalid},
		{"missing", of("two", "nowhere/at/all"), "", `"nowhere/at/all" does not exist`, ErrInvalid},
		{"below a file", of("one", "a/file/x"), "", "does not exist", ErrInvalid},
		{"unknown image", of("other", ""), "", "other", ErrNotFound},
	}
}

func imageVolumes(t *testing.T) map[string]*Image {
	lower := tree(t, "a/file: lower\n", "a/only: low\n", "outside -> /etc/hostname", "climbs -> ../../../../../../../../etc")
	upper := tree(t, "a/file: upper\n", "inside -> /a/file", "outside -> /etc/hostname")
	return map[string]*Image{
		"one": {ID: "sha256:one", Layers: []string{lower}}, "two": {ID: "sha256:two", Layers: []string{upper, lower}}, "none": {ID: "sha256:none"},
	}
}

func TestImageVolumes(t *testing.T) {
	f := setUp(t)
	image := *f.image
	image.Volumes = imageVolumes(t)
	f.volumes(t, f.pod(), &image, imageMounts())
}

// With a user namespace the files of image volumes belong to its users.
func TestImageVolumesInUserNamespace(t *testing.T) {
	f := setUp(t)
	image := *f.image
	image.Volumes = imageVolumes(t)
	f.volumes(t, f.userPod(runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER), &image, imageMounts())
}

func TestMappedMounts(t *testing.T) {
	f := setUp(t)
	dir := tree(t, "file: x\n")
	other := []*runtimeapi.IDMapping{{ContainerId: 0, HostId: 200005, Length: 1}}
	mapped := &runtimeapi.Mount{HostPath: dir, ContainerPath: "/v", UidMappings: mappings(), GidMappings: mappings()}
	script := "ls -ln /v/file | awk '{print $3, $4}'; echo y > /v/new && ls -ln /v/new | awk '{print $3, $4}'"
	f.volumes(t, f.userPod(runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER), f.image, []volumeCase{
		{"mapped", mapped, script, "0 0\n0 0", nil},
		{"file", &runtimeapi.Mount{HostPath: dir + "/file", ContainerPath: "/v/file", UidMappings: mappings(), GidMappings: mappings(), Readonly: true}, "ls -ln /v/file | awk '{print $3, $4}'", "0 0", nil},
		{"other mappings", &runtimeapi.Mount{HostPath: dir, ContainerPath: "/v", UidMappings: other, GidMappings: other}, "ls -ln /v/file | awk '{print $3, $4}'", "5 5", nil},
		{"not mapped", &runtimeapi.Mount{HostPath: dir, ContainerPath: "/v"}, "ls -ln /v/file | awk '{print $3, $4}'; touch /v/x 2>/dev/null || echo refused", "65534 65534\nrefused", nil},
		{"not possible", &runtimeapi.Mount{HostPath: "/sys/kernel", ContainerPath: "/v", UidMappings: mappings(), GidMappings: mappings()}, "", "/sys/kernel", ErrUnsupported},
		{"missing", &runtimeapi.Mount{HostPath: dir + "/no", ContainerPath: "/v", UidMappings: mappings(), GidMappings: mappings()}, "", dir + "/no", ErrInvalid},
	})
	info, err := os.Stat(filepath.Join(dir, "new"))
	if err != nil || ownerOf(info) != (owner{}) {
		t.Errorf("%v: the new file belongs to %v on the host, want 0", err, ownerOf(info))
	}
	f.volumes(t, f.pod(), f.image, []volumeCase{{"without user namespace", mapped, "ls -ln /v/file | awk '{print $3, $4}'", "200000 200000", nil}})
}

func TestCDIDevices(t *testing.T) {
	f := setUp(t)
	host := tree(t, "data: cdi\n")
	specs := tree(t, `vendor.json: {"cdiVersion":"0.6.0","kind":"vendor.example/thing","devices":[
 {"name":"one","containerEdits":{"env":["THING=1"],"deviceNodes":[{"path":"/dev/thing","hostPath":"/dev/zero","permissions":"rw"}],"mounts":[{"hostPath":"`+host+`","containerPath":"/things","options":["ro","bind"]}]}},
 {"name":"hooked","containerEdits":{"hooks":[{"hookName":"createContainer","path":"/bin/true"}]}}]}`)
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	f.config.CDISpecDirs = []string{specs}
	f.open()
	run := func(b *Sandbox, devices ...string) (string, error) {
		config := containerConfig("c", runtimeapi.NamespaceMode_CONTAINER, "sh", "-c", "echo $THING; cat /things/data; busybox head -c 3 /dev/thing | busybox od -An -tx1; touch /things/x 2>&1 | busybox grep -o Read-only")
		for _, d := range devices {
			config.CDIDevices = append(config.CDIDevices, &runtimeapi.CDIDevice{Name: d})
		}
		return f.tryRun(b, config, f.image)
	}
	b := f.pod()
	want := "1\ncdi\n 00 00 00\nRead-only"
	if got, err := run(b, "vendor.example/thing=one", "vendor.example/thing=one"); err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if _, err := run(b, "vendor.example/thing=hooked"); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "hooked asks for hooks") {
		t.Error(err)
	}
	if _, err := run(b, "vendor.example/thing=two"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "vendor.example/thing=two") {
		t.Error(err)
	}
	// A device plugin may write its specification at any time.
	text := `{"cdiVersion":"0.6.0","kind":"vendor.example/late","devices":[{"name":"x","containerEdits":{"env":["THING=late"]}}]}`
	if err := os.WriteFile(filepath.Join(specs, "late.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := run(b, "vendor.example/late=x"); err != nil || !strings.HasPrefix(got, "late\n") {
		t.Errorf("got %q, %v", got, err)
	}
	// /dev/thing is /dev/zero: a node cannot be made in a user namespace, and its
	// host path is not in the specification that reaches us.
	u := f.userPod(runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER)
	if _, err := run(u, "vendor.example/thing=one"); err == nil || !strings.Contains(err.Error(), "/dev/thing") {
		t.Error(err)
	}
}

func TestDevicesInUserNamespace(t *testing.T) {
	f := setUp(t)
	b := f.userPod(runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER)
	config := containerConfig("c", runtimeapi.NamespaceMode_CONTAINER, "sh", "-c", "busybox head -c 2 /dev/sub/mine | busybox od -An -tx1; busybox mknod /dev/x c 1 3 2>/dev/null || echo refused")
	config.Devices = []*runtimeapi.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/sub/mine", Permissions: "rw"}}
	got, err := f.tryRun(b, config, f.image)
	if err != nil || got != "00 00\nrefused" {
		t.Errorf("got %q, %v", got, err)
	}
}
