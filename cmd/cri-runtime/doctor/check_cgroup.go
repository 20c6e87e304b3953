package doctor

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// mount is a line of mountinfo.
type mount struct {
	at, kind, source string
	options          []string // of the mount and of its file system
}

func (e *exam) mounts() []mount {
	var list []mount
	for _, line := range e.lines("/proc/self/mountinfo") {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 {
			continue
		}
		list = append(list, mount{
			at: unescape(l[4]), kind: r[0], source: unescape(r[1]),
			options: append(strings.Split(l[5], ","), strings.Split(r[2], ",")...),
		})
	}
	return list
}

// unescape undoes what the kernel does to spaces in paths.
func unescape(text string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(text)
}

// cgroups is how cgroups are mounted.
type cgroups struct {
	unified     string            // where the one of version 2 is mounted
	controllers map[string]string // of version 1, and where each is mounted
}

func (e *exam) cgroups() cgroups {
	c := cgroups{controllers: map[string]string{}}
	for _, m := range e.mounts() {
		switch m.kind {
		case "cgroup2":
			c.unified = m.at
		case "cgroup":
			for _, o := range m.options {
				if o != "rw" && o != "ro" && o != "relatime" && !strings.HasPrefix(o, "no") {
					c.controllers[o] = m.at
				}
			}
		}
	}
	return c
}

func (c cgroups) v1() bool { return c.controllers["memory"] != "" || c.controllers["cpu"] != "" }

func (e *exam) cgroupMode() string {
	const use = "boot with systemd.unified_cgroup_hierarchy=1 and without cgroup_no_v1, or mount -t cgroup2 none /sys/fs/cgroup"
	c := e.cgroups()
	switch {
	case c.v1():
		e.warn("cgroup v1", "kubelets from 1.35 on start only with failCgroupV1: false; pods have no memory QoS, no PSI of their own and no OOM of whole groups",
			"boot with systemd.unified_cgroup_hierarchy=1")
	case c.unified == "":
		e.fail("no cgroup hierarchy is mounted", "no pod can be made", use)
	}
	return "cgroup v2 on " + c.unified
}

// neededControllers are those without which a container is not made, then
// those whose absence costs something.
func neededControllers() (need []string, want map[string]string) {
	return []string{"cpu", "memory", "pids"}, map[string]string{
		"cpuset":  "the kubelet's CPU and memory managers cannot give containers processors of their own",
		"io":      "reading and writing of containers is not counted",
		"hugetlb": "pods that ask for huge pages are not limited to them",
	}
}

func (e *exam) cgroupControllers() string {
	c := e.cgroups()
	v1 := c.v1()
	there := map[string]bool{}
	if v1 {
		for name := range c.controllers {
			there[name] = true
		}
		there["io"] = there["blkio"]
	} else if c.unified != "" {
		text, _ := e.text(path.Join(c.unified, "cgroup.controllers"))
		for _, name := range strings.Fields(text) {
			there[name] = true
		}
	}
	if text, _ := e.text("/proc/cmdline"); text != "" {
		for _, word := range strings.Fields(text) {
			key, value, _ := strings.Cut(word, "=")
			named := slices.Contains(strings.Split(value, ","), "memory")
			if key == "cgroup_disable" && named || key == "cgroup_no_v1" && v1 && (named || value == "all") {
				e.fail("the kernel was booted with "+word, "the memory of containers is neither limited nor counted", "boot without "+word)
			}
		}
	}
	change := func(name string) string {
		if !v1 {
			return "build the kernel with this controller and boot without cgroup_disable=" + name
		}
		if name == "io" {
			name = "blkio"
		}
		return fmt.Sprintf("mkdir -p /sys/fs/cgroup/%[1]s, then mount -t cgroup -o %[1]s none /sys/fs/cgroup/%[1]s", name)
	}
	need, want := neededControllers()
	for _, name := range need {
		if !there[name] {
			e.fail("no cgroup controller "+name, "limits of pods cannot be set; the kubelet does not start", change(name))
		}
	}
	for _, name := range []string{"cpuset", "io", "hugetlb"} {
		if !there[name] {
			e.warn("no cgroup controller "+name, want[name], change(name))
		}
	}
	return "cpu, cpuset, hugetlb, io, memory, pids"
}

