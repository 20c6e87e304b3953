package harness

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReports(t *testing.T) {
	dir := t.TempDir()
	r := &Runtime{Dir: dir}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("daemon.log", "I1122 ordinary words of a data race\n")
	t.Setenv("CRITEST_REPORTS", filepath.Join(dir, "report"))
	if err := errors.Join(r.reports()...); err != nil {
		t.Errorf("nothing was reported: %v", err)
	}
	write("daemon.log", "I1122 before\n==================\nWARNING: DATA RACE\nWrite at 0x1\n==================\nI1122 after\n")
	write("report.4711", "ERROR: AddressSanitizer: heap-use-after-free\n")
	err := errors.Join(r.reports()...)
	if !errors.Is(err, ErrReport) {
		t.Fatal(err)
	}
	for _, want := range []string{"Write at 0x1", "heap-use-after-free", "report.4711"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: no %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "after\n") {
		t.Errorf("%v: more than the report", err)
	}
}
