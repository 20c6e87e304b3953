package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

var errLeak = errors.New("left behind")

// spare is how many more descriptors than before the first run are no leak:
// the suite's own connection may still be closing.
const spare = 4

// leaks compares a daemon and its host with what they were before the first
// run.
type leaks struct {
	node        *harness.Runtime
	residue     harness.Residue
	descriptors int
}

// watch remembers how things are once a pod has run: what the daemon makes
// once and keeps is no leak.
func watch(ctx context.Context, node *harness.Runtime) (*leaks, error) {
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "first", Namespace: "default", Uid: "first"}, Linux: &runtimeapi.LinuxPodSandboxConfig{},
	}
	id, err := node.CRI.RunPodSandbox(ctx, config, "")
	if err == nil {
		err = errors.Join(node.CRI.StopPodSandbox(ctx, id), node.CRI.RemovePodSandbox(ctx, id))
	}
	if err != nil {
		return nil, fmt.Errorf("run a first pod: %w", err)
	}
	l := &leaks{node: node}
	if l.residue, err = node.Residue(); err != nil {
		return nil, err
	}
	l.descriptors, err = node.Descriptors()
	return l, err
}

// check waits for the daemon to become what it was, and prints what it uses.
func (l *leaks) check(ctx context.Context, out io.Writer) error {
	var left []string
	var failed error
	now := 0
	err := harness.Until(ctx, time.Minute, "the host to be as before", func() bool {
		var residue harness.Residue
		residue, failed = l.node.Residue()
		if failed == nil {
			now, failed = l.node.Descriptors()
		}
		if left = residue.Since(l.residue); now > l.descriptors+spare {
			left = append(left, fmt.Sprintf("%d descriptors of the daemon", now-l.descriptors))
		}
		return failed == nil && len(left) == 0
	})
	use, useErr := usage(ctx, l.node)
	fmt.Fprintf(out, "left behind: %d things; daemon: %d descriptors (%d before the first run), %s\n", len(left), now, l.descriptors, use)
	if err != nil {
		err = fmt.Errorf("%w: %q: %w: %w", err, left, errLeak, failed)
	}
	return errors.Join(err, useErr)
}

// usage is what the daemon has of goroutines, threads and memory.
func usage(ctx context.Context, node *harness.Runtime) (string, error) {
	if node.Name != "cri-runtime" {
		return "no metrics", nil
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(node.Dir, "state", "control.sock"))
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://control/metrics", nil)
	if err != nil {
		return "", fmt.Errorf("ask for metrics: %w", err)
	}
	answer, err := client.Do(request)
	if err != nil {
		return "", fmt.Errorf("ask for metrics: %w", err)
	}
	defer answer.Body.Close()
	metrics, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", fmt.Errorf("read the metrics: %w", err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", node.PID()))
	if err != nil {
		return "", fmt.Errorf("read the daemon's status: %w", err)
	}
	return strings.Join([]string{
		number(metrics, `(?m)^go_goroutines (\S+)$`) + " goroutines", number(status, `(?m)^Threads:\s+(\S+)$`) + " threads",
		number(status, `(?m)^VmRSS:\s+(\S+) kB$`) + " KiB resident",
	}, ", "), nil
}

func number(text []byte, pattern string) string {
	if found := regexp.MustCompile(pattern).FindSubmatch(text); found != nil {
		return string(found[1])
	}
	return "?"
}
