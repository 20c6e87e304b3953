package doctor

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// MinimumKernel is the oldest kernel that this runtime is for.
const MinimumKernel = "6.1"

// With older kernels than these something is missing that has no way around.
const (
	appendLayers = "6.7"  // lowerdir+
	mountedByFD  = "6.5"  // overlay's options are checked one by one
	mappedLayers = "6.15" // layers of pods with a user namespace
)

// release returns major and minor of the running kernel.
func (e *exam) release() (text string, version [2]int) {
	text, _ = e.text("/proc/sys/kernel/osrelease")
	return text, parseVersion(text)
}

func parseVersion(text string) (v [2]int) {
	if n, err := fmt.Sscanf(text, "%d.%d", &v[0], &v[1]); err != nil || n != 2 {
		return [2]int{}
	}
	return v
}

func older(v [2]int, than string) bool {
	w := parseVersion(than)
	return slices.Compare(v[:], w[:]) < 0
}

func (e *exam) kernelVersion() string {
	text, v := e.release()
	switch {
	case v == [2]int{}:
		e.warn(fmt.Sprintf("the release of the kernel cannot be read: %q", text), "what it lacks shows only when pods fail", "mount procfs on /proc")
	case older(v, MinimumKernel):
		e.fail("Linux "+text, "pods do not start, or not safely", "boot Linux "+MinimumKernel+" or newer")
	case older(v, mappedLayers):
		e.warn("Linux "+text, "pods with hostUsers: false are refused: their layers cannot be id-mapped", "boot Linux "+mappedLayers+" or newer if you want such pods")
	}
	return "Linux " + text
}

func (e *exam) kernelCalls() string {
	calls := neededCalls()
	for _, c := range calls {
		if err := e.Kernel.Call(c[0]); err != nil {
			e.fail(fmt.Sprintf("%s: %v", c[0], err), "no container can be made",
				fmt.Sprintf("boot Linux %s or newer (the call is there since %s); inside a container let its seccomp profile and capabilities allow it", MinimumKernel, c[1]))
		}
	}
	return fmt.Sprintf("%d system calls are there", len(calls))
}

// module tells whether a part of the kernel is there: loaded, built in, or
// where the kernel finds it when it is asked for.
func (e *exam) module(name string) bool {
	if e.exists("/sys/module/" + name) {
		return true
	}
	text, _ := e.text("/proc/sys/kernel/osrelease")
	if text == "" || strings.ContainsAny(text, "/\x00") {
		return false
	}
	for _, list := range []string{"modules.builtin", "modules.dep"} {
		for _, line := range e.lines(path.Join("/lib/modules", text, list)) {
			file, _, _ := strings.Cut(path.Base(strings.SplitN(line, ":", 2)[0]), ".ko")
			if strings.ReplaceAll(file, "-", "_") == name {
				return true
			}
		}
	}
	return false
}

func (e *exam) overlay() string {
	for _, line := range e.lines("/proc/filesystems") {
		if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == "overlay" {
			return "overlay is there"
		}
	}
	if e.module("overlay") {
		return "overlay is a module that is loaded when it is needed"
	}
	e.fail("the kernel has no overlay", "no container can have a root file system", "modprobe overlay, or build the kernel with CONFIG_OVERLAY_FS")
	return ""
}

func (e *exam) overlayOptions() string {
	if _, v := e.release(); older(v, mountedByFD) {
		return "before Linux " + mountedByFD + " options show only when something is mounted; the daemon tries them at its start"
	}
	var known []string
	for _, o := range [][2]string{
		{"volatile", "unmounting a container's root writes its file system to the disk: removal takes up to seconds"},
		{"lowerdir+", "layers are given in one string: slower starts, and the names of many layers must fit in a page"},
		{"userxattr", "inside a container without CAP_SYS_ADMIN of the host no root file system can be mounted"},
		{"metacopy", "none where it is off in the kernel"},
	} {
		err := e.Kernel.OverlayOption(o[0])
		if err != nil {
			e.warn(fmt.Sprintf("overlay does not know the option %s: %v", o[0], err), o[1], "boot Linux "+appendLayers+" or newer")
			continue
		}
		known = append(known, o[0])
	}
	return "overlay knows " + strings.Join(known, ", ")
}

