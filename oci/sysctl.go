package oci

import (
	"maps"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	maxSysctlBytes = 4096 // what one write to /proc/sys takes
	maxSysctls     = 1024
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// SandboxSysctls returns the sysctls that are to be written inside the pod's
// namespaces, by name with dots, or an error that names the one refused. Only those are
// possible that belong to a namespace of the pod's own: all others would
// change the node.
func SandboxSysctls(config *runtimeapi.PodSandboxConfig) (map[string]string, error) {
	wanted := config.GetLinux().GetSysctls()
	if len(wanted) > maxSysctls {
		return nil, invalid(linuxField+".sysctls", "%d entries, at most %d are possible", len(wanted), maxSysctls)
	}
	ns := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	out := make(map[string]string, len(wanted))
	for _, name := range sortedKeys(wanted) {
		if err := checkSysctl(name, wanted[name], ns); err != nil {
			return nil, err
		}
		out[name] = wanted[name]
	}
	return out, nil
}

// checkSysctl refuses every byte that could make one sysctl into two or lead
// elsewhere (CVE-2022-0811): a name is words joined by single dots.
func checkSysctl(name, value string, ns *runtimeapi.NamespaceOption) error {
	field := linuxField + ".sysctls"
	if !isSysctlName(name) {
		return invalid(field, "%.300q is not the name of a sysctl, which is words joined by dots", name)
	}
	field += "[" + name + "]"
	if len(value) > maxSysctlBytes {
		return invalid(field, "value of %d bytes, at most %d are possible", len(value), maxSysctlBytes)
	}
	if strings.IndexFunc(value, func(r rune) bool { return r != '\t' && (r < ' ' || r > '~' || r == '+') }) >= 0 {
		return invalid(field, "value %q holds a byte that is not possible in a sysctl", value)
	}
	switch scope := sysctlScope(name); {
	case scope == "":
		return invalid(field, "is not one of a pod's own sysctls (kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*, net.*)")
	case scope == "net" && ns.GetNetwork() == runtimeapi.NamespaceMode_NODE:
		return invalid(field, "would change the node: the pod has the host's network")
	case scope == "ipc" && ns.GetIpc() == runtimeapi.NamespaceMode_NODE:
		return invalid(field, "would change the node: the pod has the host's IPC namespace")
	}
	return nil
}

func isSysctlName(name string) bool {
	words := strings.Split(name, ".")
	if len(name) > maxNameBytes || len(words) < 2 || slices.Contains(words, "") {
		return false
	}
	return strings.IndexFunc(name, func(r rune) bool {
		letter := (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z')
		return !letter && (r < '0' || r > '9') && r != '_' && r != '-' && r != '.'
	}) < 0
}

// sysctlScope tells which namespace a sysctl belongs to; "" when the node.
func sysctlScope(name string) string {
	switch {
	case name == "kernel.sem", strings.HasPrefix(name, "kernel.shm"), strings.HasPrefix(name, "kernel.msg"),
		strings.HasPrefix(name, "fs.mqueue."):
		return "ipc"
	case strings.HasPrefix(name, "net."):
		return "net"
	}
	return ""
}
