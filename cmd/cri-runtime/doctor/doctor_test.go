package doctor

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/network/builtin"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// tree is a host: paths and what is in the files, "/" for a directory, and
// "-" for what is removed from a healthy one.
type tree map[string]string

const mountinfo = `20 1 8:1 / / rw,relatime - ext4 /dev/sda rw
21 20 0:2 / /proc rw,nosuid,nodev,noexec - proc proc rw
22 20 0:3 / /run rw,nosuid,nodev - tmpfs tmpfs rw
23 20 0:4 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
`

const mountinfoV1 = `20 1 8:1 / / rw,relatime - ext4 /dev/sda rw
21 20 0:2 / /proc rw - proc proc rw
22 20 0:3 / /run rw - tmpfs tmpfs rw
24 20 0:5 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
25 20 0:6 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
26 20 0:7 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
`

const conflist = `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","bridge":"br7",
	"ipam":{"type":"host-local","ranges":[[{"subnet":"10.7.0.0/24"}]]}}]}`

// routes prints destination and mask as an x86-64 does.
const (
	routeHeading = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
	routeCNI0    = routeHeading + "cni0\t0001DE0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n" // 10.222.1.0/24
	routeBr7     = routeHeading + "br7\t0000640A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"  // 10.100.0.0/24
)

func healthy() tree {
	return tree{
		"/proc/sys/kernel/osrelease":                 "6.18.3-test",
		"/proc/filesystems":                          "nodev\tproc\n\text4\nnodev\toverlay\n",
		"/proc/self/ns/mnt":                          "",
		"/proc/self/ns/pid":                          "",
		"/proc/self/ns/net":                          "",
		"/proc/self/ns/ipc":                          "",
		"/proc/self/ns/uts":                          "",
		"/proc/self/ns/cgroup":                       "",
		"/proc/self/ns/user":                         "",
		"/proc/self/mountinfo":                       mountinfo,
		"/proc/self/status":                          "Name:\tx\nCapEff:\t000001ffffffffff\nSeccomp:\t0\n",
		"/proc/sys/kernel/seccomp/actions_avail":     "kill_process kill_thread trap errno user_notif trace log allow",
		"/proc/sys/user/max_user_namespaces":         "96365",
		"/proc/sys/vm/memfd_noexec":                  "0",
		"/proc/sys/vm/max_map_count":                 "262144",
		"/proc/sys/fs/inotify/max_user_instances":    "8192",
		"/proc/sys/fs/inotify/max_user_watches":      "524288",
		"/proc/sys/fs/file-max":                      "9223372036854775807",
		"/proc/sys/fs/nr_open":                       "1048576",
		"/proc/sys/fs/aio-max-nr":                    "65536",
		"/proc/sys/fs/aio-nr":                        "0",
		"/proc/sys/kernel/keys/root_maxkeys":         "1000000",
		"/proc/sys/kernel/keys/root_maxbytes":        "25000000",
		"/proc/sys/kernel/keys/maxkeys":              "200",
		"/proc/sys/kernel/keys/maxbytes":             "20000",
		"/proc/sys/kernel/pid_max":                   "4194304",
		"/proc/sys/kernel/threads-max":               "190000",
		"/proc/sys/net/netfilter/nf_conntrack_max":   "262144",
		"/proc/sys/net/netfilter/nf_conntrack_count": "12",
		"/proc/sys/net/ipv4/ip_forward":              "1",
		"/proc/sys/net/ipv6/conf/all/forwarding":     "1",
		"/proc/sys/net/ipv4/conf/all/rp_filter":      "2",
		"/proc/sys/net/ipv4/conf/all/route_localnet": "0",
		"/proc/cmdline":                              "quiet psi=1",
		"/proc/swaps":                                "Filename\tType\n",
		"/proc/pressure/memory":                      "some avg10=0.00",
		"/proc/1/environ":                            "HOME=/\x00",
		"/proc/1/comm":                               "systemd",
		"/proc/1/stat":                               "1 (systemd) S 0 1 1",
		"/proc/net/route":                            routeHeading,
		"/sys/kernel/rcu_normal":                     "0",
		"/sys/fs/cgroup/cgroup.controllers":          "cpuset cpu io memory hugetlb pids",
		"/sys/fs/cgroup/cgroup.subtree_control":      "cpu memory pids",
		"/sys/fs/cgroup/cgroup.procs":                "1",
		"/sys/module/bridge":                         "/",
		"/sys/module/veth":                           "/",
		"/sys/module/nf_tables":                      "/",
		"/sys/module/nf_conntrack":                   "/",
		"/root":                                      "/",
		"/run":                                       "/",
	}
}

