package main

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestHeapIsFreedWhenQuiet(t *testing.T) {
	t.Setenv("GOGC", "100") // the test's own stays
	synctest.Test(t, func(t *testing.T) {
		var freed atomic.Int32
		h := newHeap(func() { freed.Add(1) })
		defer h.close()
		after := func(d time.Duration, rpc string, want int) {
			t.Helper()
			time.Sleep(d) //nolint:forbidigo // synctest: no real time passes
			synctest.Wait()
			if got := int(freed.Load()); got != want {
				t.Fatalf("freed %d times, want %d", got, want)
			}
			h.observe(rpc)
		}
		after(quietTime, "ListContainers", 1)
		after(10*quietTime, "RunPodSandbox", 1)
		after(quietTime-1, "CreateContainer", 1)
		after(quietTime-1, "ExecSync", 1)
		after(1, "ExecSync", 2)
		after(10*quietTime, "", 2)
	})
}
