package oci

import (
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// maxProcessBytes bounds arguments and environment together, counted as the
	// kernel does: each string with its NUL and its pointer. The kernel's own
	// limit is a quarter of the stack's, 2 MiB as a rule, met only at execve.
	maxProcessBytes = 480 << 10
	maxStringBytes  = 128<<10 - 1 // MAX_ARG_STRLEN without the NUL
	pointerBytes    = 8
)

// ValidateContainer checks all of a container's configuration that can be
// checked without looking at the host or the image. Errors name the field.
func ValidateContainer(config *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	switch {
	case config.GetMetadata() == nil:
		return invalid("config.metadata", "is missing")
	case config.GetWindows() != nil:
		return invalid("config.windows", "this is a Linux node")
	}
	if err := firstError(
		checkName("config.metadata.name", config.GetMetadata().GetName()),
		checkLogPath(config.GetLogPath()),
		checkMetadataMap("config.labels", config.GetLabels()),
		checkMetadataMap("config.annotations", config.GetAnnotations()),
		checkProcess(config),
		checkDevices(config.GetDevices()),
		checkCount("config.mounts", len(config.GetMounts()), maxMounts),
		checkCount("config.CDI_devices", len(config.GetCDIDevices()), maxListed),
		checkSecurity(config.GetLinux().GetSecurityContext(), pod.GetLinux().GetSecurityContext()),
		checkResources(resourcesField, config.GetLinux().GetResources()),
	); err != nil {
		return err
	}
	for i, d := range config.GetCDIDevices() {
		if err := checkText(index("config.CDI_devices", i)+".name", d.GetName(), maxNameBytes); err != nil {
			return err
		}
	}
	if _, ok := runtimeapi.Signal_name[int32(config.GetStopSignal())]; !ok {
		return invalid("config.stop_signal", "%d is unknown", config.GetStopSignal())
	}
	for i, m := range config.GetMounts() {
		if _, err := volumeMount(index("config.mounts", i), m); err != nil {
			return err
		}
	}
	return nil
}

func checkLogPath(p string) error {
	const field = "config.log_path"
	if strings.HasPrefix(p, "/") || slices.Contains(strings.Split(p, "/"), "..") {
		return invalid(field, "%q leads out of the log directory", p)
	}
	return checkText(field, p, maxPathBytes)
}

// checkProcess checks arguments, environment and directory, one by one and in
// sum, so that execve has no reason for E2BIG.
func checkProcess(config *runtimeapi.ContainerConfig) error {
	total := 0
	for name, list := range map[string][]string{"config.command": config.GetCommand(), "config.args": config.GetArgs()} {
		for i, s := range list {
			if err := checkArg(index(name, i), s); err != nil {
				return err
			}
			total += len(s) + 1 + pointerBytes
		}
	}
	if err := checkProcessSize("config.args", total); err != nil {
		return err
	}
	for i, kv := range config.GetEnvs() {
		field := index("config.envs", i)
		if err := checkEnv(field, kv); err != nil {
			return err
		}
		total += len(kv.GetKey()) + len(kv.GetValue()) + 2 + pointerBytes
		if err := checkProcessSize(field, total); err != nil {
			return err
		}
	}
	if wd := config.GetWorkingDir(); wd != "" {
		if err := checkText("config.working_dir", wd, maxPathBytes); err != nil {
			return err
		}
		if !strings.HasPrefix(wd, "/") {
			return invalid("config.working_dir", "%q is not an absolute path", wd)
		}
	}
	return nil
}

func checkProcessSize(field string, total int) error {
	if total > maxProcessBytes {
		return invalid(field, "arguments and environment are %d bytes up to here, at most %d are possible", total, maxProcessBytes)
	}
	return nil
}

func checkArg(field, s string) error {
	if len(s) > maxStringBytes {
		return invalid(field, "%d bytes, the kernel takes %d in one argument", len(s), maxStringBytes)
	}
	if strings.IndexByte(s, 0) >= 0 {
		return invalid(field, "holds a NUL byte")
	}
	return nil
}

