package images

import (
	"archive/tar"
	"strings"
)

// Canary is the absolute path that the hostile layers try to write to. Its
// directory exists on every host.
const Canary = "/tmp/critest-canary"

// hostile adds images that a runtime must not pull.
func hostile(base Layer, specs map[string]Spec) {
	layer := func(name string, entries ...Entry) {
		specs["hostile-"+name] = Spec{Layers: []Layer{base, {Entries: entries}}, Config: busyboxConfig()}
	}
	up := strings.Repeat("../", 24)
	layer("climb", File(up+"tmp/critest-canary", "escaped\n", 0o644))
	layer("climb-middle", Dir("a/", 0o755), File("a/"+up+"tmp/critest-canary", "escaped\n", 0o644))
	layer("symlink", Symlink("escape", "/tmp"), File("escape/critest-canary", "escaped\n", 0o644))
	layer("symlink-relative", Symlink("escape", up+"tmp"), File("escape/critest-canary", "escaped\n", 0o644))
	layer("hardlink", Hardlink("stolen", up+"etc/shadow"))
	layer("hardlink-symlink", Symlink("escape", "/etc"), Hardlink("stolen", "escape/shadow"))
	layer("overwrite-symlink", Symlink("target", Canary), File("target", "escaped\n", 0o644))
	layer("whiteout-climb", File(".wh...", "", 0o600))
	layer("null-name", File("etc/\xff\xfe", "not UTF-8\n", 0o644))
	layer("deep", File(strings.Repeat("d/", 3000)+"file", "deep\n", 0o644))

	cut := func(blob []byte) []byte { return blob[:len(blob)*2/3] }
	truncated, plainCut, noise := base, base, base
	truncated.Damage = cut
	plainCut.Compression, plainCut.Damage = Plain, cut
	noise.Damage = func(blob []byte) []byte {
		out := append([]byte(nil), blob...)
		for i := len(out) / 2; i < len(out)/2+64; i++ {
			out[i] ^= 0x5a
		}
		return out
	}
	wrong := base
	wrong.DiffID = Digest([]byte("another layer"))
	for name, l := range map[string]Layer{
		"truncated": truncated, "truncated-plain": plainCut, "noise": noise, "diffid": wrong,
	} {
		// Of its own, so that no store has the layer already.
		l.Entries = append(l.Entries[:len(l.Entries):len(l.Entries)], File("etc/mark", name+"\n", 0o644))
		l.plain, l.gzipped = nil, nil
		specs["hostile-"+name] = Spec{Layers: []Layer{l}, Config: busyboxConfig()}
	}
	// Pulled gladly, but what they have in the place of mount points must not
	// lead out of them, nor may what they say of themselves select anything.
	link := func(name, at string) {
		specs["link-"+name] = Spec{Layers: []Layer{base, {Entries: []Entry{Symlink(at, up+"tmp")}}}, Config: busyboxConfig()}
	}
	link("dev", "dev")
	link("proc", "proc")
	link("sys", "sys")
	claims := busyboxConfig()
	claims.Volumes = map[string]struct{}{"/" + up + "tmp/critest-canary": {}, "/data": {}}
	claims.Labels = map[string]string{
		"containerd.io/restart.policy": "always", "containerd.io/restart.loguri": "binary:///bin/touch?" + Canary,
		"io.kubernetes.cri-o.Volumes": "/etc:/data", "io.container.runtime.hook": "/bin/touch " + Canary,
	}
	specs["claims"] = Spec{Layers: []Layer{base}, Config: claims}

	attacks(base, specs)

	specs["hostile-config"] = Spec{Layers: []Layer{base}, RawConfig: []byte(`{"rootfs":`)}
	specs["hostile-config-layers"] = Spec{
		Layers:    []Layer{base},
		RawConfig: []byte(`{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}`),
	}
}

// attacks adds images that are pulled, and whose containers then try something.
func attacks(base Layer, specs map[string]Spec) {
	add := func(name string, config Config, entries ...Entry) {
		specs["attack-"+name] = Spec{Layers: []Layer{base, {Entries: entries}}, Config: config}
	}
	user := func(name string) Config {
		c := busyboxConfig()
		c.User = name
		return c
	}
	// CVE-2019-5736: what is started is the runtime's own program, by three names.
	add("self-exe", busyboxConfig(), Symlink("evil", "/proc/self/exe"), File("script", "#!/proc/self/exe\n", 0o755))
	// CVE-2019-19921: decoys that take what is meant for the kernel.
	add("decoys", busyboxConfig(), Dir("decoy/", 0o777), Dir("decoy/self/", 0o777), Dir("decoy/sys/", 0o777),
		Dir("decoy/self/attr/", 0o777), File("decoy/self/attr/exec", "", 0o666), File("decoy/self/oom_score_adj", "", 0o666),
		Symlink("proc", "/decoy"), Symlink("sys", "/decoy/sys"))
	// CVE-2024-5154: files that a runtime writes lead elsewhere.
	up := strings.Repeat("../", 24) + Canary[1:]
	add("written-files", busyboxConfig(), Symlink("etc/mtab", Canary), Symlink("etc/hosts", Canary+"/hosts"), Symlink("etc/hostname", up+"/hostname"),
		Symlink("etc/resolv.conf", up+"/resolv.conf"), Symlink("volume", "/"+up+"/volume"), Symlink("etc/group", Canary))
	// CVE-2022-4318: real control bytes where a line of /etc/passwd could be made of them.
	add("home-control", user("evil"), File("etc/passwd", "root:x:0:0::/root:/bin/sh\nevil:x:1000:1000::/home/\x1b[2J\r\x01:/bin/sh\n", 0o644))
	// CVE-2025-4437: files that do not end, or that wait for a writer.
	add("passwd-endless", user("alice"), Entry{Name: "etc/passwd", Type: tar.TypeChar, Mode: 0o644, Major: 1, Minor: 5},
		Entry{Name: "etc/group", Type: tar.TypeChar, Mode: 0o644, Major: 1, Minor: 5})
	add("passwd-fifo", user("alice"), Entry{Name: "etc/passwd", Type: tar.TypeFifo, Mode: 0o644}, Entry{Name: "etc/group", Type: tar.TypeFifo, Mode: 0o644})
	env := busyboxConfig()
	env.Env = append(env.Env, "=no name", "LINES=a\nHOME=/stolen", "LD_PRELOAD=/evil.so", "CRI_RUNTIME_BIN=/evil", "NOTIFY_SOCKET=/evil", "GODEBUG=x=1")
	add("environment", env)
	// CVE-2024-21626: the working directory is a descriptor of the runtime's.
	fd := busyboxConfig()
	fd.WorkingDir = "/proc/self/fd/7/../../../../../../tmp"
	add("workdir", fd, Symlink("link", "/proc/self/fd/8"))
}
