package doctor

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// daemon returns the process id of the daemon that has the state directory, ""
// if none runs.
func (e *exam) daemon() string {
	pid, _ := e.text(path.Join(e.StateDir, "lock"))
	if _, err := strconv.Atoi(pid); err != nil {
		return ""
	}
	// The file outlives its daemon, and the number may be another's by now.
	if name, _ := e.text("/proc/" + pid + "/comm"); name != "cri-runtime" {
		return ""
	}
	return pid
}

// capabilityCosts are what the daemon cannot do without one; fatal ones stop every pod.
func capabilityCosts() []struct {
	bit   int
	name  string
	fatal bool
	cost  string
} {
	const none = "no pod can be made"
	return []struct {
		bit   int
		name  string
		fatal bool
		cost  string
	}{
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", true, none},
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", true, "no pod has a network"},
		{unix.CAP_CHOWN, "CAP_CHOWN", true, "images are not unpacked"},
		{unix.CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE", true, "images are not unpacked"},
		{unix.CAP_FOWNER, "CAP_FOWNER", true, "images are not unpacked"},
		{unix.CAP_SETUID, "CAP_SETUID", true, "containers cannot become their user"},
		{unix.CAP_SETGID, "CAP_SETGID", true, "containers cannot become their user"},
		{unix.CAP_SETPCAP, "CAP_SETPCAP", true, "containers cannot lose capabilities"},
		{unix.CAP_KILL, "CAP_KILL", true, "containers cannot be stopped"},
		{unix.CAP_SYS_CHROOT, "CAP_SYS_CHROOT", true, none},
		{unix.CAP_MKNOD, "CAP_MKNOD", false, "images with devices are not unpacked, containers have no device nodes"},
		{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", false, "processes of other users cannot be looked at: stats of them and joining of their namespaces fail"},
		{
			unix.CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE", false,
			"OOM scores are not lowered and hard limits not raised, the nearest allowed value is set: under memory pressure guaranteed pods are killed like others",
		},
	}
}

func (e *exam) capabilities() string {
	process, whose := "/proc/self", "this process, as no daemon runs,"
	if pid := e.daemon(); pid != "" {
		process, whose = "/proc/"+pid, "the daemon"
	} else if !e.Config.Root {
		return "no daemon runs, and this process is not root"
	}
	mask, err := strconv.ParseUint(e.status(process, "CapEff"), 16, 64)
	if err != nil {
		e.warn("the capabilities of "+whose+" cannot be read", "what it may not do shows only when pods fail", "mount procfs on /proc")
		return ""
	}
	for _, c := range capabilityCosts() {
		if mask&(1<<c.bit) != 0 {
			continue
		}
		r := Result{Level: Warn, Seen: whose + " lacks " + c.name, Cost: c.cost, Change: "start it with " + c.name + ": no CapabilityBoundingSet= in its unit, --cap-add for the container around it"}
		if c.fatal {
			r.Level = Fail
		}
		e.add(r)
	}
	return whose + " has what it needs"
}

func (e *exam) daemonLimits() string {
	pid := e.daemon()
	if pid == "" {
		return "no daemon runs"
	}
	for _, line := range e.lines("/proc/" + pid + "/limits") {
		value, ok := strings.CutPrefix(line, "Max open files")
		fields := strings.Fields(value)
		if !ok || len(fields) == 0 {
			continue
		}
		if n, err := strconv.Atoi(fields[0]); err == nil && n < 65536 {
			e.warn("the daemon may have "+fields[0]+" open files", "with hundreds of pods or streams it refuses requests", "LimitNOFILE=1048576 in its unit, or ulimit -n 1048576 before it")
		}
	}
	if score, ok := e.number("/proc/" + pid + "/oom_score_adj"); ok && score > -900 {
		e.warn(fmt.Sprintf("oom_score_adj of the daemon is %d", score), "when the machine runs out of memory it may be killed (pods go on, the node is not ready until it is back)",
			"OOMScoreAdjust=-999 in its unit")
	}
	return "daemon " + pid + " has what it needs"
}

func (e *exam) insideContainer() string {
	environ, _ := e.text("/proc/1/environ")
	for _, sign := range []struct {
		there bool
		text  string
	}{
		{e.exists("/.dockerenv"), "/.dockerenv"},
		{e.exists("/run/.containerenv"), "/run/.containerenv"},
		{e.exists("/run/systemd/container"), "/run/systemd/container"},
		{slices.ContainsFunc(strings.Split(environ, "\x00"), func(v string) bool { return strings.HasPrefix(v, "container=") }), "container= in the environment of process 1"},
	} {
		if sign.there {
			e.warn("this is the inside of a container: "+sign.text, "limits, devices, kernel modules and mounts are what that container allows",
				"give it all capabilities, a writable cgroup tree and no seccomp profile, and keep the directories of the runtime on a volume (overlay on overlay is refused)")
			return ""
		}
	}
	return "not inside a container"
}

// initReaps counts the dead that process 1 has not buried.
func (e *exam) initReaps() string {
	const many = 64
	dead := 0
	for _, pid := range e.list("/proc") {
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		stat, _ := e.text("/proc/" + pid + "/stat")
		fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
		if len(fields) > 1 && fields[0] == "Z" && fields[1] == "1" {
			dead++
		}
	}
	if dead >= many {
		e.warn(fmt.Sprintf("process 1 has %d dead children that it has not waited for", dead), "process ids and cgroups of ended containers stay taken",
			"run an init that reaps, such as systemd or tini, as process 1")
	}
	return fmt.Sprintf("process 1 buries the dead (%d wait)", dead)
}

func (e *exam) procOptions() string {
	i := slices.IndexFunc(e.mounts(), func(m mount) bool { return m.at == "/proc" && m.kind == "proc" })
	if i < 0 {
		e.fail("no procfs on /proc", "nothing of a process can be known", "mount -t proc proc /proc")
		return ""
	}
	for _, o := range e.mounts()[i].options {
		switch {
		case strings.HasPrefix(o, "hidepid=") && o != "hidepid=0" && o != "hidepid=off":
			e.warn("/proc is mounted with "+o, "without CAP_SYS_PTRACE the daemon sees no processes of other users", "mount -o remount,hidepid=0 /proc, or leave the daemon that capability")
		case o == "ro":
			e.fail("/proc is read-only", "the settings of networks and pods cannot be made", "mount -o remount,rw /proc")
		}
	}
	return "whole (noexec does no harm)"
}

func (e *exam) clock() string {
	if t := e.newestRecord(); t.After(e.Now.Add(time.Hour)) {
		e.fail(fmt.Sprintf("it is %s here, and the newest record is of %s", e.Now.UTC().Format(time.RFC3339), t.UTC().Format(time.RFC3339)),
			"ages and restart times of pods are wrong, certificates of registries may be not valid yet", "set the clock: timedatectl set-ntp true, or chronyc makestep")
	}
	synchronised, err := e.Kernel.Synchronised()
	if err != nil {
		e.warn("whether the clock is synchronised is not told: "+err.Error(), "a wrong clock is not seen", "look at chronyc tracking")
	} else if !synchronised {
		e.warn("the clock is not synchronised", "times of pods and logs drift from the other nodes', tokens and certificates are refused", "run chrony or systemd-timesyncd: timedatectl set-ntp true")
	}
	return "synchronised"
}
