package oci

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// capabilityNames returns the capabilities by number, as linux/capability.h has them.
func capabilityNames() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
		"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
		"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
		"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
		"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
		"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	}
}

// defaultCapabilities are what a container has that asks for nothing.
func defaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_AUDIT_WRITE",
		"CAP_SETFCAP",
	}
}

const allCapabilities = "ALL"

// capabilityName brings a name to the form CAP_X; ALL stays ALL.
func capabilityName(name string) (string, bool) {
	n := strings.ToUpper(name)
	if n == allCapabilities || n == "CAP_"+allCapabilities {
		return allCapabilities, true
	}
	if !strings.HasPrefix(n, "CAP_") {
		n = "CAP_" + n
	}
	return n, slices.Contains(capabilityNames(), n)
}

// parseCapabilities returns the names in list and whether ALL is among them.
func parseCapabilities(field string, list []string) (names []string, all bool, err error) {
	for i, raw := range list {
		name, known := capabilityName(raw)
		switch {
		case !known:
			return nil, false, invalid(index(field, i), "unknown capability %q", raw)
		case name == allCapabilities:
			all = true
		default:
			names = append(names, name)
		}
	}
	return names, all, nil
}

const capabilitiesField = securityField + ".capabilities"

// capabilities returns the sets of a container's first process and the names
// asked for that the daemon cannot hand on.
//
// ALL counts before single names and dropping ALL before adding, so that
// "drop ALL, add X" leaves X alone. The inheritable set is empty unless ambient
// capabilities are asked for, although CRI words it otherwise: a
// non-empty one gives a non-root user the file capabilities of any program
// (CVE-2022-29162).
func capabilities(sec *runtimeapi.LinuxContainerSecurityContext, host *Host) (*specs.LinuxCapabilities, []string, error) {
	if sec.GetPrivileged() {
		set := inOrder(host.Bounding)
		return &specs.LinuxCapabilities{Bounding: set, Effective: set, Permitted: set}, nil, nil
	}
	caps := sec.GetCapabilities()
	add, addAll, err := parseCapabilities(capabilitiesField+".add_capabilities", caps.GetAddCapabilities())
	if err != nil {
		return nil, nil, err
	}
	drop, dropAll, err := parseCapabilities(capabilitiesField+".drop_capabilities", caps.GetDropCapabilities())
	if err != nil {
		return nil, nil, err
	}
	ambient, ambientAll, err := parseCapabilities(capabilitiesField+".add_ambient_capabilities", caps.GetAddAmbientCapabilities())
	if err != nil {
		return nil, nil, err
	}
	set := defaultCapabilities()
	if addAll || ambientAll {
		set = slices.Clone(host.Bounding)
	}
	if ambientAll {
		ambient = slices.Clone(host.Bounding)
	}
	if dropAll {
		set = nil
	}
	wanted := append(append(set, add...), ambient...)
	grant := func(names []string) []string {
		return slices.DeleteFunc(inOrder(names), func(n string) bool {
			return slices.Contains(drop, n) || !slices.Contains(host.Bounding, n)
		})
	}
	var missing []string
	for _, name := range inOrder(append(add, ambient...)) {
		if !slices.Contains(host.Bounding, name) && !slices.Contains(drop, name) {
			missing = append(missing, name)
		}
	}
	set, ambient = grant(wanted), grant(ambient)
	return &specs.LinuxCapabilities{
		Bounding: set, Effective: set, Permitted: set, Inheritable: ambient, Ambient: ambient,
	}, missing, nil
}

// inOrder returns names by their numbers, each once.
func inOrder(names []string) []string {
	var out []string
	for _, name := range capabilityNames() {
		if slices.Contains(names, name) {
			out = append(out, name)
		}
	}
	return out
}
