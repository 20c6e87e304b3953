package oci

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const maxMounts = 10_000 // well below fs.mount-max

// defaultMounts is what every container has. Their order is their depth.
func (c *Container) defaultMounts() []specs.Mount {
	sec := c.Config.GetLinux().GetSecurityContext()
	writable := func(options ...string) []string {
		if !sec.GetPrivileged() {
			options = append(options, "ro")
		}
		return options
	}
	shm := specs.Mount{
		Destination: "/dev/shm", Type: "bind", Source: c.Files.Shm,
		Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev"},
	}
	if c.Files.Shm == "" {
		shm.Type, shm.Source = "tmpfs", "shm"
		shm.Options = []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: writable("nosuid", "noexec", "nodev")},
		{
			Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"},
		},
		shm,
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: writable("nosuid", "noexec", "nodev", "relatime")},
	}
	for _, f := range []struct{ to, from string }{
		{"/etc/hostname", c.Files.Hostname}, {"/etc/hosts", c.Files.Hosts}, {"/etc/resolv.conf", c.Files.ResolvConf},
	} {
		if f.from == "" {
			continue
		}
		options := []string{"bind", "rprivate", "nosuid", "noexec", "nodev"}
		if sec.GetReadonlyRootfs() {
			options = append(options, "ro")
		}
		mounts = append(mounts, specs.Mount{Destination: f.to, Type: "bind", Source: f.from, Options: options})
	}
	return mounts
}

// mounts joins the default mounts and those of the request, parents before
// children, and returns the propagation that the root needs for them. Where
// the request mounts on the place of a default, the default is left out.
func (c *Container) mounts() ([]specs.Mount, string, error) {
	var volumes []specs.Mount
	propagation := ""
	for i, m := range c.Config.GetMounts() {
		mount, err := volumeMount(index("config.mounts", i), m)
		if err != nil {
			return nil, "", err
		}
		volumes = append(volumes, mount)
		switch {
		case m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			propagation = "rshared"
		case m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER && propagation == "":
			propagation = "rslave"
		}
	}
	all := slices.DeleteFunc(c.forUserNamespace(c.defaultMounts()), func(d specs.Mount) bool {
		return slices.ContainsFunc(volumes, func(v specs.Mount) bool { return replaces(&v, d.Destination) })
	})
	all = append(all, volumes...)
	SortMounts(all)
	return all, propagation, nil
}

// replaces tells whether volume v leaves no place for a default mount: it is
// mounted there, or above it in a way that would carry the mount to the host.
func replaces(v *specs.Mount, destination string) bool {
	if v.Destination == destination {
		return true
	}
	return strings.HasPrefix(destination, v.Destination+"/") && slices.Contains(v.Options, "rshared")
}

// volumeMount translates one CRI mount.
//
// "rw" is not among the options: a bind mount is writable unless its source
// is not, and runtimes that are told "rw" lift a noexec or ro of the source.
func volumeMount(field string, m *runtimeapi.Mount) (specs.Mount, error) {
	if m == nil {
		return specs.Mount{}, invalid(field, "is empty")
	}
	if m.GetImage() != nil || m.GetImageSubPath() != "" {
		return imageMount(field, m)
	}
	source, err := absolutePath(field+".host_path", m.GetHostPath())
	if err != nil {
		return specs.Mount{}, err
	}
	target, err := absolutePath(field+".container_path", m.GetContainerPath())
	if err != nil {
		return specs.Mount{}, err
	}
	if err := checkTarget(field+".container_path", source, target); err != nil {
		return specs.Mount{}, err
	}
	options, err := volumeOptions(field, m)
	if err != nil {
		return specs.Mount{}, err
	}
	uids, gids, err := mountMappings(field, m)
	if err != nil {
		return specs.Mount{}, err
	}
	return specs.Mount{
		Destination: target, Source: source, Type: "bind", Options: options,
		UIDMappings: uids, GIDMappings: gids,
	}, nil
}

// mountMappings wants users and groups to be mapped, or neither.
func mountMappings(field string, m *runtimeapi.Mount) (uids, gids []specs.LinuxIDMapping, err error) {
	if uids, err = idMappings(field+".uidMappings", m.GetUidMappings()); err != nil {
		return nil, nil, err
	}
	if gids, err = idMappings(field+".gidMappings", m.GetGidMappings()); err != nil {
		return nil, nil, err
	}
	if (len(uids) == 0) != (len(gids) == 0) {
		return nil, nil, invalid(field+".uidMappings", "%d, but gidMappings are %d: both are needed, or neither", len(uids), len(gids))
	}
	return uids, gids, firstError(checkRanges(field+".uidMappings", uids), checkRanges(field+".gidMappings", gids))
}

