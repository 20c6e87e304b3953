package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/images"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

var (
	errNoSuite = errors.New("name a binary with -critest or -crictl")
	errFailed  = errors.New("specs failed")
	errDigest  = errors.New("does not contain the digest of its image; is it the conformance suite?")
)

// benchmarkParams let none of the suite's benchmarks be skipped.
const benchmarkParams = `containersNumber: 20
containersNumberParallel: 2
containerBenchmarkTimeoutSeconds: 120
podsNumber: 20
podsNumberParallel: 2
podBenchmarkTimeoutSeconds: 120
podContainerStartBenchmarkTimeoutSeconds: 120
imagesNumber: 5
imagesNumberParallel: 2
imageBenchmarkTimeoutSeconds: 120
imagePullingBenchmarkImage: registry.k8s.io/e2e-test-images/busybox:1.29-2
imageListingBenchmarkImages:
  - registry.k8s.io/e2e-test-images/busybox:1.29-2
`

type options struct {
	suite     string
	crictl    string
	binary    string
	plugins   string
	parallel  int
	repeat    int
	websocket bool
	benchmark bool
	peer      bool
	network   string
	args      []string
}

func main() {
	var o options
	flag.StringVar(&o.suite, "critest", "", "the suite's `file`")
	flag.StringVar(&o.crictl, "crictl", "", "crictl's `file`, to run a session with it, too")
	flag.StringVar(&o.binary, "runtime", "bin/cri-runtime", "the daemon's `file`")
	flag.StringVar(&o.plugins, "cni", "bin/cni", "`directory` of the CNI plugins")
	flag.IntVar(&o.parallel, "parallel", 1, "specs at once; more than one needs the command ginkgo in PATH")
	flag.IntVar(&o.repeat, "repeat", 1, "runs one after the other, on one daemon")
	flag.BoolVar(&o.websocket, "websocket", false, "stream over WebSocket instead of SPDY")
	flag.BoolVar(&o.benchmark, "benchmark", false, "run the suite's benchmarks instead of its specs")
	flag.BoolVar(&o.peer, "peer", false, "test Debian's containerd and runc")
	flag.StringVar(&o.network, "network", "cni", "`cni` (the bridge plugin) or builtin (no configuration at all)")
	flag.Parse()
	o.args = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, &o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "critest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options, out io.Writer) (err error) {
	if o.suite == "" && o.crictl == "" {
		return errNoSuite
	}
	for _, path := range []*string{&o.suite, &o.crictl, &o.binary, &o.plugins} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	registry, err := localregistry.Start(ctx, localregistry.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, registry.Close()) }()
	digest, err := fill(ctx, registry)
	if err != nil {
		return err
	}
	node, err := harness.New(ctx, harness.Options{
		Binary: o.binary, Peer: o.peer, Registry: registry.Address, CNI: o.network == "cni", CNIBin: o.plugins, Builtin: o.network == "builtin",
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w; the daemon's log ends:\n%s", err, node.LogTail())
		}
		err = errors.Join(err, node.Close(context.WithoutCancel(ctx)))
	}()
	for _, host := range images.UpstreamHosts() {
		if err := node.MirrorRegistry(host, registry.Address); err != nil {
			return err
		}
	}
	if o.crictl != "" {
		if err := operate(ctx, o.crictl, registry.Address+"/cri-runtime/busybox:latest", node, out); err != nil {
			return err
		}
	}
	if o.suite == "" {
		return nil
	}
	suite, err := translated(o.suite, digest, node.Dir)
	if err != nil {
		return err
	}
	before, err := watch(ctx, node)
	if err != nil {
		return err
	}
	for i := range o.repeat {
		t, runErr := once(ctx, o, node, suite, out)
		fmt.Fprintf(out, "critest run %d of %d: %d passed, %d failed, %d skipped\n", i+1, o.repeat, t.passed, t.failed, t.skipped)
		runErr = errors.Join(runErr, before.check(ctx, out))
		if err = errors.Join(err, runErr); t.failed > 0 {
			err = errors.Join(err, errFailed)
		}
	}
	return err
}

// fill stores the suite's images and returns the digest of the one that is
// asked for by digest.
func fill(ctx context.Context, registry *localregistry.Server) (digest string, err error) {
	all, err := images.Upstream(ctx)
	if err != nil {
		return "", err
	}
	catalog, err := images.Catalog(ctx) // the peer's pause image
	if err != nil {
		return "", err
	}
	for _, n := range append(all, catalog...) {
		if err := registry.Push(ctx, n); err != nil {
			return "", err
		}
		if n.Repository == images.UpstreamDigestRepository {
			digest = n.Artifact.Digest()
		}
	}
	return digest, nil
}

// translated copies the suite with the digest of our own image in it.
func translated(suite, digest, dir string) (string, error) {
	binary, err := os.ReadFile(suite)
	if err != nil {
		return "", fmt.Errorf("read the suite: %w", err)
	}
	_, ours, _ := strings.Cut(digest, ":")
	if !bytes.Contains(binary, []byte(images.UpstreamDigest)) || len(ours) != len(images.UpstreamDigest) {
		return "", fmt.Errorf("%s: %w", suite, errDigest)
	}
	path := filepath.Join(dir, "critest")
	binary = bytes.ReplaceAll(binary, []byte(images.UpstreamDigest), []byte(ours))
	if err := os.WriteFile(path, binary, 0o700); err != nil { //nolint:gosec // it is a program
		return "", fmt.Errorf("copy the suite: %w", err)
	}
	return path, nil
}

// once runs the suite and prints which specs failed and which were skipped.
func once(ctx context.Context, o *options, node *harness.Runtime, suite string, out io.Writer) (total, error) {
	report := filepath.Join(node.Dir, "report.json")
	args := []string{
		"-runtime-endpoint=unix://" + node.Socket, "-image-endpoint=unix://" + node.Socket,
		"-config=" + filepath.Join(node.Dir, "none.yaml"), "-ginkgo.json-report=" + report, "-ginkgo.no-color",
	}
	if o.parallel > 1 {
		args = append(args, fmt.Sprintf("-parallel=%d", o.parallel))
	}
	if o.websocket {
		args = append(args, "-websocket-exec", "-websocket-attach", "-websocket-portforward")
	}
	if o.benchmark {
		params := filepath.Join(node.Dir, "benchmark.yaml")
		if err := os.WriteFile(params, []byte(benchmarkParams), 0o600); err != nil {
			return total{}, err
		}
		args = append(args, "-benchmark", "-benchmarking-output-dir="+node.Dir, "-benchmarking-params-file="+params)
	}
	cmd := exec.CommandContext(ctx, suite, append(args, o.args...)...)
	cmd.Dir = node.Dir
	log, err := os.OpenFile(filepath.Join(node.Dir, "critest.log"), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return total{}, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	runErr := cmd.Run()
	t, err := readReport(report, out)
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		return t, fmt.Errorf("%w (the suite: %w)\n%s", err, runErr, text[max(0, len(text)-4000):])
	}
	return t, os.Remove(report)
}