// cgroupDelegation looks whether controllers can be given to cgroups below: not
// where processes are beside them, as in a container that was given a cgroup.
func (e *exam) cgroupDelegation() string {
	c := e.cgroups()
	if c.unified == "" || c.v1() {
		return "version 1 needs none"
	}
	given, _ := e.text(path.Join(c.unified, "cgroup.subtree_control"))
	var lacking []string
	need, _ := neededControllers()
	for _, name := range need {
		if !slices.Contains(strings.Fields(given), name) {
			lacking = append(lacking, name)
		}
	}
	top := !e.exists(path.Join(c.unified, "cgroup.type")) // only the machine's own root has no type
	procs, _ := e.text(path.Join(c.unified, "cgroup.procs"))
	if len(lacking) > 0 && !top && procs != "" {
		e.fail(fmt.Sprintf("%s has processes, and does not pass %s on", c.unified, strings.Join(lacking, ", ")), "the kernel refuses limits below it: no pod can be made",
			fmt.Sprintf("mkdir %[1]s/init, write each pid of %[1]s/cgroup.procs into %[1]s/init/cgroup.procs, then echo +%[2]s >%[1]s/cgroup.subtree_control",
				c.unified, strings.Join(lacking, " +")))
	}
	for _, m := range e.mounts() {
		if m.kind == "cgroup2" && slices.Contains(m.options, "ro") {
			e.fail(m.at+" is read-only", "no cgroup can be made", "mount -o remount,rw "+m.at)
		}
	}
	if pid := e.daemon(); pid != "" && e.CgroupDriver == "systemd" {
		if own := e.lines("/proc/" + pid + "/cgroup"); !slices.ContainsFunc(own, func(l string) bool { return strings.Contains(l, ".service") }) {
			e.warn("the daemon is in no service of systemd", "it ends with the session that started it, and its cgroup is not its own", "run it as cri-runtime.service, with Delegate=yes")
		}
	}
	return "controllers can be given to pods"
}

// kubeletConfig returns a top-level key of the kubelet's configuration file.
func (e *exam) kubeletConfig(key string) string {
	const file = "/var/lib/kubelet/config.yaml"
	if !e.exists(file) {
		return ""
	}
	for _, line := range e.lines(file) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			value, _, _ = strings.Cut(value, " #")
			return strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return ""
}

func (e *exam) cgroupDriver() string {
	booted := e.exists("/run/systemd/system")
	if e.CgroupDriver == "systemd" && !booted {
		e.fail("cgroup_driver is systemd, and systemd is not the init of this machine", "no pod can be made", `set cgroup_driver = "auto" or "cgroupfs"`)
	}
	if e.CgroupDriver == "cgroupfs" && booted {
		e.warn("cgroup_driver is cgroupfs beside systemd", "two write the same tree: systemd may undo limits of pods when it reloads", `set cgroup_driver = "auto" or "systemd"`)
	}
	if e.CgroupDriver == "systemd" && booted && !e.exists("/run/dbus/system_bus_socket") && !e.exists("/run/systemd/private") {
		e.fail("neither /run/dbus/system_bus_socket nor /run/systemd/private is there", "systemd cannot be asked for cgroups", "install and start dbus")
	}
	if of := e.kubeletConfig("cgroupDriver"); of != "" && of != e.CgroupDriver {
		e.warn(fmt.Sprintf("the kubelet is configured with cgroupDriver: %s, the runtime with %s", of, e.CgroupDriver),
			"a kubelet before 1.34, which does not ask the runtime, makes pods in other cgroups than the runtime: their limits do not hold",
			"set cgroupDriver: "+e.CgroupDriver+" in /var/lib/kubelet/config.yaml")
	}
	return e.CgroupDriver
}

func (e *exam) cgroupSwap() string {
	if len(e.lines("/proc/swaps")) < 2 {
		return "there is no swap"
	}
	c := e.cgroups()
	accounts := c.v1() && e.exists(path.Join(c.controllers["memory"], "memory.memsw.limit_in_bytes"))
	if !c.v1() && c.unified != "" {
		for _, name := range e.list(c.unified) {
			accounts = accounts || e.exists(path.Join(c.unified, name, "memory.swap.max"))
		}
	}
	if !accounts {
		e.warn("there is swap, and the kernel does not account it", "a container at its memory limit goes on in swap, without bound", "boot with swapaccount=1, or swapoff -a")
	}
	if e.kubeletConfig("failSwapOn") != "false" {
		e.warn("there is swap", "a kubelet does not start unless it is configured to", "swapoff -a, or failSwapOn: false in the kubelet's configuration")
	}
	return "swap is accounted"
}

func (e *exam) cgroupPSI() string {
	if !e.exists("/proc/pressure/memory") {
		e.warn("the kernel does not tell pressure (PSI)", "stats of nodes, pods and containers have none", "boot with psi=1, with CONFIG_PSI in the kernel")
	}
	return "pressure is told"
}
