package oci

import (
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const localhostPrefix = "localhost/"

// defaultMaskedPaths and defaultReadonlyPaths hide and protect what a kernel
// shows of the host in every procfs and sysfs. Paths that a kernel lacks are skipped.
func defaultMaskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

func defaultReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// hiddenPaths returns the paths to mask and to make read-only. Two empty lists
// are ambiguous in CRI: from the kubelet they mean procMount Unmasked, from
// other clients that nobody thought of it. Kubernetes allows Unmasked only with a
// user namespace, so without one the defaults apply.
func (c *Container) hiddenPaths() (masked, readonly []string) {
	sec := c.Config.GetLinux().GetSecurityContext()
	if sec.GetPrivileged() {
		return nil, nil
	}
	if len(sec.GetMaskedPaths())+len(sec.GetReadonlyPaths()) > 0 {
		return cleanPaths(sec.GetMaskedPaths()), cleanPaths(sec.GetReadonlyPaths())
	}
	userns := c.podNamespaceOptions().GetUsernsOptions()
	if userns != nil && userns.GetMode() == runtimeapi.NamespaceMode_POD {
		return nil, nil
	}
	return defaultMaskedPaths(), defaultReadonlyPaths()
}

func cleanPaths(list []string) []string {
	var out []string
	for _, p := range list {
		out = append(out, path.Clean(p))
	}
	return out
}

// SeccompProfile tells which profile the container is to run with. With
// Localhost, the second result is the absolute path of the profile's file.
// Nothing said means Unconfined, as CRI defines.
func SeccompProfile(config *runtimeapi.ContainerConfig) (runtimeapi.SecurityProfile_ProfileType, string, error) {
	sec := config.GetLinux().GetSecurityContext()
	if sec.GetPrivileged() {
		return runtimeapi.SecurityProfile_Unconfined, "", nil
	}
	field, p := securityField+".seccomp", sec.GetSeccomp()
	if p == nil {
		field = securityField + ".seccomp_profile_path"
		//nolint:staticcheck // SA1019: clients older than the seccomp field send only this one
		old := sec.GetSeccompProfilePath()
		if p = oldProfile(old); p == nil {
			return 0, "", noOldProfile(field, old)
		}
	}
	if err := checkProfile(field, p); err != nil {
		return 0, "", err
	}
	if p.GetProfileType() != runtimeapi.SecurityProfile_Localhost {
		return p.GetProfileType(), "", nil
	}
	file, err := absolutePath(field, strings.TrimPrefix(p.GetLocalhostRef(), localhostPrefix))
	if err != nil {
		return 0, "", err
	}
	return runtimeapi.SecurityProfile_Localhost, file, nil
}

// oldProfile reads the string form of a profile that CRI deprecated; nil: it has no such form.
func oldProfile(s string) *runtimeapi.SecurityProfile {
	switch {
	case s == "", s == "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	case s == "runtime/default", s == "docker/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	case strings.HasPrefix(s, localhostPrefix):
		return &runtimeapi.SecurityProfile{
			ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: strings.TrimPrefix(s, localhostPrefix),
		}
	}
	return nil
}

func noOldProfile(field, s string) error {
	return invalid(field, "%.300q is none of runtime/default, unconfined and localhost/NAME", s)
}

// seccomp returns the profile that the caller found, never none when one was
// asked for.
func (c *Container) seccomp() (*specs.LinuxSeccomp, error) {
	kind, _, err := SeccompProfile(c.Config)
	if err != nil {
		return nil, err
	}
	if c.Config.GetLinux().GetSecurityContext().GetPrivileged() {
		return nil, nil //nolint:nilnil // no profile is the answer
	}
	if kind != runtimeapi.SecurityProfile_Unconfined && c.Seccomp == nil {
		return nil, unsupported(securityField+".seccomp", "profile %s is not available", kind)
	}
	return c.Seccomp, nil
}

// apparmor returns the profile to run with, "" for none. A profile that the
// request names must not be left out; the default is best effort.
func (c *Container) apparmor() (string, error) {
	sec := c.Config.GetLinux().GetSecurityContext()
	field, p, named := securityField+".apparmor", sec.GetApparmor(), true
	if p == nil {
		field = securityField + ".apparmor_profile"
		//nolint:staticcheck // SA1019: clients older than the apparmor field send only this one
		old := sec.GetApparmorProfile()
		p = oldProfile(old)
		switch {
		case old == "":
			p, named = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, false
		case p == nil:
			return "", noOldProfile(field, old)
		}
	}
	if err := checkProfile(field, p); err != nil {
		return "", err
	}
	if sec.GetPrivileged() {
		return "", nil
	}
	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_Unconfined:
		if c.Host.AppArmor {
			return "unconfined", nil
		}
	case runtimeapi.SecurityProfile_RuntimeDefault:
		if c.Host.AppArmor && c.Host.AppArmorDefault == "" && named {
			return "", unsupported(field, "this node has no default AppArmor profile, the daemon's log says why")
		}
		return c.Host.AppArmorDefault, nil
	case runtimeapi.SecurityProfile_Localhost:
		name := strings.TrimPrefix(p.GetLocalhostRef(), localhostPrefix)
		if !c.Host.AppArmor {
			return "", unsupported(field, "profile %q: AppArmor is not enabled on this node", name)
		}
		if name == "" {
			return "", invalid(field, "the profile has no name")
		}
		return name, nil
	}
	return "", nil
}

// UnconfinedLabel is what a privileged container runs with, and one that shares the
// host's PID or IPC namespace: containers are kept apart from it, it is not from them.
const UnconfinedLabel = "system_u:system_r:spc_t:s0"

// ContainerLabels returns the SELinux labels of a container in a pod with the labels pod.
// Without those of the pod there are none, whatever is asked for: SELinux is not enabled.
func ContainerLabels(pod Labels, config *runtimeapi.ContainerConfig) Labels {
	if pod == (Labels{}) {
		return Labels{}
	}
	sec := config.GetLinux().GetSecurityContext()
	process := pod.Process
	if sec.GetPrivileged() {
		process = UnconfinedLabel
	}
	opts := sec.GetSelinuxOptions()
	if opts == nil || (opts.GetUser() == "" && opts.GetRole() == "" && opts.GetType() == "" && opts.GetLevel() == "") {
		return Labels{Process: process, Mount: pod.Mount}
	}
	return Labels{
		Process: changeLabel(process, "system_u:system_r:container_t:s0",
			opts.GetUser(), opts.GetRole(), opts.GetType(), opts.GetLevel()),
		Mount: changeLabel(pod.Mount, "system_u:object_r:container_file_t:s0", opts.GetUser(), "", "", opts.GetLevel()),
	}
}

// changeLabel replaces the parts of label, or of fallback when label is not
// complete, for which there is a new one.
func changeLabel(label, fallback string, parts ...string) string {
	old := strings.SplitN(label, ":", len(parts))
	if len(old) != len(parts) {
		old = strings.SplitN(fallback, ":", len(parts))
	}
	for i, part := range parts {
		if part != "" {
			old[i] = part
		}
	}
	return strings.Join(old, ":")
}
