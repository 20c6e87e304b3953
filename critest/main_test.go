package critest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

// node is what the tests run on; nil when they cannot run here.
var node *harness.Runtime

// depot holds the images; raw is a client without the kubelet's conveniences.
var (
	depot *localregistry.Server
	raw   runtimeapi.RuntimeServiceClient
	peer  = os.Getenv("CRITEST_PEER") == "containerd"
)

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) (code int) {
	if os.Geteuid() != 0 {
		return m.Run() // every test skips by name
	}
	ctx := context.Background()
	if err := errors.Join(harness.Quiet(), start(ctx)); err != nil {
		fmt.Fprintln(os.Stderr, "critest:", err)
		return 1
	}
	code = m.Run()
	keep := code != 0 && os.Getenv("CRITEST_KEEP_LOG") != ""
	if keep {
		log, err := os.ReadFile(filepath.Join(node.Dir, "daemon.log"))
		if err == nil {
			err = os.WriteFile(os.Getenv("CRITEST_KEEP_LOG"), log, 0o600)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "critest: keep the daemon's log:", err)
		}
	}
	if err := errors.Join(node.Close(ctx), depot.Close()); err != nil {
		fmt.Fprintln(os.Stderr, "critest: after all tests:", err)
		return 1
	}
	return code
}

func start(ctx context.Context) (err error) {
	if depot, err = localregistry.Start(ctx, localregistry.Options{}); err != nil {
		return err
	}
	if _, err = depot.Fill(ctx); err != nil {
		return err
	}
	o, err := options(ctx)
	if err != nil {
		return err
	}
	o.CNI = true
	if node, err = harness.New(ctx, o); err != nil {
		return err
	}
	raw = runtimeapi.NewRuntimeServiceClient(node.Conn)
	return warmUp(ctx)
}

// warmUp runs one pod, so that what the runtime makes once and keeps is there
// before the first test looks.
func warmUp(ctx context.Context) error {
	config := podConfig(podNetwork)
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	id, err := node.CRI.RunPodSandbox(ctx, config, "")
	if err != nil {
		return fmt.Errorf("warm up: %w\n%s", err, node.LogTail())
	}
	return errors.Join(node.CRI.StopPodSandbox(ctx, id), node.CRI.RemovePodSandbox(ctx, id), node.RemoveCgroup(ctx, config.Linux.CgroupParent))
}

// options finds the binary, or builds it.
func options(ctx context.Context) (harness.Options, error) {
	o := harness.Options{Peer: peer, Registry: depot.Address, Systemd: bySystemd()}
	if plugins, err := filepath.Abs("../bin/cni"); err == nil {
		if _, err := os.Stat(filepath.Join(plugins, "portmap")); err == nil {
			o.CNIBin = plugins
		}
	}
	if peer {
		return o, nil
	}
	o.Binary = os.Getenv("CRI_RUNTIME_BIN")
	if o.Binary != "" {
		return o, nil
	}
	binary, err := filepath.Abs("../bin/cri-runtime")
	if err != nil {
		return o, fmt.Errorf("find the binary: %w", err)
	}
	o.Binary = binary
	if _, err := os.Stat(binary); err == nil {
		return o, nil
	}
	if out, err := exec.CommandContext(ctx, "make", "-C", "..", "build").CombinedOutput(); err != nil {
		return o, fmt.Errorf("make build: %w\n%s", err, out)
	}
	return o, nil
}

// begin is the first line of every test: it asks for root and sees to it
// that the test leaves nothing behind.
func begin(t *testing.T) {
	t.Helper()
	if node == nil {
		t.Skip("needs root")
	}
	if node.Ended() { // an earlier test has failed to start it
		if err := node.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	before, err := node.Residue()
	if err != nil {
		t.Fatal(err)
	}
	files, err := node.Descriptors()
	if err != nil {
		t.Fatal(err)
	}
	pid := node.PID()
	t.Cleanup(func() {
		if err := node.Check(context.Background()); err != nil {
			t.Error(err)
		}
		var left []string
		err := harness.Until(context.Background(), patience, "the host to be as before", func() bool {
			now, err := node.Residue()
			left = now.Since(before)
			if err != nil {
				left = append(left, err.Error())
			}
			if n, err := node.Descriptors(); !peer && pid == node.PID() && (err != nil || n > files+4) {
				left = append(left, fmt.Sprintf("the daemon has %d descriptors, it had %d (%v)", n, files, err))
			}
			return len(left) == 0
		})
		if err != nil {
			t.Errorf("left behind: %q", left)
		}
	})
}

// differs skips a test in which the peer is known to do something else.
func differs(t *testing.T, how string) {
	t.Helper()
	if peer {
		t.Skip("containerd 1.6: " + how)
	}
}

// image is the name of a test image after it was pulled.
func image(t *testing.T, name string) string {
	t.Helper()
	ref := depot.Address + "/cri-runtime/" + name + ":latest"
	status, err := node.Images.ImageStatus(t.Context(), &runtimeapi.ImageSpec{Image: ref}, false)
	if err != nil {
		t.Fatal(err)
	}
	if status.Image == nil {
		if _, err := node.Images.PullImage(t.Context(), &runtimeapi.ImageSpec{Image: ref}, nil, nil); err != nil {
			t.Fatalf("pull %s: %v", ref, err)
		}
	}
	return ref
}