// checkEnv lets a value be any bytes but NUL, newlines too; the name must be
// such that the first "=" ends it.
func checkEnv(field string, kv *runtimeapi.KeyValue) error {
	key := kv.GetKey()
	switch {
	case key == "":
		return invalid(field+".key", "is missing")
	case strings.ContainsAny(key, "=\x00"):
		return invalid(field+".key", `%q holds "=" or a NUL byte`, key)
	case strings.IndexByte(string(kv.GetValue()), 0) >= 0:
		return invalid(field+".value", "of %q holds a NUL byte", key)
	case len(key)+1+len(kv.GetValue()) > maxStringBytes:
		return invalid(field+".value", "of %.64q has %d bytes, the kernel takes %d in one variable", key, len(kv.GetValue()), maxStringBytes)
	}
	return nil
}

func checkSecurity(sec *runtimeapi.LinuxContainerSecurityContext, pod *runtimeapi.LinuxSandboxSecurityContext) error {
	if sec.GetPrivileged() && !pod.GetPrivileged() {
		return invalid(securityField+".privileged", "the pod sandbox was not made for privileged containers")
	}
	if err := firstError(
		checkRunAs(sec),
		checkGroups(sec.GetSupplementalGroups(), sec.GetSupplementalGroupsPolicy()),
		checkContainerNamespaces(sec.GetNamespaceOptions(), pod.GetNamespaceOptions()),
		checkSELinux(sec.GetSelinuxOptions()),
		checkProfile(securityField+".seccomp", sec.GetSeccomp()),
		checkProfile(securityField+".apparmor", sec.GetApparmor()),
	); err != nil {
		return err
	}
	for name, list := range map[string][]string{
		".masked_paths": sec.GetMaskedPaths(), ".readonly_paths": sec.GetReadonlyPaths(),
	} {
		if err := checkCount(securityField+name, len(list), maxListed); err != nil {
			return err
		}
		for i, p := range list {
			if _, err := absolutePath(index(securityField+name, i), p); err != nil {
				return err
			}
		}
	}
	_, _, err := capabilities(sec, &Host{Bounding: capabilityNames()})
	return err
}

func checkRunAs(sec *runtimeapi.LinuxContainerSecurityContext) error {
	name := sec.GetRunAsUsername()
	if name != "" && sec.GetRunAsUser() != nil {
		return invalid(securityField+".run_as_username", "only one of run_as_user and run_as_username is possible")
	}
	if sec.GetRunAsGroup() != nil && sec.GetRunAsUser() == nil && name == "" {
		return invalid(securityField+".run_as_group", "needs run_as_user or run_as_username")
	}
	return firstError(
		checkID(securityField+".run_as_user", sec.GetRunAsUser()),
		checkID(securityField+".run_as_group", sec.GetRunAsGroup()),
		checkText(securityField+".run_as_username", name, maxNameBytes))
}

func checkContainerNamespaces(ns, pod *runtimeapi.NamespaceOption) error {
	const field = securityField + ".namespace_options"
	if err := firstError(
		checkPodNamespace(field+".network", ns.GetNetwork()),
		checkPodNamespace(field+".ipc", ns.GetIpc()),
		checkMode(field+".pid", ns.GetPid()),
		checkTargetID(field+".target_id", ns),
		checkUserNamespace(field+".userns_options", ns.GetUsernsOptions()),
	); err != nil {
		return err
	}
	if ns.GetUsernsOptions() != nil && !sameUserNamespace(ns.GetUsernsOptions(), pod.GetUsernsOptions()) {
		return invalid(field+".userns_options", "differ from those of the pod sandbox, to which the user namespace belongs")
	}
	if PodHasUserNamespace(pod) && ns != nil {
		if err := checkBesideUserNamespace(field, &runtimeapi.NamespaceOption{Pid: ns.GetPid(), Ipc: ns.GetIpc(), UsernsOptions: pod.GetUsernsOptions()}); err != nil {
			return err
		}
	}
	node := runtimeapi.NamespaceMode_NODE
	if ns.GetNetwork() == node && pod.GetNetwork() != node {
		return invalid(field+".network", "is NODE, but the pod sandbox has a network of its own")
	}
	if ns.GetIpc() == node && pod.GetIpc() != node {
		return invalid(field+".ipc", "is NODE, but the pod sandbox has an IPC namespace of its own")
	}
	return nil
}