// plant makes the host.
func (files tree) plant(t *testing.T) string {
	t.Helper()
	host := t.TempDir()
	for name, text := range files {
		at := filepath.Join(host, name)
		var err error
		switch text {
		case "-":
			continue
		case "/":
			err = os.MkdirAll(at, 0o755)
		default:
			if err = os.MkdirAll(filepath.Dir(at), 0o755); err == nil {
				err = os.WriteFile(at, []byte(text), 0o755) // programs are among them
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return host
}

// fakeKernel is one that has everything, but what it is told to lack.
type fakeKernel struct {
	calls, options map[string]error
	volume         Volume
	volumeErr      error
	untyped        bool
	unsynchronised bool
}

func (k *fakeKernel) Call(name string) error            { return k.calls[name] }
func (k *fakeKernel) OverlayOption(option string) error { return k.options[option] }
func (k *fakeKernel) Volume(string) (Volume, error)     { return k.volume, k.volumeErr }
func (k *fakeKernel) Typed(string) (bool, error)        { return !k.untyped, nil }
func (k *fakeKernel) Synchronised() (bool, error)       { return !k.unsynchronised, nil }

// fault is what one host lacks, and what is to be said of it.
type fault struct {
	check string
	files tree
	set   func(*Config, *fakeKernel)
	level Level
	seen  string
}

func (f *fault) examine(t *testing.T) []Result {
	t.Helper()
	files := healthy()
	for name, text := range f.files {
		files[name] = text
	}
	kernel := &fakeKernel{volume: Volume{Bytes: 100 << 30, FreeBytes: 50 << 30, Inodes: 1 << 20, FreeInodes: 1 << 19}}
	c := Config{
		Host: files.plant(t), Kernel: kernel, Now: time.Now(), Root: true,
		RootDir: "/root/runtime", StateDir: "/run/runtime", CgroupDriver: "cgroupfs", RegistryConfigDir: "/etc/certs.d",
		Network: network.Config{
			ConfDir: "/etc/net.d", BinDirs: []string{"/opt/bin"}, Fallback: true,
			Builtin: builtin.Config{Bridge: "cri0", Subnets: []netip.Prefix{netip.MustParsePrefix("10.222.0.0/16")}},
		},
		Audit: func() (ledger.Findings, error) { return nil, nil },
	}
	if f.set != nil {
		f.set(&c, kernel)
	}
	return Examine(c)
}

func TestHealthyHost(t *testing.T) {
	t.Parallel()
	results := (&fault{}).examine(t)
	for i, r := range results {
		if r.Level != OK || r.Seen == "" || r.Cost != "" {
			t.Errorf("%+v", r)
		}
		if want := checks()[i].name; r.Check != want {
			t.Errorf("result %d is of %s, want %s", i, r.Check, want)
		}
	}
}

// Each fault is found by its check, with a cost and a change, and each check
// finds one.
func TestFaults(t *testing.T) {
	t.Parallel()
	found := map[string]bool{}
	for _, f := range append(systemFaults(), hostFaults()...) {
		found[f.check] = true
		t.Run(f.check+"/"+f.seen, func(t *testing.T) {
			t.Parallel()
			var said []Result
			for _, r := range f.examine(t) {
				if r.Check == f.check {
					said = append(said, r)
				}
			}
			for _, r := range said {
				if r.Level == f.level && strings.Contains(r.Seen, f.seen) && r.Cost != "" && r.Change != "" {
					return
				}
			}
			t.Errorf("want %s %q, got %+v", f.level, f.seen, said)
		})
	}
	for _, k := range checks() {
		if !found[k.name] {
			t.Errorf("no fault shows that %s finds one", k.name)
		}
	}
}

func TestWithoutRoot(t *testing.T) {
	t.Parallel()
	f := fault{set: func(c *Config, _ *fakeKernel) { c.Root = false }}
	skipped := 0
	for i, r := range f.examine(t) {
		if (r.Level == Skipped) != checks()[i].root {
			t.Errorf("%+v", r)
		}
		if r.Level == Skipped {
			skipped++
		}
	}
	if skipped == 0 {
		t.Error("no check needs root")
	}
}

// What is there and cannot be read is said, and no check hangs on it.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	files := healthy()
	delete(files, "/proc/sys/kernel/osrelease")
	host := files.plant(t)
	if err := unix.Mkfifo(filepath.Join(host, "/proc/sys/kernel/osrelease"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := exam{Config: Config{Host: host}}
	e.run(check{"x", false, (*exam).kernelVersion})
	if len(e.results) != 2 || !strings.Contains(e.results[1].Seen, "not a regular file") {
		t.Errorf("%+v", e.results)
	}
	e.results = nil
	e.run(check{"x", false, func(e *exam) string {
		e.cannot(&fs.PathError{Op: "open", Path: "/x", Err: unix.EACCES})
		return "all is well"
	}})
	if len(e.results) != 1 || e.results[0].Level != Warn {
		t.Errorf("%+v", e.results)
	}
}

// An empty host is described, not survived by luck.
func TestEmptyHost(t *testing.T) {
	t.Parallel()
	for _, root := range []bool{true, false} {
		results := Examine(Config{Host: t.TempDir(), Kernel: &fakeKernel{}, Root: root, Now: time.Now(), RootDir: "/r", StateDir: "/s"})
		if len(results) < len(checks()) {
			t.Errorf("%d results of %d checks", len(results), len(checks()))
		}
	}
}

// The calls are tried on the kernel that runs the tests, and do nothing to it.
func TestRunningKernel(t *testing.T) {
	t.Parallel()
	k := Running{}
	for _, c := range neededCalls() {
		if err := k.Call(c[0]); err != nil && os.Geteuid() == 0 {
			t.Errorf("%s: %v", c[0], err)
		}
	}
	if err := k.Call("reboot"); !errors.Is(err, errUnknownCall) {
		t.Errorf("an unknown call: %v", err)
	}
	dir := t.TempDir()
	if v, err := k.Volume(dir); err != nil || v.Bytes == 0 {
		t.Errorf("volume: %+v, %v", v, err)
	}
	if _, err := k.Volume(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no volume: %v", err)
	}
	if typed, err := k.Typed(dir); err != nil || !typed {
		t.Errorf("types: %t, %v", typed, err)
	}
	if _, err := k.Synchronised(); err != nil {
		t.Error(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("options of overlay need root")
	}
	if err := k.OverlayOption("no-such-option"); err == nil {
		t.Error("the kernel knows any option")
	}
	if err := k.OverlayOption("volatile"); err != nil {
		t.Error(err)
	}
}

// Whatever is in the kernel's files, an examination ends.
func FuzzFiles(f *testing.F) {
	f.Add(mountinfo, routeCNI0, "6.18", "1 (a) b) Z 1")
	f.Add(mountinfoV1, routeBr7, "", ")")
	f.Fuzz(func(t *testing.T, mounts, routes, release, stat string) {
		files := tree{
			"/proc/self/mountinfo": mounts, "/proc/net/route": routes, "/proc/sys/kernel/osrelease": release, "/proc/7/stat": stat,
			"/proc/swaps": routes, "/proc/cmdline": mounts, "/proc/self/status": mounts, "/var/lib/kubelet/config.yaml": mounts, "/run/s/lock": "7",
		}
		for name, text := range files {
			if text == "-" || text == "/" {
				delete(files, name)
			}
		}
		Examine(Config{Host: files.plant(t), Kernel: &fakeKernel{}, Root: true, Now: time.Now(), RootDir: "/r", StateDir: "/run/s"})
	})
}

func TestSpecificationListsChecks(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "SPECIFICATION.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "## 11. Doctor")
	listed := map[string]bool{}
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			for _, name := range strings.Split(cells[1], ",") {
				listed[strings.TrimSpace(name)] = true
			}
		}
	}
	for _, k := range checks() {
		if !listed[k.name] {
			t.Errorf("SPECIFICATION.md does not list %s", k.name)
		}
	}
}
