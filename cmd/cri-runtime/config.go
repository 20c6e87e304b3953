package main

import (
	_ "embed" // the default configuration
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/cri-runtime/cri-runtime/imageservice"
)

// defaultTOML is both the documentation of the configuration and the only
// place of its defaults.
//
//go:embed default.toml
var defaultTOML string

const (
	defaultConfigFile = "/etc/cri-runtime/config.toml"
	maxConfigBytes    = 1 << 20
	maxSocketPath     = 107 // sun_path less its final zero
	maxHandler        = 63  // bytes of a RuntimeClass's handler, a DNS label
)

// config is what an administrator may choose. default.toml documents each key.
type config struct {
	Root         string        `toml:"root"`
	State        string        `toml:"state"`
	Listen       string        `toml:"listen"`
	LogLevel     int           `toml:"log_level"`
	CgroupDriver string        `toml:"cgroup_driver"`
	CgroupParent string        `toml:"cgroup_parent"`
	Handlers     []string      `toml:"handlers"`
	CDISpecDirs  []string      `toml:"cdi_spec_dirs"`
	Network      networkConfig `toml:"network"`
	Image        imageConfig   `toml:"image"`
	Log          logConfig     `toml:"log"`
	Metrics      metricsConfig `toml:"metrics"`
	Streaming    streamConfig  `toml:"streaming"`
}

type imageConfig struct {
	RegistryConfigDir string   `toml:"registry_config_dir"`
	Pinned            []string `toml:"pinned"`
	MaxParallelLayers int      `toml:"max_parallel_layers"`
	NoProgressTimeout duration `toml:"no_progress_timeout"`

	Proxy  proxyConfig  `toml:"proxy"`
	Policy policyConfig `toml:"policy"`
}

type proxyConfig struct {
	HTTP  proxyURL `toml:"http"`
	HTTPS proxyURL `toml:"https"`
	None  []string `toml:"none"`
}

// proxyURL is an address that may hold a password, which nobody is shown. It
// is a struct for the same reason as duration.
type proxyURL struct{ text string }

