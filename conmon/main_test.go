package conmon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// sanitizedVar names the monitor that was built with sanitizers.
const sanitizedVar = "CONMON_TEST_SANITIZED"

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "conmon")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "sanitized")
	if _, err := exec.LookPath("clang"); err == nil {
		if out, err := exec.Command("./build", "sanitize", binary).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "monitor with sanitizers: %v\n%s", err, out)
			return 1
		}
		os.Setenv(sanitizedVar, binary)
	}
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	reports, _ := filepath.Glob(binary + ".*")
	for _, r := range reports {
		text, _ := os.ReadFile(r)
		fmt.Fprintf(os.Stderr, "sanitizer report %s:\n%s\n", r, text)
		code = 1
	}
	return code
}

// each runs a test with the monitor that ships and with the sanitized one.
func each(t *testing.T, test func(t *testing.T, bin *Binary)) {
	t.Run("freestanding", func(t *testing.T) { test(t, testBinary(t)) })
	t.Run("sanitized", func(t *testing.T) {
		path := os.Getenv(sanitizedVar)
		if path == "" {
			t.Skip("needs clang for a monitor with sanitizers")
		}
		program, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bin, err := newBinary(program)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { bin.Close() })
		test(t, bin)
	})
}