func (e *exam) namespaces() string {
	for _, ns := range []struct{ name, config string }{
		{"mnt", "NAMESPACES"},
		{"pid", "PID_NS"},
		{"net", "NET_NS"},
		{"ipc", "IPC_NS"},
		{"uts", "UTS_NS"},
		{"cgroup", "CGROUPS"},
	} {
		if !e.exists("/proc/self/ns/" + ns.name) {
			e.fail("the kernel has no namespaces of the kind "+ns.name, "no pod can be made", "build the kernel with CONFIG_"+ns.config)
		}
	}
	return "mnt, pid, net, ipc, uts and cgroup are there"
}

func (e *exam) userNamespaces() string {
	const pods = "pods with hostUsers: false are refused"
	if !e.exists("/proc/self/ns/user") {
		e.warn("the kernel has no user namespaces", pods, "build the kernel with CONFIG_USER_NS")
		return ""
	}
	if n, ok := e.number("/proc/sys/user/max_user_namespaces"); ok && n < 1024 {
		e.warn(fmt.Sprintf("user.max_user_namespaces is %d", n), pods+" beyond that number", "sysctl -w user.max_user_namespaces=28633")
	}
	const inside = "this runtime's pods are not touched; programs in pods that make user namespaces as an ordinary user (builders, browsers) fail"
	if n, ok := e.number("/proc/sys/kernel/unprivileged_userns_clone"); ok && n == 0 {
		e.warn("kernel.unprivileged_userns_clone is 0", inside, "if such programs are wanted: sysctl -w kernel.unprivileged_userns_clone=1")
	}
	if n, ok := e.number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"); ok && n != 0 {
		e.warn(fmt.Sprintf("kernel.apparmor_restrict_unprivileged_userns is %d", n), inside,
			"if such programs are wanted: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
	}
	return "pods may have one"
}

func (e *exam) seccomp() string {
	actions, ok := e.text("/proc/sys/kernel/seccomp/actions_avail")
	for _, need := range []string{"errno", "kill_process", "trap", "log", "allow"} {
		if !ok || !slices.Contains(strings.Fields(actions), need) {
			e.fail("seccomp filters cannot answer "+need, "containers with a seccomp profile, RuntimeDefault too, do not start", "build the kernel with CONFIG_SECCOMP_FILTER")
			return ""
		}
	}
	if e.status("/proc/self", "Seccomp") == "2" {
		e.warn("this process is under a seccomp filter", "a daemon started like it may lack system calls that containers need",
			"start the daemon without a filter (no SystemCallFilter= in its unit, an unconfined profile of the container around it)")
	}
	return "filters answer " + actions
}

// status returns a member of /proc/PID/status.
func (e *exam) status(process, key string) string {
	for _, line := range e.lines(process + "/status") {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// memfd: the monitor and the reaper are executed from sealed memory files.
func (e *exam) memfd() string {
	if n, ok := e.number("/proc/sys/vm/memfd_noexec"); ok && n >= 2 {
		e.fail(fmt.Sprintf("vm.memfd_noexec is %d", n), "no container can be started: monitors run from memory files", "sysctl -w vm.memfd_noexec=1")
	}
	return "programs may be run from memory files"
}

func (e *exam) rcu() string {
	if n, ok := e.number("/sys/kernel/rcu_normal"); ok && n == 1 {
		e.warn("rcu_normal is 1: the kernel's grace periods are never shortened", "each mount, namespace and cgroup that goes waits up to tens of milliseconds more",
			"boot without rcupdate.rcu_normal=1, or echo 0 >/sys/kernel/rcu_normal")
	}
	return "grace periods may be shortened"
}
