package main

import (
	"os"
	"testing"
)

func TestPSS(t *testing.T) {
	t.Parallel()
	if kib, err := pss(os.Getpid()); err != nil || kib <= 0 {
		t.Errorf("got %d KiB, %v", kib, err)
	}
	if _, err := pss(-1); err == nil {
		t.Error("a process that cannot be has a size")
	}
}
