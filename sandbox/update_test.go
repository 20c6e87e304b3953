package sandbox

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/oci"
)

func TestUpdate(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	b := f.pod()
	c := f.run(b, "c", "sleep", "1000")
	limits := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 333, OomScoreAdj: 700}
	if err := c.Update(ctx, limits); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []*runtimeapi.LinuxContainerResources{
		{CpuShares: 444, CpusetCpus: "4095"}, {MemoryLimitInBytes: 128 << 20, CpuPeriod: 1}, {CpuShares: -1},
	} {
		if err := c.Update(ctx, bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
	if err := c.Update(ctx, &runtimeapi.LinuxContainerResources{CpuPeriod: 1}); !errors.Is(err, oci.ErrInvalid) || !strings.Contains(err.Error(), "linux.cpu_period") {
		t.Errorf("the error does not name the field: %v", err)
	}
	check := func(c *Container) {
		t.Helper()
		r := c.Status().Resources.GetLinux()
		if r.GetMemoryLimitInBytes() != 64<<20 || r.GetCpuShares() != 333 || r.GetOomScoreAdj() != 700 || r.GetCpusetCpus() != "" {
			t.Errorf("resources in the status: %v", r)
		}
		for _, pid := range []string{"1", "self"} {
			if got := f.exec(c, "cat", "/proc/"+pid+"/oom_score_adj"); got != "700" {
				t.Errorf("oom_score_adj of process %s: %s", pid, got)
			}
		}
	}
	check(c)
	f.restart()
	again, err := f.store.Container(c.id)
	if err != nil {
		t.Fatal(err)
	}
	check(again)
	if err := os.WriteFile(again.root(resourcesFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.restart() // a record that is damaged costs the update, not the container
	if again, err = f.store.Container(c.id); err != nil {
		t.Fatal(err)
	}
	if st := again.Status(); st.State != stateRunning {
		t.Errorf("with a damaged record: %+v", st)
	}
	if err := again.Stop(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := again.Update(ctx, limits); !errors.Is(err, ErrState) {
		t.Errorf("update of what has exited: %v", err)
	}
}
