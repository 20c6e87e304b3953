package oci

import "github.com/opencontainers/runtime-spec/specs-go"

func containerLimits() *specs.LinuxResources {
	shares, quota, period, limit := uint64(512), int64(50000), uint64(100000), int64(64<<20)
	return &specs.LinuxResources{
		Devices: defaultDeviceRules(),
		CPU:     &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period},
		Memory:  &specs.LinuxMemory{Limit: &limit, Swap: &limit},
	}
}
