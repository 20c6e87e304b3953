package images

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Upstream makes the images that the CRI conformance suite asks three public
// registries for: the same names, users, ports and files, of our own making.
// UpstreamHosts are those registries; their repositories share one name space
// here. The image of UpstreamDigest is asked for by a digest that only the
// original has.
func Upstream(ctx context.Context) ([]Named, error) {
	binary, err := os.ReadFile(BusyboxPath)
	if err != nil {
		return nil, fmt.Errorf("read busybox (Debian: busybox-static): %w", err)
	}
	// The suite masks /bin/ls and looks how the shell fails. Hard links, for the
	// other commands must go on; and a shell that knows its own ls by another
	// name, or it would not look for the file.
	shell := bytes.Replace(binary, []byte("\x00ls\x00lsmod\x00"), []byte("\x00lr\x00lsmod\x00"), 1)
	base, err := busyboxLayer(ctx, func(name string) Entry {
		if name == "sh" {
			return Entry{Name: "bin/sh", Mode: 0o755, Body: shell}
		}
		return Hardlink("bin/"+name, "bin/busybox")
	})
	if err != nil {
		return nil, err
	}
	escalate, err := escalateLayer(ctx)
	if err != nil {
		return nil, err
	}
	u := upstream{base: base, tools: upstreamTools()}
	for _, n := range []string{"1", "2", "3", "latest", "digest"} {
		u.test("test-image-"+n, "latest", n)
	}
	u.test("test-image-tag", "test", "tag-test")
	u.test("test-image-tag", "all", "tag-all")
	for _, tag := range []string{"1", "2", "3"} {
		u.test("test-image-tags", tag, "tags")
	}
	for name, user := range map[string]string{
		"uid": "1002", "username": "www-data", "uid-group": "1003:users", "username-group": "www-data:100",
	} {
		config := busyboxConfig()
		config.User = user
		u.add(stagingPrefix+"test-image-user-"+name, "latest", config)
	}
	member := busyboxConfig()
	member.User = "1000"
	u.add(stagingPrefix+"test-image-predefined-group", "latest", member)
	u.add(stagingPrefix+"hostnet-nginx-amd64", "latest", serverConfig("nginx"), serverLayer("nginx", 12003))
	u.add("e2e-test-images/busybox", "1.29-2", busyboxConfig())
	u.add("e2e-test-images/nginx", "1.14-2", serverConfig("nginx"), serverLayer("nginx", 80))
	u.add("e2e-test-images/httpd", "2.4.39-4", serverConfig("httpd"), serverLayer("httpd", 80))
	privileges := busyboxConfig()
	privileges.Cmd = []string{"/nnp"}
	u.add("e2e-test-images/nonewprivs", "1.3", privileges, escalate)
	pause := busyboxConfig()
	pause.Cmd = []string{"/bin/sleep", "2147483647"}
	u.add("pause", "3.9", pause)
	return u.all, u.err
}

// UpstreamHosts returns the registries that Upstream stands in for.
func UpstreamHosts() []string { return []string{"gcr.io", "registry.k8s.io", "k8s.gcr.io"} }

// UpstreamDigest is the repository of the image that is pulled by digest, and
// the digest that the suite knows.
const (
	UpstreamDigestRepository = stagingPrefix + "test-image-digest"
	UpstreamDigest           = "9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf"
)

const stagingPrefix = "k8s-staging-cri-tools/"

// upstream collects the images and the first error.
type upstream struct {
	base, tools Layer
	all         []Named
	err         error
}

func (u *upstream) add(repository, tag string, config Config, layers ...Layer) {
	if u.err != nil {
		return
	}
	a, err := Spec{Layers: append([]Layer{u.base, u.tools}, layers...), Config: config, Docker: true}.Build()
	if err != nil {
		u.err = fmt.Errorf("image %s:%s: %w", repository, tag, err)
		return
	}
	u.all = append(u.all, Named{Repository: repository, Tag: tag, Artifact: a})
}

// test adds an image that differs from the others in one file.
func (u *upstream) test(name, tag, content string) {
	u.add(stagingPrefix+name, tag, busyboxConfig(), Layer{Entries: []Entry{File(content, content+"\n", 0o644)}})
}

// upstreamTools are the users and groups that the suite expects, and commands
// that Debian's busybox lacks.
func upstreamTools() Layer {
	return Layer{Entries: []Entry{
		File("bin/ipcs", "#!/bin/sh\nexec cat /proc/sysvipc/shm\n", 0o755),
		File("bin/pgrep", "#!/bin/sh\n"+
			"for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2>/dev/null)\" != \"$1\" ] || echo ${p#/proc/}; done\n", 0o755),
		File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\n"+
			"default-user:x:1000:1000::/home/default-user:/bin/sh\n", 0o644),
		File("etc/group", "root:x:0:\nwww-data:x:33:\nusers:x:100:\ndefault-user:x:1000:\n"+
			"group-defined-in-image:x:50000:default-user\n", 0o644),
	}}
}

func serverConfig(name string) Config {
	return Config{Env: []string{DefaultPath}, Cmd: []string{"/usr/sbin/" + name, "master process"}}
}

// serverLayer is a web server that goes by the name of another one: its
// process, its command line and its pid file are what the suite looks at.
func serverLayer(name string, port int) Layer {
	return Layer{Entries: []Entry{
		Dir("var/run/", 0o755), Dir("srv/", 0o755),
		File("srv/index.html", "<!doctype html><title>"+name+"</title>\n", 0o644),
		File("usr/sbin/"+name, fmt.Sprintf("#!/bin/sh\necho \"$0 serves\"\n"+
			"trap 'kill $server; exit 0' TERM INT QUIT\n"+
			"/bin/httpd -f -p %d -h /srv & server=$!\n"+
			"echo $$ >/var/run/%s.pid\nwait $server\n", port, name), 0o755),
	}}
}

// escalateLayer is a setuid program that prints its effective user.
func escalateLayer(ctx context.Context) (Layer, error) {
	const source = `#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\n", (int)geteuid()); return 0; }
`
	dir, err := os.MkdirTemp("", "critest-nnp-")
	if err != nil {
		return Layer{}, fmt.Errorf("make the setuid program: %w", err)
	}
	defer os.RemoveAll(dir)
	in, out := filepath.Join(dir, "nnp.c"), filepath.Join(dir, "nnp")
	if err := os.WriteFile(in, []byte(source), 0o600); err != nil {
		return Layer{}, fmt.Errorf("make the setuid program: %w", err)
	}
	if text, err := exec.CommandContext(ctx, "gcc", "-static", "-O2", "-o", out, in).CombinedOutput(); err != nil {
		return Layer{}, fmt.Errorf("make the setuid program: %w: %s", err, text)
	}
	binary, err := os.ReadFile(out)
	if err != nil {
		return Layer{}, fmt.Errorf("make the setuid program: %w", err)
	}
	return Layer{Entries: []Entry{{Name: "nnp", Mode: 0o4755, Body: binary}}}, nil
}
