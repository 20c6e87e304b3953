package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pods that were given the same cgroup don't show each other's use.
func TestUsageOfSharedCgroup(t *testing.T) {
	parent := fmt.Sprintf("/cri-sandbox-shared-%d", os.Getpid())
	t.Cleanup(func() { // after the fixture's, which removes the pods
		dirs, err := filepath.Glob("/sys/fs/cgroup/*" + parent)
		for _, d := range dirs {
			if err := os.Remove(d); err != nil {
				t.Error(err)
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
	f := setUp(t)
	run := func(name, cgroup string) *Sandbox {
		config := f.podConfig(name, runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER)
		config.Linux.CgroupParent = cgroup
		b, err := f.store.Run(t.Context(), config, "")
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	one := run("one", parent)
	c := f.run(one, "c", "sleep", "1000")
	u, err := c.Usage(true)
	if err != nil {
		t.Fatal(err)
	}
	if whole, err := one.Usage(u); err != nil || one.shared.Load() || whole.CPU.Usage < u.CPU.Usage || whole.Processes != 1 {
		t.Errorf("alone: %+v, %v", whole, err)
	}
	two := run("two", parent)
	if empty, err := two.Usage(); err != nil || !empty.CPU.Known || empty.CPU.Usage != 0 || empty.Memory.Usage != 0 || empty.Processes != 0 {
		t.Errorf("without a container: %+v, %v", empty, err)
	}
	if own, err := one.Usage(u); err != nil || own.CPU.Usage != u.CPU.Usage || own.Memory.Usage != u.Memory.Usage || own.Processes != 1 {
		t.Errorf("its own: %+v, want that of %+v, %v", own, u, err)
	}
	for _, c := range []struct {
		outer, inner string
		want         bool
	}{{"/a", "/a", true}, {"/a", "/a/b", true}, {"/a", "/ab", false}, {"/a/b", "/a", false}} {
		if within(c.outer, c.inner) != c.want {
			t.Errorf("%v", c)
		}
	}
}
