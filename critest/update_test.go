package critest

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *container) update(r *runtimeapi.LinuxContainerResources) error {
	_, err := raw.UpdateContainerResources(c.t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: r})
	return err
}

func TestUpdateContainerResources(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("x=$(head -c 40000000 /dev/zero | tr '\\0' x); echo up; sleep 1000; echo $x",
		resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 512 << 20, CpuShares: 256}))
	c.prints("up\n")
	if err := c.update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 256 << 20, CpuQuota: 30000, CpuPeriod: 60000}); err != nil {
		t.Fatal(err)
	}
	want := func() {
		t.Helper()
		for _, test := range []struct{ v1, v2, want1, want2 string }{
			{"memory.limit_in_bytes", "memory.max", "268435456", "268435456"},
			{"cpu.cfs_quota_us", "cpu.max", "30000", "30000 60000"},
			{"cpu.shares", "cpu.weight", "256", "35"},
		} {
			if got := c.cgroupFile(test.v1, test.v2); got != test.want1 && got != test.want2 {
				t.Errorf("%s: %q, want %q", test.v1, got, test.want1)
			}
		}
		r := c.status().GetResources().GetLinux()
		if r.GetMemoryLimitInBytes() != 256<<20 || r.GetCpuShares() != 256 || r.GetCpuQuota() != 30000 {
			t.Errorf("resources in the status: %v", r)
		}
	}
	want()
	// The first limit of each would be taken, the second is refused.
	for name, bad := range map[string]*runtimeapi.LinuxContainerResources{
		"memory below what is in use": {CpuShares: 512, MemoryLimitInBytes: 4 << 20},
		"CPUs that are not there":     {CpuShares: 512, CpusetCpus: "4000"},
	} {
		if err := c.update(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
		want()
	}
	wantCode(t, c.update(&runtimeapi.LinuxContainerResources{CpuQuota: 5}), codes.InvalidArgument)
	wantCode(t, c.update(nil), codes.InvalidArgument)
	if state := c.status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after the updates: %v", state)
	}
	c.stop(0)
	wantCode(t, c.update(&runtimeapi.LinuxContainerResources{CpuShares: 2}), codes.FailedPrecondition)
	c.remove()
	wantCode(t, c.update(&runtimeapi.LinuxContainerResources{CpuShares: 2}), codes.NotFound)
}

func TestUpdatePodSandboxResources(t *testing.T) {
	begin(t)
	p := run(t)
	_, err := raw.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: p.id,
		Overhead:     &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20},
		Resources:    &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = raw.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: p.id, Resources: &runtimeapi.LinuxContainerResources{CpuPeriod: 7},
	})
	wantCode(t, err, codes.InvalidArgument)
	if err == nil || !strings.Contains(err.Error(), "resources.cpu_period") {
		t.Errorf("the error does not name the field: %v", err)
	}
	_, err = raw.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: "0123456789"})
	wantCode(t, err, codes.NotFound)
}
