package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

// What all tests use; nil when they cannot run here.
var (
	depot  *localregistry.Server
	binary string // a daemon with fault points
	long   = os.Getenv("LONG") != ""
)

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) (code int) {
	if os.Geteuid() != 0 {
		return m.Run() // every test skips by name
	}
	ctx := context.Background()
	if err := errors.Join(harness.Quiet(), build(ctx), serveImages(ctx)); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		return 1
	}
	code = m.Run()
	figures.print(os.Stdout)
	if err := depot.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		return 1
	}
	return code
}

// build makes the daemon with fault points, unless FAULTS_BIN names one.
func build(ctx context.Context) (err error) {
	if binary = os.Getenv("FAULTS_BIN"); binary != "" {
		return nil
	}
	if binary, err = filepath.Abs("../../out/cri-runtime-faults"); err != nil {
		return fmt.Errorf("build the daemon: %w", err)
	}
	if _, err := os.Stat("../../bin/cni/bridge"); err != nil { // what is embedded and run by the daemon
		if out, err := exec.CommandContext(ctx, "make", "-C", "../..", "build").CombinedOutput(); err != nil {
			return fmt.Errorf("make build: %w\n%s", err, out)
		}
	}
	make := exec.CommandContext(ctx, "go", "build", "-tags", "faults", "-o", binary, "../../cmd/cri-runtime")
	make.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := make.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", make, err, out)
	}
	return nil
}

func serveImages(ctx context.Context) (err error) {
	if depot, err = localregistry.Start(ctx, localregistry.Options{}); err != nil {
		return err
	}
	_, err = depot.Fill(ctx)
	return err
}