const imagePrefix = "image:"

// imageMount translates the mount of an image, which nobody may ask to write to. Its source
// is not a path: ImageSource reads it.
func imageMount(field string, m *runtimeapi.Mount) (specs.Mount, error) {
	ref := m.GetImage().GetImage()
	switch {
	case ref == "":
		return specs.Mount{}, invalid(field+".image.image", "is missing")
	case m.GetHostPath() != "":
		return specs.Mount{}, invalid(field+".host_path", "is set beside image, only one of them is possible")
	case m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return specs.Mount{}, invalid(field+".propagation", "must be PRIVATE, it is an image that is mounted")
	case !m.GetReadonly():
		return specs.Mount{}, invalid(field+".readonly", "must be true, it is an image that is mounted")
	case strings.Contains(ref, "//"):
		return specs.Mount{}, invalid(field+".image.image", "%.300q is no image", ref)
	}
	target, err := absolutePath(field+".container_path", m.GetContainerPath())
	if err == nil {
		err = firstError(checkText(field+".image.image", ref, maxPathBytes), checkTarget(field+".container_path", "", target))
	}
	if err != nil {
		return specs.Mount{}, err
	}
	sub := ""
	if m.GetImageSubPath() != "" {
		if sub, err = absolutePath(field+".image_sub_path", "/"+m.GetImageSubPath()); err != nil {
			return specs.Mount{}, err
		}
	}
	options, err := volumeOptions(field, m)
	if err != nil {
		return specs.Mount{}, err
	}
	options = slices.DeleteFunc(options, func(o string) bool { return o == "rbind" || o == "ro" || o == "rro" })
	for _, o := range []string{"nodev", "nosuid"} {
		if !slices.Contains(options, o) {
			options = append(options, o)
		}
	}
	return specs.Mount{
		Destination: target, Type: "bind", Source: imagePrefix + ref + "//" + strings.TrimPrefix(sub, "/"),
		Options: append([]string{"bind", "ro"}, options...),
	}, nil
}

// ImageSource returns which image, and which path in it, a mount's source stands for.
func ImageSource(m *specs.Mount) (ref, subPath string, ok bool) {
	rest, ok := strings.CutPrefix(m.Source, imagePrefix)
	if !ok || m.Type != "bind" {
		return "", "", false
	}
	return strings.Cut(rest, "//")
}

// GivenSources tells which mounts need a source that the daemon prepares: images, and those
// with mapped ids.
func GivenSources(spec *specs.Spec) []bool {
	given := make([]bool, len(spec.Mounts))
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		_, _, image := ImageSource(m)
		given[i] = image || len(m.UIDMappings)+len(m.GIDMappings) > 0
	}
	return given
}

// checkTarget refuses to cover the root and to put anything but procfs itself
// in the place of procfs: masks, read-only paths and the writing of labels rely
// on it (CVE-2019-19921, CVE-2023-27561, CVE-2023-28642). Single files that
// show resources, as lxcfs provides them, do no harm. /sys and /dev may be the host's.
func checkTarget(field, source, target string) error {
	switch target {
	case "/":
		return invalid(field, "the root itself cannot be a mount's target")
	case "/proc":
		if source != "/proc" {
			return invalid(field, "only the host's /proc can be mounted on /proc, not %q", source)
		}
		return nil
	case "/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo", "/proc/net/dev", "/proc/slabinfo",
		"/proc/stat", "/proc/swaps", "/proc/uptime":
		return nil
	}
	if strings.HasPrefix(target, "/proc/") {
		return invalid(field, "%q is inside /proc, where nothing can be mounted", target)
	}
	return nil
}

func volumeOptions(field string, m *runtimeapi.Mount) ([]string, error) {
	options := []string{"rbind"}
	switch m.GetPropagation() {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		options = append(options, "rprivate")
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		options = append(options, "rslave")
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		options = append(options, "rshared")
	default:
		return nil, invalid(field+".propagation", "%d is unknown", m.GetPropagation())
	}
	switch {
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return nil, invalid(field+".recursive_read_only", "needs readonly")
	case m.GetRecursiveReadOnly() && m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return nil, invalid(field+".recursive_read_only", "needs propagation PRIVATE")
	case m.GetRecursiveReadOnly():
		options = append(options, "rro")
	case m.GetReadonly():
		options = append(options, "ro")
	}
	for i, o := range m.GetMountOptions() {
		switch {
		case o != "noexec" && o != "nodev" && o != "nosuid":
			return nil, invalid(index(field+".mount_options", i), "%.64q is not one of noexec, nodev, nosuid", o)
		case !slices.Contains(options, o):
			options = append(options, o)
		}
	}
	return options, nil
}
