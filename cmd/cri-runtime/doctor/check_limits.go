package doctor

import (
	"fmt"
	"strings"
)

// atLeast warns of a number in /proc/sys that is smaller than a node needs.
func (e *exam) atLeast(key string, least int64, cost string) {
	n, ok := e.number("/proc/sys/" + strings.ReplaceAll(key, ".", "/"))
	if ok && n < least {
		e.warn(fmt.Sprintf("%s is %d", key, n), cost, fmt.Sprintf("sysctl -w %s=%d, and the same in /etc/sysctl.d", key, least))
	}
}

func (e *exam) inotify() string {
	const cost = `the daemon needs one and falls back to looking again; the kubelet, log collectors and programs in pods fail with "too many open files"`
	if !e.exists("/proc/sys/fs/inotify") {
		e.warn("the kernel has no inotify", "the kubelet and most programs that watch files fail", "build the kernel with CONFIG_INOTIFY_USER")
	}
	e.atLeast("fs.inotify.max_user_instances", 512, cost)
	e.atLeast("fs.inotify.max_user_watches", 65536, cost)
	return "instances and watches are enough"
}

// keys: each container gets a session keyring, made by root before it becomes another
// user; in a user namespace by its root.
func (e *exam) keys() string {
	const cost = `each container and exec has a session keyring: starts fail with "disk quota exceeded" when there are none left`
	e.atLeast("kernel.keys.root_maxkeys", 10000, cost)
	e.atLeast("kernel.keys.root_maxbytes", 250000, cost)
	e.atLeast("kernel.keys.maxkeys", 200, cost+", in pods with a user namespace")
	e.atLeast("kernel.keys.maxbytes", 20000, cost+", in pods with a user namespace")
	return "session keyrings for 10000 containers"
}

func (e *exam) processes() string {
	const cost = `fork fails with "resource temporarily unavailable" in all pods and on the host when they are used up`
	e.atLeast("kernel.pid_max", 32768, cost)
	e.atLeast("kernel.threads-max", 32768, cost)
	return "pid_max and threads-max are enough"
}

func (e *exam) files() string {
	e.atLeast("fs.file-max", 262144, `open fails with "too many open files in system" on the whole machine`)
	e.atLeast("fs.nr_open", 1048576, "containers that ask for as many open files as usual do not start")
	return "file-max and nr_open are enough"
}

func (e *exam) conntrack() string {
	const key = "net.netfilter.nf_conntrack_max"
	e.atLeast(key, 65536, "connections of pods and to services are dropped when the table is full")
	limit, ok := e.number("/proc/sys/net/netfilter/nf_conntrack_max")
	if !ok {
		return "connections are not tracked yet"
	}
	if used, ok := e.number("/proc/sys/net/netfilter/nf_conntrack_count"); ok && used > limit/10*8 {
		e.warn(fmt.Sprintf("%d of %d connections are tracked", used, limit), "connections of pods and to services are dropped when the table is full",
			fmt.Sprintf("sysctl -w %s=%d", key, 2*limit))
	}
	return fmt.Sprintf("%d connections can be tracked", limit)
}

func (e *exam) memoryMaps() string {
	e.atLeast("vm.max_map_count", 65530, "programs with many threads or mapped files (JVMs, databases) fail to map memory")
	return "max_map_count is enough"
}

func (e *exam) aio() string {
	limit, ok := e.number("/proc/sys/fs/aio-max-nr")
	used, _ := e.number("/proc/sys/fs/aio-nr")
	if ok && used > limit/10*8 {
		e.warn(fmt.Sprintf("%d of %d requests of asynchronous input and output are reserved", used, limit), "databases in pods do not start",
			fmt.Sprintf("sysctl -w fs.aio-max-nr=%d", max(2*limit, 1048576)))
	}
	return "requests are left"
}
