package main

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
	"time"
)

// BenchmarkAgainstPeer prints the whole table; CRITEST_BENCH holds flags of
// the command ("-n 10 -peer=false").
func BenchmarkAgainstPeer(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	o.register(flags)
	if err := flags.Parse(append([]string{"-binary", "../../bin/cri-runtime"}, strings.Fields(os.Getenv("CRITEST_BENCH"))...)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var out bytes.Buffer
		if err := run(b.Context(), &o, &out); err != nil {
			b.Fatalf("%v\n%s", err, out.String())
		}
		b.Log("\n" + out.String())
		if b.Elapsed() > time.Second {
			break // once is long enough
		}
	}
}

func TestQuantile(t *testing.T) {
	s := samples{5 * time.Millisecond, 1 * time.Millisecond, 3 * time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond}
	for q, want := range map[float64]float64{0: 1, 0.5: 3, 0.9: 5, 1: 5} {
		if got := s.quantile(q); got != want {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
	if got := (samples{}).quantile(0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	tab := table{}
	tab.durations("a", "<= 2", []samples{{time.Millisecond}, {4 * time.Millisecond}})
	tab.figure("b", "1/s", "", true, []float64{100, 10})
	tab.figure("c", "ms", "", false, []float64{1})
	if err := tab.print(&out, []string{"x", "y"}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"4.0", "10.0", "<= 2", "times better"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
