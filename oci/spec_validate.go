package oci

import (
	"fmt"
	"math"
	"net/netip"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	linuxField     = "config.linux"
	securityField  = linuxField + ".security_context"
	resourcesField = linuxField + ".resources"

	maxNameBytes     = 253     // names, as Kubernetes bounds them
	maxHostnameBytes = 64      // HOST_NAME_MAX
	maxPathBytes     = 4095    // PATH_MAX without the NUL
	maxDNSBytes      = 2048    // one name server, search domain or option
	maxMetadataBytes = 4 << 20 // labels or annotations together
	maxDNSEntries    = 256     // name servers, search domains or options
	maxPortMappings  = 4096
	maxListed        = 4096 // devices, masked or read-only paths of a container
	maxID            = math.MaxUint32 - 1
)

func index(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// checkText refuses what is too long, not UTF-8 or holds control bytes. All
// that later becomes a path, a line of a file or a line of a log passes here.
func checkText(field, s string, limit int) error {
	switch {
	case len(s) > limit:
		return invalid(field, "%d bytes, at most %d are possible", len(s), limit)
	case !utf8.ValidString(s):
		return invalid(field, "%q is not UTF-8", s)
	case strings.IndexFunc(s, isControl) >= 0:
		return invalid(field, "%q holds a control byte", s)
	}
	return nil
}

// checkName refuses what cannot be one component of a path.
func checkName(field, s string) error {
	if s == "" {
		return invalid(field, "is missing")
	}
	if s == "." || s == ".." || strings.Contains(s, "/") {
		return invalid(field, "%q cannot be a name", s)
	}
	return checkText(field, s, maxNameBytes)
}

// absolutePath returns p without doubled and trailing slashes. A component ".."
// is refused, not resolved: what it stands for depends on symlinks.
func absolutePath(field, p string) (string, error) {
	if err := checkText(field, p, maxPathBytes); err != nil {
		return "", err
	}
	switch {
	case p == "":
		return "", invalid(field, "is missing")
	case !path.IsAbs(p):
		return "", invalid(field, "%q is not an absolute path", p)
	case slices.Contains(strings.Split(p, "/"), ".."):
		return "", invalid(field, `%q holds a ".." component`, p)
	}
	return path.Clean(p), nil
}

// checkCount bounds what costs a rule, a line or a step each.
func checkCount(field string, n, limit int) error {
	if n > limit {
		return invalid(field, "%d entries, at most %d are possible", n, limit)
	}
	return nil
}

func checkMetadataMap(field string, m map[string]string) error {
	total := 0
	for _, k := range sortedKeys(m) {
		total += len(k) + len(m[k])
		if !utf8.ValidString(k) || !utf8.ValidString(m[k]) {
			return invalid(field, "key %q: not UTF-8", k)
		}
	}
	if total > maxMetadataBytes {
		return invalid(field, "%d bytes, at most %d are possible", total, maxMetadataBytes)
	}
	return nil
}

// firstError returns the first error of the checks, which all were made.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// ValidateSandbox checks all of a sandbox's configuration that can be checked
// without looking at the host. Errors name the field.
func ValidateSandbox(config *runtimeapi.PodSandboxConfig) error {
	meta := config.GetMetadata()
	switch {
	case meta == nil:
		return invalid("config.metadata", "is missing")
	case config.GetWindows() != nil:
		return invalid("config.windows", "this is a Linux node")
	}
	if err := firstError(
		checkName("config.metadata.name", meta.GetName()),
		checkName("config.metadata.namespace", meta.GetNamespace()),
		checkName("config.metadata.uid", meta.GetUid()),
		checkText("config.hostname", config.GetHostname(), maxHostnameBytes),
		checkMetadataMap("config.labels", config.GetLabels()),
		checkMetadataMap("config.annotations", config.GetAnnotations()),
		checkDNS(config.GetDnsConfig()),
		checkPorts(config.GetPortMappings()),
		checkCgroupParent(config.GetLinux().GetCgroupParent()),
		checkSandboxSecurity(config.GetLinux().GetSecurityContext()),
	); err != nil {
		return err
	}
	if strings.ContainsAny(config.GetHostname(), "/ ") {
		return invalid("config.hostname", "%q cannot be a host name", config.GetHostname())
	}
	if dir := config.GetLogDirectory(); dir != "" {
		if _, err := absolutePath("config.log_directory", dir); err != nil {
			return err
		}
	}
	if _, err := SandboxSysctls(config); err != nil {
		return err
	}
	return firstError(
		checkResources(resourcesField, config.GetLinux().GetResources()),
		checkResources(linuxField+".overhead", config.GetLinux().GetOverhead()))
}

// checkDNS keeps a name server from adding lines to the pod's resolv.conf.
func checkDNS(dns *runtimeapi.DNSConfig) error {
	for name, list := range map[string][]string{
		"servers": dns.GetServers(), "searches": dns.GetSearches(), "options": dns.GetOptions(),
	} {
		if err := checkCount("config.dns_config."+name, len(list), maxDNSEntries); err != nil {
			return err
		}
		for i, s := range list {
			field := index("config.dns_config."+name, i)
			if err := checkText(field, s, maxDNSBytes); err != nil {
				return err
			}
			if s == "" || strings.ContainsAny(s, " \t") {
				return invalid(field, "%q is not one word", s)
			}
		}
	}
	return nil
}

func checkPorts(ports []*runtimeapi.PortMapping) error {
	if err := checkCount("config.port_mappings", len(ports), maxPortMappings); err != nil {
		return err
	}
	for i, p := range ports {
		field := index("config.port_mappings", i)
		if p == nil {
			return invalid(field, "is empty")
		}
		if _, ok := runtimeapi.Protocol_name[int32(p.GetProtocol())]; !ok {
			return invalid(field+".protocol", "%d is unknown", p.GetProtocol())
		}
		if n := p.GetContainerPort(); n < 0 || n > math.MaxUint16 {
			return invalid(field+".container_port", "%d is not a port", n)
		}
		if n := p.GetHostPort(); n < 0 || n > math.MaxUint16 {
			return invalid(field+".host_port", "%d is not a port", n)
		}
		if ip := p.GetHostIp(); ip != "" {
			if _, err := netip.ParseAddr(ip); err != nil {
				return invalid(field+".host_ip", "%q is not an IP address", ip)
			}
		}
	}
	return nil
}

// checkCgroupParent accepts an absolute path or the name of a systemd slice.
func checkCgroupParent(parent string) error {
	const field = linuxField + ".cgroup_parent"
	if parent == "" {
		return nil
	}
	if !strings.HasPrefix(parent, "/") && strings.HasSuffix(parent, ".slice") {
		if _, err := SlicePath(parent); err != nil {
			return invalid(field, "%v", err)
		}
		return checkText(field, parent, maxNameBytes)
	}
	_, err := absolutePath(field, parent)
	return err
}

func checkSandboxSecurity(sec *runtimeapi.LinuxSandboxSecurityContext) error {
	if sec.GetRunAsGroup() != nil && sec.GetRunAsUser() == nil {
		return invalid(securityField+".run_as_group", "needs run_as_user")
	}
	return firstError(
		checkID(securityField+".run_as_user", sec.GetRunAsUser()),
		checkID(securityField+".run_as_group", sec.GetRunAsGroup()),
		//nolint:staticcheck // SA1019: not acted upon, but kept
		checkText(securityField+".seccomp_profile_path", sec.GetSeccompProfilePath(), maxPathBytes),
		checkGroups(sec.GetSupplementalGroups(), sec.GetSupplementalGroupsPolicy()),
		checkSandboxNamespaces(sec.GetNamespaceOptions()),
		checkSELinux(sec.GetSelinuxOptions()),
		checkProfile(securityField+".seccomp", sec.GetSeccomp()),
		checkProfile(securityField+".apparmor", sec.GetApparmor()))
}

func checkSandboxNamespaces(ns *runtimeapi.NamespaceOption) error {
	const field = securityField + ".namespace_options"
	if m := ns.GetPid(); m == runtimeapi.NamespaceMode_TARGET {
		return invalid(field+".pid", "a sandbox cannot have mode %s", m)
	}
	return firstError(
		checkPodNamespace(field+".network", ns.GetNetwork()),
		checkPodNamespace(field+".ipc", ns.GetIpc()),
		checkMode(field+".pid", ns.GetPid()),
		checkTargetID(field+".target_id", ns),
		checkUserNamespace(field+".userns_options", ns.GetUsernsOptions()),
		checkBesideUserNamespace(field, ns))
}

// checkTargetID wants the target where it counts, and only there.
func checkTargetID(field string, ns *runtimeapi.NamespaceOption) error {
	target := ns.GetPid() == runtimeapi.NamespaceMode_TARGET
	switch {
	case target && ns.GetTargetId() == "":
		return invalid(field, "is missing, pid is TARGET")
	case !target && ns.GetTargetId() != "":
		return invalid(field, "is set, but pid is %s, not TARGET", ns.GetPid())
	}
	return checkText(field, ns.GetTargetId(), maxNameBytes)
}

func checkMode(field string, mode runtimeapi.NamespaceMode) error {
	if _, ok := runtimeapi.NamespaceMode_name[int32(mode)]; !ok {
		return invalid(field, "mode %d is unknown", mode)
	}
	return nil
}

// checkPodNamespace accepts the modes that the network and IPC namespaces have
// in Kubernetes.
func checkPodNamespace(field string, mode runtimeapi.NamespaceMode) error {
	switch mode {
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE:
		return nil
	case runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_TARGET:
		return unsupported(field, "mode %s; use POD or NODE", mode)
	}
	return checkMode(field, mode)
}

func checkUserNamespace(field string, ns *runtimeapi.UserNamespace) error {
	if ns == nil {
		return nil
	}
	switch ns.GetMode() {
	case runtimeapi.NamespaceMode_NODE:
		return nil
	case runtimeapi.NamespaceMode_POD:
		return firstError(checkMappings(field+".uids", ns.GetUids()), checkMappings(field+".gids", ns.GetGids()))
	case runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_TARGET:
		return invalid(field+".mode", "%s is not possible; use POD or NODE", ns.GetMode())
	}
	return checkMode(field+".mode", ns.GetMode())
}

func checkID(field string, id *runtimeapi.Int64Value) error {
	if id == nil || (id.GetValue() >= 0 && id.GetValue() <= maxID) {
		return nil
	}
	return invalid(field, "%d is no id; ids are 0 to %d", id.GetValue(), int64(maxID))
}

func checkGroups(groups []int64, policy runtimeapi.SupplementalGroupsPolicy) error {
	for i, gid := range groups {
		if err := checkID(index(securityField+".supplemental_groups", i), &runtimeapi.Int64Value{Value: gid}); err != nil {
			return err
		}
	}
	if len(groups) > maxGroups {
		return invalid(securityField+".supplemental_groups", "%d groups, the kernel takes %d", len(groups), maxGroups)
	}
	if _, ok := runtimeapi.SupplementalGroupsPolicy_name[int32(policy)]; !ok {
		return invalid(securityField+".supplemental_groups_policy", "%d is unknown", policy)
	}
	return nil
}

func checkSELinux(opts *runtimeapi.SELinuxOption) error {
	const field = securityField + ".selinux_options"
	for name, s := range map[string]string{"user": opts.GetUser(), "role": opts.GetRole(), "type": opts.GetType()} {
		if err := checkText(field+"."+name, s, maxNameBytes); err != nil {
			return err
		}
		if strings.ContainsAny(s, ": ") {
			return invalid(field+"."+name, "%q is not one part of a label", s)
		}
	}
	return checkText(field+".level", opts.GetLevel(), maxNameBytes)
}

func checkProfile(field string, p *runtimeapi.SecurityProfile) error {
	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined:
		if p.GetLocalhostRef() != "" {
			return invalid(field+".localhost_ref", "is set, but the profile is %s, not Localhost", p.GetProfileType())
		}
		return nil
	case runtimeapi.SecurityProfile_Localhost:
		if p.GetLocalhostRef() == "" {
			return invalid(field+".localhost_ref", "is missing, the profile is Localhost")
		}
		return checkText(field+".localhost_ref", p.GetLocalhostRef(), maxPathBytes)
	}
	return invalid(field+".profile_type", "%d is unknown", p.GetProfileType())
}
