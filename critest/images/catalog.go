package images

import (
	"archive/tar"
	"context"
	"fmt"
	"strings"
)

// Named is an artifact with the name that it is pulled by.
type Named struct {
	Repository string // "cri-runtime/busybox"
	Tag        string
	Artifact   Artifact
}

// Catalog makes all images, the good and the hostile ones.
func Catalog(ctx context.Context) ([]Named, error) {
	base, err := BusyboxLayer(ctx)
	if err != nil {
		return nil, err
	}
	specs := map[string]Spec{}
	basic(base, specs)
	odd(base, specs)
	users(base, specs)
	hostile(base, specs)
	out := make([]Named, 0, len(specs)+2)
	for name, spec := range specs {
		a, err := spec.Build()
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		out = append(out, Named{Repository: "cri-runtime/" + name, Tag: "latest", Artifact: a})
	}
	for name, docker := range map[string]bool{"index": false, "index-docker": true} {
		a, err := platforms(base, docker)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		out = append(out, Named{Repository: "cri-runtime/" + name, Tag: "latest", Artifact: a})
	}
	return out, nil
}

func basic(base Layer, specs map[string]Spec) {
	specs["busybox"] = Spec{Layers: []Layer{base}, Config: busyboxConfig()}
	web := busyboxConfig()
	web.Cmd = nil
	web.Entrypoint = []string{"/bin/web"}
	web.ExposedPorts = map[string]struct{}{"8080/tcp": {}}
	specs["web"] = Spec{Layers: []Layer{base, webLayer()}, Config: web}
	pause := busyboxConfig()
	pause.Cmd = []string{"/bin/sleep", "2147483647"}
	specs["pause"] = Spec{Layers: []Layer{base}, Config: pause}
	specs["schema2"] = Spec{Layers: []Layer{base, webLayer()}, Config: busyboxConfig(), Docker: true}
	plain, zstd := base, base
	plain.Compression, zstd.Compression = Plain, Zstd
	specs["plain"] = Spec{Layers: []Layer{plain}, Config: busyboxConfig()}
	specs["zstd"] = Spec{Layers: []Layer{zstd}, Config: busyboxConfig()}
	lower, upper := multiLayers()
	upper.Compression = Zstd
	specs["layers"] = Spec{Layers: []Layer{base, lower, upper}, Config: busyboxConfig()}
}

// multiLayers are two layers of which the upper hides, replaces and links
// what the lower one has; the paths say what must be seen at the end.
func multiLayers() (lower, upper Layer) {
	lower = Layer{Entries: []Entry{
		Dir("t/", 0o755),
		File("t/kept", "lower\n", 0o640),
		File("t/replaced", "lower\n", 0o644),
		File("t/gone", "lower\n", 0o644),
		Dir("t/gone-dir/", 0o755), File("t/gone-dir/file", "lower\n", 0o644),
		Dir("t/part/", 0o755), File("t/part/kept", "lower\n", 0o644), File("t/part/gone", "lower\n", 0o644),
		Dir("t/opaque/", 0o755), File("t/opaque/gone", "lower\n", 0o644),
		File("t/file-to-dir", "lower\n", 0o644),
		Dir("t/dir-to-file/", 0o755), File("t/dir-to-file/gone", "lower\n", 0o644),
		File("t/hard-1", "hard\n", 0o644), Hardlink("t/hard-2", "t/hard-1"),
		{Name: "t/owned", UID: 4711, GID: 815, Mode: 0o4755, Body: []byte("owned\n")},
		{Name: "t/xattr", Body: []byte("xattr\n"), Xattrs: map[string]string{"user.critest": "value one"}},
		{Name: "t/fifo", Type: tar.TypeFifo, Mode: 0o600},
		{Name: "t/null", Type: tar.TypeChar, Mode: 0o666, Major: 1, Minor: 3},
		Symlink("t/link", "kept"), Symlink("t/absolute", "/t/kept"), Symlink("t/dangling", "/nowhere/at/all"),
		File("t/"+strings.Repeat("n", 200), "long name\n", 0o644),
		File("t/ünï-\u2603", "name\n", 0o644),
	}}
	upper = Layer{Entries: []Entry{
		Whiteout("t/", "gone"), Whiteout("t/", "gone-dir"),
		File("t/replaced", "upper\n", 0o644),
		Whiteout("t/part/", "gone"), File("t/part/added", "upper\n", 0o644),
		Dir("t/opaque/", 0o755), Opaque("t/opaque"), File("t/opaque/added", "upper\n", 0o644),
		Dir("t/file-to-dir/", 0o755), File("t/file-to-dir/file", "upper\n", 0o644),
		File("t/dir-to-file", "upper\n", 0o644),
	}}
	return lower, upper
}

