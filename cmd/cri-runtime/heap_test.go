package main

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestHeapIsFreedWhenQuiet(t *testing.T) {
	t.Setenv("GOGC", "100") // the test's own stays
	synctest.Test(t, func(t *testing.T) {
		freed := 0
		h := newHeap(func() { freed++ })
		defer h.close()
		after := func(d time.Duration, rpc string, want int) {
			t.Helper()
			time.Sleep(d) //nolint:forbidigo // synctest: no real time passes
			synctest.Wait()
			if freed != want {
				t.Fatalf("freed %d times, want %d", freed, want)
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
