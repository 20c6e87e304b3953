package doctor

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// Level is how a check went.
type Level string

// The levels. A warning costs something, a failure keeps pods from running.
const (
	OK      Level = "ok"
	Warn    Level = "warn"
	Fail    Level = "fail"
	Skipped Level = "skip" // it needs root
)

// Result is what one check saw.
type Result struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Seen   string `json:"seen"`
	Cost   string `json:"cost,omitempty"`
	Change string `json:"change,omitempty"`
}

// Config is a host, and what a daemon on it is configured with.
type Config struct {
	Host   string // directory of the host's root: "/"
	Kernel Kernel
	Now    time.Time
	Root   bool // whoever looks has the rights of root

	RootDir, StateDir string
	CgroupDriver      string // cgroupfs or systemd
	Network           network.Config
	RegistryConfigDir string

	// Audit compares records and host.
	Audit func() (ledger.Findings, error)
}

const maxFile = 1 << 20 // bytes that are read of a file

// exam is one look at a host.
type exam struct {
	Config
	check   string
	results []Result
	unread  error // the first file of this check that is there and cannot be read
}

type check struct {
	name string
	root bool // sees nothing without root
	look func(*exam) string
}

// Examine runs all checks, in their order. Each has a result.
func Examine(c Config) []Result {
	e := &exam{Config: c}
	for _, k := range checks() {
		e.run(k)
	}
	return e.results
}

// run makes one check; look returns what it saw where all is well.
func (e *exam) run(k check) {
	e.check, e.unread = k.name, nil
	if k.root && !e.Config.Root {
		e.add(Result{Level: Skipped, Seen: "needs root"})
		return
	}
	before := len(e.results)
	seen := k.look(e)
	if e.unread != nil {
		e.warn(e.unread.Error(), "this check is not complete", "run it as root; if it was root, see why the file cannot be read")
	}
	if len(e.results) == before {
		e.add(Result{Level: OK, Seen: seen})
	}
}

func (e *exam) add(r Result) {
	r.Check = e.check
	e.results = append(e.results, r)
}

func (e *exam) warn(seen, cost, change string) {
	e.add(Result{Level: Warn, Seen: seen, Cost: cost, Change: change})
}

func (e *exam) fail(seen, cost, change string) {
	e.add(Result{Level: Fail, Seen: seen, Cost: cost, Change: change})
}

func (e *exam) path(name string) string { return filepath.Join(e.Host, name) }

// text returns a file without the space around it; ok tells that it is there.
func (e *exam) text(name string) (text string, ok bool) {
	data, err := readFile(e.path(name))
	if err != nil {
		e.cannot(err)
		return "", false
	}
	return strings.TrimSpace(string(data)), true
}

func (e *exam) lines(name string) []string {
	text, _ := e.text(name)
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

// number returns a file's number; ok tells that it is there and is one.
func (e *exam) number(name string) (n int64, ok bool) {
	text, ok := e.text(name)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil
}

func (e *exam) exists(name string) bool {
	_, err := os.Lstat(e.path(name))
	e.cannot(err)
	return err == nil
}

// list returns the names in a directory.
func (e *exam) list(dir string) []string {
	entries, err := os.ReadDir(e.path(dir))
	e.cannot(err)
	names := make([]string, len(entries))
	for i, entry := range entries {
		names[i] = entry.Name()
	}
	return names
}

// cannot notes what is there and cannot be read. A process that ended, ESRCH, is not.
func (e *exam) cannot(err error) {
	if err != nil && e.unread == nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOTDIR) {
		e.unread = err
	}
}

// readFile reads a file that may be anything: a pipe would block, a device
// would take all memory.
func readFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !stat.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file but %s", name, stat.Mode().Type())
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// checks are in the order in which one thing rests upon another.
func checks() []check {
	return []check{
		{"kernel.version", false, (*exam).kernelVersion},
		{"kernel.calls", true, (*exam).kernelCalls},
		{"kernel.overlay", false, (*exam).overlay},
		{"kernel.overlay.options", true, (*exam).overlayOptions},
		{"kernel.namespaces", false, (*exam).namespaces},
		{"kernel.userns", false, (*exam).userNamespaces},
		{"kernel.seccomp", false, (*exam).seccomp},
		{"kernel.memfd", false, (*exam).memfd},
		{"kernel.rcu", false, (*exam).rcu},
		{"cgroup.mode", false, (*exam).cgroupMode},
		{"cgroup.controllers", false, (*exam).cgroupControllers},
		{"cgroup.delegation", false, (*exam).cgroupDelegation},
		{"cgroup.driver", false, (*exam).cgroupDriver},
		{"cgroup.swap", false, (*exam).cgroupSwap},
		{"cgroup.psi", false, (*exam).cgroupPSI},
		{"lsm.selinux", false, (*exam).selinux},
		{"lsm.apparmor", false, (*exam).apparmor},
		{"limits.inotify", false, (*exam).inotify},
		{"limits.keys", false, (*exam).keys},
		{"limits.processes", false, (*exam).processes},
		{"limits.files", false, (*exam).files},
		{"limits.conntrack", false, (*exam).conntrack},
		{"limits.memory-maps", false, (*exam).memoryMaps},
		{"limits.aio", false, (*exam).aio},
		{"daemon.capabilities", false, (*exam).capabilities},
		{"daemon.limits", true, (*exam).daemonLimits},
		{"host.container", true, (*exam).insideContainer},
		{"host.init", false, (*exam).initReaps},
		{"host.proc", false, (*exam).procOptions},
		{"host.clock", true, (*exam).clock},
		{"disk.space", false, (*exam).diskSpace},
		{"disk.filesystem", true, (*exam).diskFilesystem},
		{"disk.state", false, (*exam).diskState},
		{"network.modules", false, (*exam).networkModules},
		{"network.forwarding", false, (*exam).forwarding},
		{"network.bridge", false, (*exam).bridgeFilter},
		{"network.reverse-path", false, (*exam).reversePath},
		{"network.cni", true, (*exam).cni},
		{"network.cni.plugins", true, (*exam).cniPlugins},
		{"network.subnets", true, (*exam).subnets},
		{"network.leases", true, (*exam).leases},
		{"image.registries", true, (*exam).registries},
		{"leftover.runtimes", false, (*exam).otherRuntimes},
		{"leftover.cgroups", true, (*exam).emptyPods},
		{"leftover.records", true, (*exam).records},
	}
}
