package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Slowness is how many times longer than usual a test should wait for things: CRITEST_SLOWNESS,
// for emulated and loaded machines. It has no unit.
func Slowness() time.Duration {
	n, err := strconv.Atoi(os.Getenv("CRITEST_SLOWNESS"))
	if err != nil || n < 1 {
		return 1
	}
	return time.Duration(n)
}

// TrustRegistry makes the runtime use HTTPS with that authority for address.
// It counts from the next pull.
func (r *Runtime) TrustRegistry(address string, ca []byte) error {
	dir := filepath.Join(r.Dir, "certs", address)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("trust %s: %w", address, err)
	}
	file := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(file, ca, 0o600); err != nil {
		return fmt.Errorf("trust %s: %w", address, err)
	}
	hosts := fmt.Sprintf("server = \"https://%s\"\n[host.\"https://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = %q\n",
		address, address, file)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o600); err != nil {
		return fmt.Errorf("trust %s: %w", address, err)
	}
	return nil
}

// MirrorRegistry makes the runtime take what it wants of the registry host
// from the plain HTTP server at address instead.
func (r *Runtime) MirrorRegistry(host, address string) error {
	dir := filepath.Join(r.Dir, "certs", host)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("mirror %s: %w", host, err)
	}
	text := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", address)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("mirror %s: %w", host, err)
	}
	return nil
}

// ConfigureRegistry makes text the hosts.toml of a registry, from the next pull
// on; "" takes it away.
func (r *Runtime) ConfigureRegistry(host, text string) error {
	dir := filepath.Join(r.Dir, "certs", host)
	if text == "" {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("configure %s: %w", host, err)
		}
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("configure %s: %w", host, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("configure %s: %w", host, err)
	}
	return nil
}

func (r *Runtime) writeConfig() error {
	text := r.ownConfig()
	if r.options.Peer {
		text = r.peerConfig()
	}
	if err := os.WriteFile(filepath.Join(r.Dir, "config.toml"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}

func (r *Runtime) ownConfig() string {
	text := fmt.Sprintf("[image]\nregistry_config_dir = %q\nno_progress_timeout = \"%s\"\n[network]\nbuiltin = %t\n",
		filepath.Join(r.Dir, "certs"), max(3*time.Second, time.Second*Slowness()), r.options.Builtin)
	if r.options.Builtin {
		text += fmt.Sprintf("bridge = %q\nsubnets = [\"%s.0/24\", \"%s/64\"]\n", r.Bridge, r.Subnet(), r.SubnetIPv6())
	}
	return text
}

// peerConfig is for containerd 1.6, made for a fair comparison: nothing is
// switched off but what this kind of machine lacks.
func (r *Runtime) peerConfig() string {
	bin := r.options.CNIBin
	if bin == "" {
		bin = "/usr/lib/cni"
	}
	return fmt.Sprintf(`version = 2
root = %[1]q
state = %[2]q
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt"]
[grpc]
  address = %[3]q
[ttrpc]
  address = %[4]q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[5]s/cri-runtime/pause:latest"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %[6]q
    conf_dir = %[7]q
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = %[8]q
`, filepath.Join(r.Dir, "root"), filepath.Join(r.Dir, "state"), r.Socket, r.Socket+".ttrpc",
		r.options.Registry, bin, filepath.Join(r.Dir, "cni"), filepath.Join(r.Dir, "certs"))
}