func odd(base Layer, specs map[string]Spec) {
	specs["no-command"] = Spec{Layers: []Layer{base}, Config: Config{Env: []string{DefaultPath}}}
	specs["no-path"] = Spec{Layers: []Layer{base}, Config: Config{Cmd: []string{"/bin/sh"}}}
	entry := busyboxConfig()
	entry.Entrypoint, entry.Cmd = []string{"echo", "entry"}, []string{"cmd"}
	specs["entrypoint"] = Spec{Layers: []Layer{base}, Config: entry}
	stop := busyboxConfig()
	stop.StopSignal = "SIGUSR1"
	stop.Cmd = []string{"sh", "-c", `trap "echo usr1; exit 11" USR1; trap "echo term; exit 12" TERM; sleep 2147483647 & wait`}
	specs["stopsignal"] = Spec{Layers: []Layer{base}, Config: stop}
	full := busyboxConfig()
	full.Env = append(full.Env, "FROM_IMAGE=image", "BOTH=image", "EMPTY=")
	full.WorkingDir = "/home/web"
	full.Volumes = map[string]struct{}{"/data": {}}
	full.Labels = map[string]string{"org.example.name": "value with space\n\"quoted\"", "ünï": "☃"}
	specs["full"] = Spec{Layers: []Layer{base}, Config: full}
	dir := busyboxConfig()
	dir.WorkingDir = "/made/by/runtime"
	specs["workdir"] = Spec{Layers: []Layer{base}, Config: dir}
	specs["empty"] = Spec{Layers: []Layer{{}}, Config: Config{Cmd: []string{"/nothing"}}}
}

func users(base Layer, specs map[string]Spec) {
	for name, user := range map[string]string{
		"name": "alice", "numeric": "1000", "uid-gid": "1001:63", "name-group": "web:staff",
		"unlisted": "4242", "unknown": "mallory", "unknown-group": "web:nogroup-here",
		"huge": "99999999999999999999", "max": "4294967294", "negative": "-1", "blank": " ",
		"path": "../../etc/shadow", "newline": "web\nroot",
	} {
		c := busyboxConfig()
		c.User = user
		specs["user-"+name] = Spec{Layers: []Layer{base}, Config: c}
	}
	nofiles := Layer{Entries: []Entry{Whiteout("etc/", "passwd"), Whiteout("etc/", "group")}}
	specs["no-passwd"] = Spec{Layers: []Layer{base, nofiles}, Config: busyboxConfig()}
	links := Layer{Entries: []Entry{Symlink("etc/passwd", "/../../../../../etc/shadow")}}
	c := busyboxConfig()
	c.User = "alice"
	specs["passwd-link"] = Spec{Layers: []Layer{base, links}, Config: c}
	big := Layer{Entries: []Entry{
		{Name: "etc/passwd", Body: []byte(strings.Repeat("x", 32<<20))},
	}}
	specs["passwd-huge"] = Spec{Layers: []Layer{base, big}, Config: c}
}

func platforms(base Layer, docker bool) (Artifact, error) {
	children := make([]Artifact, 0, 3)
	for _, arch := range []string{"s390x", "arm64", "amd64"} {
		mark := Layer{Entries: []Entry{File("etc/platform", arch+"\n", 0o644)}}
		a, err := Spec{Layers: []Layer{base, mark}, Config: busyboxConfig(), Docker: docker, Arch: arch}.Build()
		if err != nil {
			return Artifact{}, err
		}
		children = append(children, a)
	}
	return Index(docker, children...)
}
