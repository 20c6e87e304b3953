package images

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// BusyboxPath is the statically linked busybox that the images are made of.
const BusyboxPath = "/bin/busybox"

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
web:x:1000:1000:web:/home/web:/bin/sh
alice:x:1001:1002:alice:/home/alice:/bin/sh
`

const group = `root:x:0:
daemon:x:1:
web:x:1000:
staff:x:1002:
video:x:44:alice,web
audio:x:63:alice
`

// DefaultPath is the PATH of all images here.
const DefaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// BusyboxLayer is a root file system with busybox under all its names.
func BusyboxLayer(ctx context.Context) (Layer, error) {
	return busyboxLayer(ctx, func(name string) Entry { return Symlink("bin/"+name, "busybox") })
}

func busyboxLayer(ctx context.Context, link func(name string) Entry) (Layer, error) {
	binary, err := os.ReadFile(BusyboxPath)
	if err != nil {
		return Layer{}, fmt.Errorf("read busybox (Debian: busybox-static): %w", err)
	}
	list, err := exec.CommandContext(ctx, BusyboxPath, "--list").Output()
	if err != nil {
		return Layer{}, fmt.Errorf("list the applets of %s: %w", BusyboxPath, err)
	}
	l := Layer{Entries: []Entry{
		Dir("bin/", 0o755),
		{Name: "bin/busybox", Mode: 0o755, Body: binary},
		Dir("dev/", 0o755), Dir("proc/", 0o555), Dir("sys/", 0o555), Dir("run/", 0o755),
		Dir("tmp/", 0o1777), Dir("root/", 0o700), Dir("var/", 0o755), Dir("var/log/", 0o755),
		Dir("usr/", 0o755), Dir("usr/bin/", 0o755), Dir("usr/sbin/", 0o755), Dir("sbin/", 0o755),
		Dir("home/", 0o755),
		{Name: "home/web/", Type: tar.TypeDir, Mode: 0o755, UID: 1000, GID: 1000},
		{Name: "home/alice/", Type: tar.TypeDir, Mode: 0o750, UID: 1001, GID: 1002},
		Dir("etc/", 0o755),
		File("etc/passwd", passwd, 0o644),
		File("etc/group", group, 0o644),
		File("etc/not-executable", "#!/bin/sh\n", 0o644),
		File("etc/not-a-program", "neither script nor binary\x00\x01", 0o755),
		Symlink("usr/bin/env", "/bin/busybox"),
	}}
	for _, name := range strings.Fields(string(list)) {
		if name != "busybox" {
			l.Entries = append(l.Entries, link(name))
		}
	}
	if l.plain, err = l.Tar(); err != nil {
		return Layer{}, err
	}
	if l.gzipped, err = Gzip.compress(l.plain); err != nil {
		return Layer{}, err
	}
	return l, nil
}

// Signaller is a command that prints "up", waits and ends with code 0 on
// SIGTERM. Before it prints, as PID 1 without a handler, it would ignore the signal.
func Signaller() []string {
	return []string{"sh", "-c", `trap "exit 0" TERM; echo up; sleep 2147483647 & wait`}
}

func busyboxConfig() Config {
	return Config{Env: []string{DefaultPath}, Cmd: []string{"sh"}}
}

func webLayer() Layer {
	return Layer{Entries: []Entry{
		Dir("www/", 0o755),
		File("www/index.html", "<!doctype html><title>cri-runtime</title><p>It works.\n", 0o644),
		File("bin/web", "#!/bin/sh\n"+
			"# PID 1 gets no signal that it does not catch\n"+
			"trap 'kill $server; exit 0' TERM INT\n"+
			"httpd -f -p \"${PORT:-8080}\" -h /www & server=$!\nwait $server\n", 0o755),
	}}
}
