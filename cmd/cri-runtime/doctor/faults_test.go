package doctor

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

func lacks(call string, err error) func(*Config, *fakeKernel) {
	return func(_ *Config, k *fakeKernel) { k.calls = map[string]error{call: err} }
}

func noOption(option string) func(*Config, *fakeKernel) {
	return func(_ *Config, k *fakeKernel) { k.options = map[string]error{option: unix.EINVAL} }
}

func driver(name string) func(*Config, *fakeKernel) {
	return func(c *Config, _ *fakeKernel) { c.CgroupDriver = name }
}

func room(v Volume) func(*Config, *fakeKernel) {
	return func(_ *Config, k *fakeKernel) { k.volume = v }
}

func one(name, text string) tree { return tree{name: text} }

func mounted(from, to string) tree {
	return one("/proc/self/mountinfo", strings.Replace(mountinfo, from, to, 1))
}

// systemFaults are those of the kernel, cgroups, security modules and limits.
func systemFaults() []fault {
	return []fault{
		{"kernel.version", one("/proc/sys/kernel/osrelease", "5.15.0-generic"), nil, Fail, "Linux 5.15"},
		{"kernel.version", one("/proc/sys/kernel/osrelease", "6.1.0-30"), nil, Warn, "Linux 6.1.0"},
		{"kernel.version", one("/proc/sys/kernel/osrelease", "-"), nil, Warn, "cannot be read"},
		{"kernel.calls", nil, lacks("openat2", unix.ENOSYS), Fail, "openat2: function not implemented"},
		{"kernel.calls", nil, lacks("clone3", unix.EPERM), Fail, "clone3"},
		{"kernel.overlay", one("/proc/filesystems", "\text4\n"), nil, Fail, "no overlay"},
		{"kernel.overlay.options", nil, noOption("lowerdir+"), Warn, "lowerdir+"},
		{"kernel.overlay.options", nil, noOption("volatile"), Warn, "volatile"},
		{"kernel.namespaces", one("/proc/self/ns/pid", "-"), nil, Fail, "pid"},
		{"kernel.userns", one("/proc/self/ns/user", "-"), nil, Warn, "no user namespaces"},
		{"kernel.userns", one("/proc/sys/user/max_user_namespaces", "0"), nil, Warn, "max_user_namespaces is 0"},
		{"kernel.userns", one("/proc/sys/kernel/unprivileged_userns_clone", "0"), nil, Warn, "unprivileged_userns_clone"},
		{"kernel.userns", one("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"), nil, Warn, "apparmor_restrict"},
		{"kernel.seccomp", one("/proc/sys/kernel/seccomp/actions_avail", "-"), nil, Fail, "seccomp"},
		{"kernel.seccomp", one("/proc/self/status", "Seccomp:\t2\n"), nil, Warn, "under a seccomp filter"},
		{"kernel.memfd", one("/proc/sys/vm/memfd_noexec", "2"), nil, Fail, "memfd_noexec is 2"},
		{"kernel.rcu", one("/sys/kernel/rcu_normal", "1"), nil, Warn, "rcu_normal"},
		{"cgroup.mode", one("/proc/self/mountinfo", mountinfoV1), nil, Warn, "cgroup v1"},
		{"cgroup.mode", mounted("cgroup2 cgroup2", "tmpfs tmpfs"), nil, Fail, "no cgroup hierarchy"},
		{"cgroup.controllers", one("/sys/fs/cgroup/cgroup.controllers", "cpu pids"), nil, Fail, "memory"},
		{"cgroup.controllers", one("/sys/fs/cgroup/cgroup.controllers", "cpu memory pids"), nil, Warn, "cpuset"},
		{"cgroup.controllers", one("/proc/self/mountinfo", mountinfoV1), nil, Warn, "controller io"},
		{"cgroup.controllers", one("/proc/cmdline", "cgroup_disable=memory"), nil, Fail, "cgroup_disable=memory"},
		{
			"cgroup.controllers",
			tree{"/proc/self/mountinfo": mountinfoV1, "/proc/cmdline": "cgroup_no_v1=memory"},
			nil, Fail, "cgroup_no_v1=memory",
		},
		{
			"cgroup.delegation",
			tree{"/sys/fs/cgroup/cgroup.type": "domain", "/sys/fs/cgroup/cgroup.subtree_control": "cpu"},
			nil, Fail, "does not pass memory, pids on",
		},
		{"cgroup.delegation", mounted("/sys/fs/cgroup rw,nosuid", "/sys/fs/cgroup ro,nosuid"), nil, Fail, "read-only"},
		{
			"cgroup.delegation",
			tree{"/run/runtime/lock": "77", "/proc/77/comm": "cri-runtime", "/proc/77/cgroup": "0::/user.slice/session-1.scope"},
			driver("systemd"), Warn, "no service",
		},
		{"cgroup.driver", nil, driver("systemd"), Fail, "not the init"},
		{"cgroup.driver", one("/run/systemd/system", "/"), nil, Warn, "beside systemd"},
		{"cgroup.driver", one("/run/systemd/system", "/"), driver("systemd"), Fail, "system_bus_socket"},
		{"cgroup.driver", one("/var/lib/kubelet/config.yaml", "a: b\ncgroupDriver: \"systemd\" # x\n"), nil, Warn, "cgroupDriver: systemd"},
		{"cgroup.swap", one("/proc/swaps", "Filename\n/dev/sdb\tpartition\n"), nil, Warn, "does not account it"},
		{
			"cgroup.swap",
			tree{"/proc/swaps": "Filename\n/dev/sdb\n", "/sys/fs/cgroup/system.slice/memory.swap.max": "max"},
			nil, Warn, "there is swap",
		},
		{"cgroup.psi", one("/proc/pressure/memory", "-"), nil, Warn, "PSI"},
		{"lsm.selinux", one("/sys/fs/selinux/enforce", "1"), nil, Warn, "no container_t"},
		{"lsm.apparmor", one("/sys/module/apparmor/parameters/enabled", "Y"), nil, Warn, "/sys/kernel/security/apparmor is not there"},
		{
			"lsm.apparmor",
			tree{"/sys/module/apparmor/parameters/enabled": "Y", "/sys/kernel/security/apparmor": "/"},
			nil, Warn, "no apparmor_parser",
		},
		{"limits.inotify", one("/proc/sys/fs/inotify/max_user_instances", "128"), nil, Warn, "max_user_instances is 128"},
		{"limits.inotify", one("/proc/sys/fs/inotify/max_user_watches", "8192"), nil, Warn, "max_user_watches is 8192"},
		{"limits.keys", one("/proc/sys/kernel/keys/root_maxkeys", "200"), nil, Warn, "root_maxkeys is 200"},
		{"limits.keys", one("/proc/sys/kernel/keys/maxbytes", "100"), nil, Warn, "maxbytes is 100"},
		{"limits.processes", one("/proc/sys/kernel/pid_max", "4096"), nil, Warn, "pid_max is 4096"},
		{"limits.processes", one("/proc/sys/kernel/threads-max", "4096"), nil, Warn, "threads-max is 4096"},
		{"limits.files", one("/proc/sys/fs/file-max", "65536"), nil, Warn, "file-max is 65536"},
		{"limits.conntrack", one("/proc/sys/net/netfilter/nf_conntrack_max", "16384"), nil, Warn, "nf_conntrack_max is 16384"},
		{"limits.conntrack", one("/proc/sys/net/netfilter/nf_conntrack_count", "260000"), nil, Warn, "260000 of 262144"},
		{"limits.memory-maps", one("/proc/sys/vm/max_map_count", "1000"), nil, Warn, "max_map_count is 1000"},
		{"limits.aio", one("/proc/sys/fs/aio-nr", "65000"), nil, Warn, "65000 of 65536"},
	}
}

