package oci

import (
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultTerm = "TERM=xterm"
)

func (c *Container) imageConfig() *imagespec.ImageConfig {
	if c.Image == nil {
		return &imagespec.ImageConfig{}
	}
	return &c.Image.Config
}

func (c *Container) process() (*specs.Process, error) {
	args, err := c.args()
	if err != nil {
		return nil, err
	}
	env, err := c.env()
	if err != nil {
		return nil, err
	}
	total := 0
	for _, s := range append(slices.Clone(args), env...) {
		total += len(s) + 1 + pointerBytes
	}
	if err := checkProcessSize("config.envs and the image's Env", total); err != nil {
		return nil, err
	}
	dir, err := c.directory()
	if err != nil {
		return nil, err
	}
	sec := c.Config.GetLinux().GetSecurityContext()
	caps, _, err := capabilities(sec, c.Host)
	if err != nil {
		return nil, err
	}
	profile, err := c.apparmor()
	if err != nil {
		return nil, err
	}
	// Always set: the container would inherit the protective score of its monitor.
	score := c.Host.ClampOOMScoreAdj(int(c.Config.GetLinux().GetResources().GetOomScoreAdj()))
	return &specs.Process{
		Terminal: c.Config.GetTty(),
		User: specs.User{
			UID: c.User.UID, GID: c.User.GID,
			AdditionalGids: slices.Clone(c.User.AdditionalGids),
		},
		Args:            args,
		Env:             env,
		Cwd:             dir,
		Capabilities:    caps,
		Rlimits:         c.Host.ClampRlimits(c.Rlimits),
		NoNewPrivileges: sec.GetNoNewPrivs(),
		ApparmorProfile: profile,
		OOMScoreAdj:     &score,
	}, nil
}

// args follows Kubernetes: a command replaces the image's entrypoint and its
// arguments, args alone replace the arguments.
func (c *Container) args() ([]string, error) {
	image := c.imageConfig()
	command, args := c.Config.GetCommand(), c.Config.GetArgs()
	if len(command) == 0 {
		command = image.Entrypoint
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	all := slices.Concat(command, args)
	switch {
	case len(all) == 0:
		return nil, invalid("config.command", "is missing, and the image %q has neither Entrypoint nor Cmd", c.imageName())
	case all[0] == "":
		return nil, invalid("config.command[0]", "is empty: there is nothing to run")
	}
	for i, s := range all {
		if err := checkArg(index("arguments", i), s); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (c *Container) imageName() string {
	if name := c.Config.GetImage().GetUserSpecifiedImage(); name != "" {
		return name
	}
	return c.Config.GetImage().GetImage()
}

// environment is a list of variables in which a later value takes the place
// of an earlier one.
type environment struct {
	list  []string
	index map[string]int
}

func (e *environment) set(key, entry string) {
	if i, ok := e.index[key]; ok {
		e.list[i] = entry
		return
	}
	e.index[key] = len(e.list)
	e.list = append(e.list, entry)
}

func (e *environment) setDefault(entry string) {
	key, _, _ := strings.Cut(entry, "=")
	if _, ok := e.index[key]; !ok {
		e.set(key, entry)
	}
}

// env joins, the weaker first: the image's variables, HOSTNAME, those of the
// request. PATH, TERM (with a terminal) and HOME are added where nobody sets them.
func (c *Container) env() ([]string, error) {
	e := &environment{index: map[string]int{}}
	for i, entry := range c.imageConfig().Env {
		key, value, ok := strings.Cut(entry, "=")
		if !ok || key == "" {
			continue // no program can look it up
		}
		kv := &runtimeapi.KeyValue{Key: key, Value: []byte(value)}
		if err := checkEnv(index("image "+c.imageName()+": Env", i), kv); err != nil {
			return nil, err
		}
		e.set(key, entry)
	}
	if name := c.hostname(); name != "" {
		e.set("HOSTNAME", "HOSTNAME="+name)
	}
	for _, kv := range c.Config.GetEnvs() {
		e.set(kv.GetKey(), kv.GetKey()+"="+string(kv.GetValue()))
	}
	e.setDefault(defaultPath)
	if c.Config.GetTty() {
		e.setDefault(defaultTerm)
	}
	home := c.User.Home
	if home == "" {
		home = "/"
	}
	e.setDefault("HOME=" + home)
	return e.list, nil
}

// hostname is what the container's processes see as their host's name.
func (c *Container) hostname() string {
	if name := c.Pod.GetHostname(); name != "" {
		return name
	}
	if c.hostNetwork() {
		return c.Host.Hostname
	}
	return ""
}

// directory returns the working directory, absolute below the container's
// root. An image's relative one counts from the root.
func (c *Container) directory() (string, error) {
	if wd := c.Config.GetWorkingDir(); wd != "" {
		return path.Clean(wd), nil
	}
	wd := c.imageConfig().WorkingDir
	if len(wd) > maxPathBytes || strings.IndexByte(wd, 0) >= 0 || !utf8.ValidString(wd) {
		return "", invalid("image "+c.imageName()+": WorkingDir", "%.300q cannot be a directory", wd)
	}
	return path.Clean("/" + wd), nil
}

// ExecProcess returns the process of an exec in the container of spec: its
// user, capabilities, directory and environment, with other arguments. It shares
// no memory with spec that either is likely to write to.
func ExecProcess(spec *specs.Spec, args []string, tty bool) *specs.Process {
	p := *spec.Process
	p.Args = slices.Clone(args)
	p.Env = slices.Clone(p.Env)
	p.Terminal = tty
	p.ConsoleSize = nil
	hasTerm := slices.ContainsFunc(p.Env, func(s string) bool { return strings.HasPrefix(s, "TERM=") })
	if tty && !hasTerm {
		p.Env = append(p.Env, defaultTerm)
	}
	return &p
}
