package oci

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"
)

// Host is what ContainerSpec needs to know of the node and of the daemon's
// own rights. It is read once and never changed.
type Host struct {
	Hostname string
	Kernel   string // release, as uname gives it
	CgroupV2 bool
	// Capabilities are all that the kernel knows, Bounding those that the
	// daemon can hand on; both by their names with CAP_.
	Capabilities []string
	Bounding     []string
	SELinux      bool // enabled, whether enforcing or not
	AppArmor     bool
	// AppArmorDefault is the loaded profile that RuntimeDefault stands for,
	// empty when there is none.
	AppArmorDefault string
	HugepageSizes   []string // those with a cgroup limit: 2MB, 1GB
	Swap            bool     // whether the memory controller limits swap
	// SysResource: the daemon has CAP_SYS_RESOURCE, so that it may raise hard
	// limits and lower OOM scores.
	SysResource bool
	OOMScoreAdj int               // the daemon's own
	Rlimits     map[string]uint64 // the daemon's hard limits by name: RLIMIT_NOFILE
	// PrivilegedDevices are those of HostDevices.
	PrivilegedDevices []specs.LinuxDevice
}

// ReadHost gathers the facts.
func ReadHost() (*Host, error) {
	h := &Host{CgroupV2: unifiedOnly()}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("read host: uname: %w", err)
	}
	h.Hostname, h.Kernel = text(uts.Nodename[:]), text(uts.Release[:])
	var err error
	if h.Capabilities, err = kernelCapabilities(); err != nil {
		return nil, fmt.Errorf("read host: %w", err)
	}
	for i, name := range h.Capabilities {
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0); err == nil && has == 1 {
			h.Bounding = append(h.Bounding, name)
		}
	}
	h.SysResource = slices.Contains(h.Bounding, "CAP_SYS_RESOURCE")
	if h.OOMScoreAdj, err = readInt("/proc/self/oom_score_adj"); err != nil {
		return nil, fmt.Errorf("read host: %w", err)
	}
	if h.Rlimits, err = hardLimits(); err != nil {
		return nil, fmt.Errorf("read host: %w", err)
	}
	h.SELinux = selinux.GetEnabled()
	apparmor, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	h.AppArmor = err == nil && bytes.HasPrefix(apparmor, []byte("Y"))
	h.HugepageSizes = limitedHugepages(h.CgroupV2)
	h.Swap = swapLimited(h.CgroupV2)
	h.PrivilegedDevices, err = HostDevices()
	return h, err
}

func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

func readInt(p string) (int, error) {
	data, err := os.ReadFile(p)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("parse %s: %w", p, err)
	}
	return n, nil
}

// kernelCapabilities returns those that both the kernel and this version know.
func kernelCapabilities() ([]string, error) {
	last, err := readInt("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return nil, err
	}
	names := capabilityNames()
	return names[:min(max(last+1, 0), len(names))], nil
}

func rlimitTypes() map[string]int {
	return map[string]int{
		"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
		"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
		"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
		"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
		"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
		"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
	}
}

func hardLimits() (map[string]uint64, error) {
	out := make(map[string]uint64)
	for name, resource := range rlimitTypes() {
		var l unix.Rlimit
		if err := unix.Prlimit(0, resource, nil, &l); err != nil {
			return nil, fmt.Errorf("prlimit %s: %w", name, err)
		}
		out[name] = l.Max
	}
	return out, nil
}

// limitedHugepages returns the page sizes that a container's cgroup can limit.
// In a hybrid set-up the hugetlb controller may be on the v2 side, where
// containers have no limits: such sizes count as missing.
func limitedHugepages(v2 bool) []string {
	names, err := fs.Glob(os.DirFS("/sys/kernel/mm/hugepages"), "hugepages-*kB")
	if err != nil {
		return nil
	}
	controllers, err := os.ReadFile(cgroupRoot + "/cgroup.controllers")
	limited := exists(cgroupRoot + "/hugetlb/tasks") // a directory alone is no hierarchy
	if v2 {
		limited = err == nil && slices.Contains(strings.Fields(string(controllers)), "hugetlb")
	}
	var out []string
	for _, name := range names {
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(name, "hugepages-"), "kB"), 10, 64)
		if err == nil && limited {
			out = append(out, pageSize(kib))
		}
	}
	return out
}

// pageSize writes a size as the names of hugetlb's files do.
func pageSize(kib uint64) string {
	switch {
	case kib >= 1<<20:
		return strconv.FormatUint(kib>>20, 10) + "GB"
	case kib >= 1<<10:
		return strconv.FormatUint(kib>>10, 10) + "MB"
	}
	return strconv.FormatUint(kib, 10) + "KB"
}

// swapLimited tells whether the memory controller limits swap. The root of v2 has
// no such file, so there its own cgroup is asked; a kernel that refuses
// accounting at boot has it nowhere.
func swapLimited(v2 bool) bool {
	if !v2 {
		return exists(cgroupRoot + "/memory/memory.memsw.limit_in_bytes")
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return false
	}
	p, ok := strings.CutPrefix(strings.TrimSpace(string(own)), "0::")
	if !ok || p == "/" {
		return true
	}
	return exists(cgroupRoot+p+"/memory.swap.max") || !exists(cgroupRoot+p+"/memory.max")
}

// ClampOOMScoreAdj returns the value nearest to want that the daemon may set:
// without CAP_SYS_RESOURCE a score can be raised but not lowered.
func (h *Host) ClampOOMScoreAdj(want int) int {
	if h.SysResource {
		return want
	}
	return max(want, h.OOMScoreAdj)
}

// ClampRlimits returns limits with hard values cut to what the daemon may
// set. The argument is not changed.
func (h *Host) ClampRlimits(limits []specs.POSIXRlimit) []specs.POSIXRlimit {
	out := slices.Clone(limits)
	if h.SysResource {
		return out
	}
	for i := range out {
		if own, ok := h.Rlimits[out[i].Type]; ok {
			out[i].Hard = min(out[i].Hard, own)
			out[i].Soft = min(out[i].Soft, out[i].Hard)
		}
	}
	return out
}
