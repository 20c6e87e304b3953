package images

import "strings"

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

	specs["hostile-config"] = Spec{Layers: []Layer{base}, RawConfig: []byte(`{"rootfs":`)}
	specs["hostile-config-layers"] = Spec{
		Layers:    []Layer{base},
		RawConfig: []byte(`{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}`),
	}
}
