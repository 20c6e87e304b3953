package sandbox

import (
	"context"
	"fmt"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkPodCycle makes and removes a pod with the host's network and one container.
func BenchmarkPodCycle(b *testing.B) {
	f, ctx := setUp(b), context.Background()
	n := 0
	for b.Loop() {
		n++
		box, err := f.store.Run(ctx, f.podConfig(fmt.Sprint("pod", n), runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER), "")
		if err != nil {
			b.Fatal(err)
		}
		c := f.run(box, "c", "sleep", "1000")
		if err := c.Remove(ctx); err != nil {
			b.Fatal(err)
		}
		if err := box.Remove(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExecSync(b *testing.B) {
	f, ctx := setUp(b), context.Background()
	c := f.run(f.pod(), "c", "sleep", "1000")
	for b.Loop() {
		if _, err := c.ExecSync(ctx, []string{"/bin/true"}, 0); err != nil {
			b.Fatal(err)
		}
	}
}
