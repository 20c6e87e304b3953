package install

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// run executes a program at the top of the module and returns what it prints.
func run(t *testing.T, env []string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", args, err, out)
	}
	return string(out)
}

// documents makes manual pages and completions.
func documents(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("../../bin/cri-runtime"); err != nil {
		t.Skip("needs what make build makes")
	}
	dir := t.TempDir()
	run(t, []string{"CGO_ENABLED=0"}, "go", "run", "-trimpath", "-tags", "docs,grpcnotrace", "./cmd/cri-runtime", "docs", dir)
	return dir
}

// tree lists what is below dir: files, links and directories that are empty.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if in, err := os.ReadDir(path); err != nil || len(in) > 0 {
				return err
			}
		}
		paths = append(paths, strings.TrimPrefix(path, dir))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func contains(t *testing.T, path, text string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !strings.Contains(string(got), text) {
		t.Errorf("%s does not have %q (%v):\n%s", path, text, err, got)
	}
}

// Installing, installing again and uninstalling leaves what was there before.
func TestInstall(t *testing.T) {
	t.Parallel()
	share := documents(t)
	for _, prefix := range []string{"/usr", "/usr/local"} {
		t.Run(prefix, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			env := []string{"DESTDIR=" + dir, "PREFIX=" + prefix, "SHARE=" + share}
			write(t, dir+"/etc/crictl.yaml", "mine")
			write(t, dir+"/opt/cni/bin/mine", "mine")
			before := tree(t, dir)
			run(t, env, "deploy/install")
			first := tree(t, dir)
			run(t, env, "deploy/install")
			if second := tree(t, dir); !slices.Equal(first, second) {
				t.Errorf("installed anew there is %v, want %v", second, first)
			}
			for _, path := range []string{
				prefix + "/bin/cri-runtime", "/opt/cni/bin/bridge", "/etc/cri-runtime/config.toml", "/etc/cri-runtime/config.toml.d",
				prefix + "/share/man/man1/cri-runtime-serve.1", prefix + "/share/man/man5/cri-runtime.toml.5",
				prefix + "/share/bash-completion/completions/cri-runtime", prefix + "/share/doc/cri-runtime/examples/kubernetes/runtimeclass.yaml",
			} {
				if !slices.Contains(first, path) {
					t.Errorf("%s is not installed", path)
				}
			}
			contains(t, dir+prefix+"/lib/systemd/system/cri-runtime.service", "\nExecStart="+prefix+"/bin/cri-runtime serve")
			contains(t, dir+"/etc/crictl.yaml", "mine")
			run(t, nil, "bin/cri-runtime", "config", "validate", dir+"/etc/cri-runtime/config.toml")
			run(t, env, "deploy/install", "uninstall")
			if after := tree(t, dir); !slices.Equal(before, after) {
				t.Errorf("uninstalling leaves %v, want %v", after, before)
			}
		})
	}
}

// What the administrator or another package has changed is theirs, and what a
// new version has no more goes.
func TestInstallKeepsChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	env := []string{"DESTDIR=" + dir, "PREFIX=/usr", "SHARE=" + documents(t)}
	run(t, env, "deploy/install")
	write(t, dir+"/etc/cri-runtime/config.toml", "log_level = 3\n")
	write(t, dir+"/opt/cni/bin/bridge", "another version")
	write(t, dir+"/etc/cri-runtime/config.toml.d/10-mine.toml", "log_level = 4\n")
	run(t, append(env, "CNIBINDIR=/usr/lib/cri-runtime/cni"), "deploy/install")
	contains(t, dir+"/etc/cri-runtime/config.toml", "log_level = 3\n")
	if _, err := os.Stat(dir + "/opt/cni/bin/loopback"); err == nil {
		t.Error("a plugin that is installed elsewhere now is still in /opt/cni/bin")
	}
	run(t, env, "deploy/install", "uninstall")
	want := []string{"/etc/cri-runtime/config.toml", "/etc/cri-runtime/config.toml.d/10-mine.toml", "/opt/cni/bin/bridge"}
	if left := tree(t, dir); !slices.Equal(left, want) {
		t.Errorf("uninstalling leaves %v, want %v", left, want)
	}
}
