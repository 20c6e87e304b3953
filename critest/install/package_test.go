package install

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// debian is a root directory with an empty package database.
type debian struct {
	t   *testing.T
	dir string
}

func newDebian(t *testing.T) *debian {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil || os.Getuid() != 0 {
		t.Skip("needs dpkg-deb and root")
	}
	helper, err := os.ReadFile("/usr/bin/deb-systemd-helper")
	if err == nil && !bytes.Contains(helper, []byte("DPKG_ROOT")) {
		t.Skip("deb-systemd-helper here knows no other root")
	}
	d := &debian{t, t.TempDir()}
	for _, name := range []string{"status", "available", "info/format"} {
		write(t, filepath.Join(d.dir, "var/lib/dpkg", name), "")
	}
	write(t, d.dir+"/var/lib/dpkg/info/format", "1\n")
	if err := os.MkdirAll(d.dir+"/var/lib/dpkg/updates", 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *debian) dpkg(args ...string) string {
	d.t.Helper()
	return run(d.t, []string{"DEBIAN_FRONTEND=noninteractive"},
		append([]string{"dpkg", "--root=" + d.dir, "--log=/dev/null", "--force-script-chrootless"}, args...)...)
}

// left lists what is there besides the package database.
func (d *debian) left() []string {
	return slices.DeleteFunc(tree(d.t, d.dir), func(path string) bool { return strings.HasPrefix(path, "/var/lib/dpkg/") })
}

// build makes the package and returns its path.
func build(t *testing.T, share, version string) string {
	t.Helper()
	out := t.TempDir()
	run(t, []string{"OUT=" + out, "SHARE=" + share, "DEB_COMPRESSION=none"}, "deploy/debian/build", version)
	files, err := filepath.Glob(out + "/*.deb")
	if err != nil || len(files) != 1 {
		t.Fatalf("%d packages: %v", len(files), err)
	}
	return files[0]
}

// The package is installed, upgraded, removed and purged in another root.
func TestPackage(t *testing.T) {
	t.Parallel()
	share := documents(t)
	d := newDebian(t)
	first, second := build(t, share, "v1.2.0-rc.1"), build(t, share, "v1.2.0")
	d.dpkg("-i", first)
	there := d.left()
	for _, path := range []string{
		"/usr/bin/cri-runtime", "/usr/lib/systemd/system/cri-runtime.service", "/etc/cri-runtime/config.toml", "/etc/crictl.yaml",
		"/usr/lib/cri-runtime/cni/bridge", "/usr/share/man/man1/cri-runtime.1.gz", "/etc/cri-runtime/certs.d",
	} {
		if !slices.Contains(there, path) {
			t.Errorf("%s is not installed", path)
		}
	}
	if i := slices.IndexFunc(there, func(path string) bool { return strings.HasPrefix(path, "/opt/") }); i >= 0 {
		t.Errorf("the package has %s, which may be another package's", there[i])
	}
	contains(t, d.dir+"/etc/cri-runtime/config.toml", `bin_dirs = ["/opt/cni/bin", "/usr/lib/cri-runtime/cni"]`)
	contains(t, d.dir+"/usr/lib/systemd/system/cri-runtime.service", "\nExecStart=/usr/bin/cri-runtime serve")
	run(t, nil, "bin/cri-runtime", "config", "validate", d.dir+"/etc/cri-runtime/config.toml")

	write(t, d.dir+"/etc/cri-runtime/config.toml", "log_level = 3\n")
	d.dpkg("-i", second) // fails if the release does not sort after its candidate: dpkg says so
	contains(t, d.dir+"/etc/cri-runtime/config.toml", "log_level = 3\n")
	contains(t, d.dir+"/var/lib/dpkg/status", "Version: 1.2.0\n")

	d.dpkg("-r", "cri-runtime")
	for _, path := range d.left() {
		if !strings.HasPrefix(path, "/etc/cri-runtime/") && !strings.HasPrefix(path, "/etc/systemd/") && !strings.HasPrefix(path, "/var/lib/systemd/") {
			t.Errorf("removing leaves %s", path)
		}
	}
	d.dpkg("-P", "cri-runtime")
	for _, path := range d.left() {
		// Directories that systemd's helper made for all packages.
		if !strings.HasPrefix(path, "/etc/systemd") && path != "/var/lib/systemd" || strings.Contains(path, "cri-runtime") {
			t.Errorf("purging leaves %s", path)
		}
	}
}

// State is deleted by purging, but not while pods need it.
func TestPurgeKeepsStateOfPods(t *testing.T) {
	t.Parallel()
	d := newDebian(t)
	postrm := func() string { return run(t, []string{"DPKG_ROOT=" + d.dir}, "deploy/debian/postrm", "purge") }
	record, socket := d.dir+"/var/lib/cri-runtime/containers/a/container.json", d.dir+"/run/cri-runtime/containers/a/monitor.sock"
	write(t, record, "{}")
	write(t, socket, "")
	if said := postrm(); !strings.Contains(said, "pods are left") {
		t.Errorf("purging with a pod says %q", said)
	}
	contains(t, record, "{}")
	if err := os.RemoveAll(filepath.Dir(socket)); err != nil {
		t.Fatal(err)
	}
	postrm()
	if left := d.left(); !slices.Equal(left, []string{"/run"}) {
		t.Errorf("purging without a pod leaves %v, want /run", left)
	}
}

// The same sources make the same package.
func TestPackageIsReproducible(t *testing.T) {
	t.Parallel()
	newDebian(t)
	share := documents(t)
	var sums []string
	for range 2 {
		sums = append(sums, strings.Fields(run(t, nil, "sha256sum", build(t, share, "v1.2.0")))[0])
	}
	if sums[0] != sums[1] {
		t.Errorf("two builds have the digests %v", sums)
	}
}