// UnmarshalText implements encoding.TextUnmarshaler.
//
//nolint:unparam // the interface has the error
func (p *proxyURL) UnmarshalText(text []byte) error {
	p.text = string(text)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
//
//nolint:unparam // the interface has the error
func (p proxyURL) MarshalText() ([]byte, error) {
	u, err := url.Parse(p.text)
	if err != nil {
		return []byte("***"), nil //nolint:nilerr // unreadable is not shown either
	}
	return []byte(u.Redacted()), nil
}

type policyConfig struct {
	Default string       `toml:"default"`
	Rules   []policyRule `toml:"rules"`
}

type policyRule struct {
	Prefix   string   `toml:"prefix"`
	Type     string   `toml:"type"`
	Keys     []string `toml:"keys"`
	Identity string   `toml:"identity"`
}

// policy is the policy in the words of imageservice.
func (p *policyConfig) policy() imageservice.Policy {
	out := imageservice.Policy{Default: p.Default}
	for _, r := range p.Rules {
		out.Rules = append(out.Rules, imageservice.PolicyRule(r))
	}
	return out
}

type metricsConfig struct {
	Listen string `toml:"listen"`
}

// check accepts nothing, or HOST:PORT.
func (m metricsConfig) check() error {
	if m.Listen == "" {
		return nil
	}
	if _, port, err := net.SplitHostPort(m.Listen); err != nil || port == "" {
		return &keyError{"metrics.listen", fmt.Sprintf("%q is not HOST:PORT", m.Listen)}
	}
	return nil
}

type logConfig struct {
	LineBytes int `toml:"line_bytes"`
}

// streamConfig is where Exec, Attach and PortForward send their clients.
type streamConfig struct {
	Address         string   `toml:"address"`
	Port            int      `toml:"port"`
	TLSCertFile     string   `toml:"tls_cert_file"`
	TLSKeyFile      string   `toml:"tls_key_file"`
	IdleTimeout     duration `toml:"idle_timeout"`
	CreationTimeout duration `toml:"creation_timeout"`
}

// duration is a time.Duration written as Go writes it: "1m30s". It is a
// struct because the decoder hands text only to types that aren't strings.
type duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(text []byte) error {
	var err error
	d.Duration, err = time.ParseDuration(string(text))
	return err
}

// MarshalText implements encoding.TextMarshaler.
//
//nolint:unparam // the interface has the error
func (d duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// effective returns what holds after all files and flags, by the keys of the file.
func (c *config) effective() (map[string]any, error) {
	text, err := toml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	keys := map[string]any{}
	if err = toml.Unmarshal(text, &keys); err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return keys, nil
}

// keyError is a value that cannot be.
type keyError struct {
	key  string // dotted, as in the file
	text string
}

// Error implements error.
func (e *keyError) Error() string { return e.key + ": " + e.text }

// check returns a *keyError for the first value that cannot be.
func (c *config) check() error {
	for _, p := range []struct{ key, path string }{
		{"root", c.Root},
		{"state", c.State},
		{"network.conf_dir", c.Network.ConfDir},
		{"image.registry_config_dir", c.Image.RegistryConfigDir},
	} {
		if err := checkPath(p.key, p.path); err != nil {
			return err
		}
	}
	if len(c.Network.BinDirs) == 0 {
		return &keyError{"network.bin_dirs", "names no directory"}
	}
	for _, dir := range c.Network.BinDirs {
		if err := checkPath("network.bin_dirs", dir); err != nil {
			return err
		}
	}
	for _, dir := range c.CDISpecDirs {
		if err := checkPath("cdi_spec_dirs", dir); err != nil {
			return err
		}
	}
	if filepath.Clean(c.Root) == filepath.Clean(c.State) {
		return &keyError{"state", fmt.Sprintf("%q is also the root: they must be two directories", c.State)}
	}
	if _, err := c.socket(); err != nil {
		return err
	}
	if _, err := c.network(); err != nil {
		return err
	}
	if err := c.Metrics.check(); err != nil {
		return err
	}
	return c.checkChoices()
}

func (c *config) checkChoices() error {
	switch c.CgroupDriver {
	case "auto", "cgroupfs", "systemd":
	default:
		return &keyError{"cgroup_driver", fmt.Sprintf("%q is none of auto, cgroupfs, systemd", c.CgroupDriver)}
	}
	if c.CgroupParent != "" && strings.Contains("/"+c.CgroupParent+"/", "/../") {
		return &keyError{"cgroup_parent", fmt.Sprintf("%q climbs with ..", c.CgroupParent)}
	}
	for _, name := range c.Handlers {
		if name == "" || len(name) > maxHandler || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return &keyError{"handlers", fmt.Sprintf("%q cannot be the handler of a RuntimeClass", name)}
		}
	}
	for _, n := range []struct {
		key          string
		n, low, high int
	}{
		{"log_level", c.LogLevel, 0, 10},
		{"image.max_parallel_layers", c.Image.MaxParallelLayers, 1, 64},
		{"network.mtu", c.Network.MTU, 0, 65535},
		{"log.line_bytes", c.Log.LineBytes, 256, 65536},
		{"streaming.port", c.Streaming.Port, 0, 65535},
	} {
		if n.n < n.low || n.n > n.high {
			return &keyError{n.key, fmt.Sprintf("%d is not between %d and %d", n.n, n.low, n.high)}
		}
	}
	for _, p := range []struct {
		key string
		proxyURL
	}{{"image.proxy.http", c.Image.Proxy.HTTP}, {"image.proxy.https", c.Image.Proxy.HTTPS}} {
		if u, err := url.Parse(p.text); p.text != "" && (err != nil || u.Host == "") {
			return &keyError{p.key, "it is not SCHEME://[USER:PASSWORD@]HOST:PORT"}
		}
	}
	for _, d := range []struct {
		key string
		d   duration
	}{
		{"image.no_progress_timeout", c.Image.NoProgressTimeout},
		{"network.plugin_timeout", c.Network.PluginTimeout},
		{"streaming.idle_timeout", c.Streaming.IdleTimeout},
		{"streaming.creation_timeout", c.Streaming.CreationTimeout},
	} {
		if d.d.Duration < time.Second {
			return &keyError{d.key, fmt.Sprintf("%s is less than a second", d.d)}
		}
	}
	return c.Streaming.check()
}

func (s *streamConfig) check() error {
	if _, err := netip.ParseAddr(s.Address); err != nil {
		return &keyError{"streaming.address", fmt.Sprintf("%q is not an IP address", s.Address)}
	}
	if s.TLSCertFile == "" && s.TLSKeyFile == "" {
		return nil
	}
	if err := checkPath("streaming.tls_cert_file", s.TLSCertFile); err != nil {
		return err
	}
	return checkPath("streaming.tls_key_file", s.TLSKeyFile)
}

func checkPath(key, path string) error {
	switch {
	case !filepath.IsAbs(path):
		return &keyError{key, fmt.Sprintf("%q is not an absolute path", path)}
	case strings.ContainsRune(path, 0):
		return &keyError{key, fmt.Sprintf("%q contains a zero byte", path)}
	}
	return nil
}

// socket returns the path of the CRI socket.
func (c *config) socket() (string, error) {
	listen := c.Listen
	if listen == "" {
		listen = "unix://" + filepath.Join(c.State, "cri-runtime.sock")
	}
	path, ok := strings.CutPrefix(listen, "unix://")
	if !ok {
		return "", &keyError{"listen", fmt.Sprintf("%q does not begin with unix://", listen)}
	}
	if err := checkPath("listen", path); err != nil {
		return "", err
	}
	if len(path) > maxSocketPath {
		return "", &keyError{"listen", fmt.Sprintf("%q has %d bytes, a socket's path at most %d", path, len(path), maxSocketPath)}
	}
	return path, nil
}
