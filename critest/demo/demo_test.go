package main

import (
	"os"
	"testing"
)

func TestParseStat(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text    string
		command string
		parent  int
		ok      bool
	}{
		{"12 (cri-monitor) S 1 12 12 0", "cri-monitor", 1, true},
		{"12 (a) b (c) S 34 1", "a) b (c", 34, true},
		{"12 (cut", "", 0, false},
		{"12 (cut) S", "", 0, false},
		{"12 (cut) S x", "cut", 0, false},
		{"", "", 0, false},
	} {
		command, parent, ok := parseStat(test.text)
		if ok != test.ok || ok && (command != test.command || parent != test.parent) {
			t.Errorf("%q: got %q, %d, %t", test.text, command, parent, ok)
		}
	}
}

func TestPSS(t *testing.T) {
	t.Parallel()
	if kib, err := pss(os.Getpid()); err != nil || kib <= 0 {
		t.Errorf("got %d KiB, %v", kib, err)
	}
	if _, err := pss(-1); err == nil {
		t.Error("a process that cannot be has a size")
	}
}