func running(file, text string) tree {
	return tree{"/run/runtime/lock": "77\n", "/proc/77/comm": "cri-runtime", "/proc/77/status": "CapEff:\t000001ffffffffff\n", "/proc/77/" + file: text}
}

func withConf(more tree) tree {
	files := tree{"/etc/net.d/10-pods.conflist": conflist, "/opt/bin/bridge": "", "/opt/bin/host-local": "", "/proc/sys/net/bridge/bridge-nf-call-iptables": "1"}
	for name, text := range more {
		files[name] = text
	}
	return files
}

func dead(n int) tree {
	files := tree{}
	for i := range n {
		pid := strconv.Itoa(100 + i)
		files["/proc/"+pid+"/stat"] = pid + " (a ) b) Z 1 1"
	}
	return files
}

// hostFaults are those of the daemon, the host, disks, networks and leftovers.
func hostFaults() []fault {
	withoutBuiltin := func(c *Config, _ *fakeKernel) { c.Network.Fallback = false }
	return []fault{
		{"daemon.capabilities", one("/proc/self/status", "CapEff:\t000001fffeffffff\n"), nil, Warn, "CAP_SYS_RESOURCE"},
		{"daemon.capabilities", running("status", "CapEff:\t000001ffffdfffff\n"), nil, Fail, "the daemon lacks CAP_SYS_ADMIN"},
		{"daemon.limits", running("limits", "Limit  Soft\nMax open files            1024   524288   files\n"), nil, Warn, "1024 open files"},
		{"daemon.limits", running("oom_score_adj", "0"), nil, Warn, "oom_score_adj"},
		{"host.container", one("/run/.containerenv", ""), nil, Warn, "containerenv"},
		{"host.container", one("/proc/1/environ", "A=b\x00container=lxc\x00"), nil, Warn, "container="},
		{"host.init", dead(70), nil, Warn, "dead children"},
		{"host.proc", mounted("proc proc rw", "proc proc rw,hidepid=invisible"), nil, Warn, "hidepid=invisible"},
		{"host.proc", one("/proc/self/mountinfo", "-"), nil, Fail, "no procfs"},
		{"host.clock", nil, func(_ *Config, k *fakeKernel) { k.unsynchronised = true }, Warn, "not synchronised"},
		{
			"host.clock", one("/root/runtime/sandboxes/a/sandbox.json", "{}"),
			func(c *Config, _ *fakeKernel) { c.Now = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC) }, Fail, "it is 2001-01-01",
		},
		{"disk.space", nil, room(Volume{Bytes: 10 << 30, FreeBytes: 1 << 20}), Fail, "1 MiB of 10240 free"},
		{"disk.space", nil, room(Volume{Bytes: 10 << 30, FreeBytes: 300 << 20}), Warn, "300 MiB"},
		{"disk.space", nil, room(Volume{Bytes: 10 << 30, FreeBytes: 5 << 30, Inodes: 1000, FreeInodes: 3}), Warn, "3 of 1000 inodes"},
		{"disk.space", nil, func(_ *Config, k *fakeKernel) { k.volumeErr = errors.New("statfs: gone") }, Warn, "gone"},
		{"disk.filesystem", mounted("ext4 /dev/sda", "overlay overlay"), nil, Fail, "overlay"},
		{"disk.filesystem", mounted("ext4 /dev/sda", "nfs4 server:/x"), nil, Fail, "nfs4"},
		{"disk.filesystem", mounted("ext4 /dev/sda", "tmpfs tmpfs"), nil, Warn, "tmpfs"},
		{"disk.filesystem", mounted("ext4 /dev/sda rw", "ext4 /dev/sda ro"), nil, Fail, "read-only"},
		{"disk.filesystem", nil, func(_ *Config, k *fakeKernel) { k.untyped = true }, Fail, "do not tell the types"},
		{"disk.state", mounted("/run rw,nosuid,nodev - tmpfs tmpfs", "/mnt rw - tmpfs tmpfs"), nil, Warn, "ext4"},
		{"network.modules", one("/sys/module/nf_tables", "-"), nil, Warn, "nf_tables"},
		{"network.forwarding", one("/proc/sys/net/ipv4/ip_forward", "0"), withoutBuiltin, Warn, "net.ipv4.ip_forward is 0"},
		{"network.forwarding", one("/proc/sys/net/ipv6/conf/all/forwarding", "0"), withoutBuiltin, Warn, "net.ipv6"},
		{"network.bridge", withConf(one("/proc/sys/net/bridge/bridge-nf-call-iptables", "-")), nil, Warn, "br_netfilter"},
		{"network.bridge", withConf(one("/proc/sys/net/bridge/bridge-nf-call-iptables", "0")), nil, Warn, "bridge-nf-call-iptables is 0"},
		{"network.reverse-path", one("/proc/sys/net/ipv4/conf/all/rp_filter", "1"), nil, Warn, "rp_filter is 1"},
		{"network.reverse-path", one("/proc/sys/net/ipv4/conf/all/route_localnet", "1"), nil, Warn, "route_localnet is 1"},
		{"network.cni", nil, withoutBuiltin, Fail, "built-in network is off"},
		{"network.cni", one("/etc/net.d/05-a.conflist", "{\n\noops"), nil, Warn, "05-a.conflist:3: "},
		{"network.cni", withConf(one("/etc/net.d/99-z.conflist", conflist)), nil, Warn, "99-z.conflist"},
		{"network.cni", one("/etc/net.d", "a file"), nil, Fail, "not a directory"},
		{"network.cni.plugins", withConf(one("/opt/bin/host-local", "-")), nil, Fail, "the plugin host-local"},
		{"network.subnets", one("/proc/net/route", routeCNI0), nil, Warn, "10.222.1.0/24 is reached by cni0"},
		{"network.subnets", withConf(one("/proc/net/route", routeBr7)), nil, Warn, "br7 has 10.100.0.0/24"},
		{"network.leases", withConf(one("/var/lib/cni/networks/pods/10.7.0.9", "gone\r\neth0")), nil, Warn, "10.7.0.9"},
		{"image.registries", one("/etc/certs.d/r.example/hosts.toml", "server = 7"), nil, Fail, "hosts.toml"},
		{"image.registries", one("/etc/certs.d/r.example/hosts.toml", `ca = "absent.pem"`), nil, Fail, "absent.pem"},
		{"leftover.runtimes", one("/run/containerd/containerd.sock", ""), nil, Warn, "containerd"},
		{"leftover.runtimes", one("/proc/99/comm", "crio"), nil, Warn, "process 99"},
		{"leftover.cgroups", one("/sys/fs/cgroup/kubepods/burstable/podabc/cgroup.procs", ""), later, Warn, "kubepods/burstable/podabc"},
		{
			"leftover.cgroups", one("/sys/fs/cgroup/kubepods.slice/kubepods-podabc.slice/x/cgroup.procs", ""),
			later, Warn, "kubepods-podabc.slice",
		},
		{
			"leftover.records", nil, func(c *Config, _ *fakeKernel) {
				c.Audit = func() (ledger.Findings, error) {
					return ledger.Findings{{Path: "/x", Problem: "is left", Remedy: "remove it"}}, nil
				}
			}, Warn, "/x: is left",
		},
		{
			"leftover.records", nil, func(c *Config, _ *fakeKernel) {
				c.Audit = func() (ledger.Findings, error) { return nil, os.ErrPermission }
			}, Fail, "permission denied",
		},
	}
}

// later is when a cgroup that was made now is no new one.
func later(c *Config, _ *fakeKernel) { c.Now = c.Now.Add(time.Hour) }
