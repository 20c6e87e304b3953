package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

const versionChanges = "changes of the daemon's version with containers running"

// earlierDaemon builds the daemon, with its monitor, of the parent commit, or
// of UPGRADE_FROM. It needs the history: without, the test is skipped.
func earlierDaemon(t *testing.T) string {
	t.Helper()
	from := os.Getenv("UPGRADE_FROM")
	if from == "" {
		from = "HEAD~1"
	}
	git := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), "git", append([]string{"-C", "../.."}, args...)...).Output()
		return strings.TrimSpace(string(out)), err
	}
	commit, err := git("rev-parse", "--verify", "--quiet", from+"^{commit}")
	if err != nil {
		t.Skipf("no commit %s (%v): a shallow clone needs `git fetch --deepen=1`, a copy without history UPGRADE_BIN", from, err)
	}
	out, err := filepath.Abs("../../out")
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(out, "cri-runtime-"+commit[:12])
	if _, err := os.Stat(binary); err == nil {
		return binary
	}
	source := t.TempDir()
	script := `set -eu
git -C ../.. archive "$1" | tar -x -C "$2"
cd "$2"
conmon/build
CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$3.$$" ./cmd/cri-runtime
mv "$3.$$" "$3"`
	if text, err := exec.CommandContext(t.Context(), "sh", "-c", script, "sh", commit, source, binary).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", commit, err, text)
	}
	return binary
}

// versions are the binaries that take turns, the one under test first.
func versions(t *testing.T) [2]string {
	t.Helper()
	if depot == nil {
		t.Skip("needs root")
	}
	if earlier := os.Getenv("UPGRADE_BIN"); earlier != "" {
		return [2]string{binary, earlier}
	}
	return [2]string{binary, earlierDaemon(t)}
}

// veteran is a pod of one version that the others work on.
type veteran struct {
	writer  *writer
	talks   *container // has a stdin and answers
	created *container // not started yet
	stopped *container // exits with 6 on SIGTERM
}

// TestUpgradeAndDowngrade lets two versions of the daemon take turns over the
// same containers: up, down and up again. Each works on what the others made.
func TestUpgradeAndDowngrade(t *testing.T) {
	both := versions(t)
	n := begin(t)
	ctx := t.Context()
	total := 10
	if long {
		total = 50
	}
	var writers []*writer
	var last *veteran
	for round, next := range []int{1, 0, 1, 0} {
		n.change(both[next], []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[round%2])
		if err := n.check(ctx, writers...); err != nil {
			t.Fatalf("round %d, version %d: %v", round, next, err)
		}
		for _, w := range writers {
			if err := n.exec(ctx, w.container, 1); err != nil {
				t.Errorf("round %d, version %d: %v", round, next, err)
			}
		}
		if last != nil {
			if err := n.inherit(ctx, last); err != nil {
				t.Errorf("round %d, version %d: %v", round, next, err)
			}
		}
		var err error
		if last, err = n.veteran(ctx); err != nil {
			t.Fatalf("round %d, version %d: %v", round, next, err)
		}
		more, err := n.writers(ctx, max(1, total/4-1))
		if err != nil {
			t.Fatalf("round %d, version %d: %v", round, next, err)
		}
		writers = append(append(writers, last.writer), more...)
	}
	if err := n.check(ctx, writers...); err != nil {
		t.Fatal(err)
	}
	// Half of them go by the one version, half by the other.
	for i, w := range writers {
		if i == len(writers)/2 {
			n.change(both[1], syscall.SIGKILL)
		}
		if err := n.remove(ctx, w.pod); err != nil {
			t.Error(err)
		}
	}
	n.change(both[0], syscall.SIGTERM)
	n.settled("all versions")
}

// change ends the daemon and starts another version of it.
func (n *node) change(binary string, sig syscall.Signal) {
	n.t.Helper()
	if err := n.Signal(sig, true); err != nil {
		n.t.Fatal(err)
	}
	n.Use(binary)
	n.again()
	count(versionChanges, 1)
}

// veteran makes a pod in which something of each kind waits for the next version.
func (n *node) veteran(ctx context.Context) (*veteran, error) {
	writers, err := n.writers(ctx, 1)
	if err != nil {
		return nil, err
	}
	v := &veteran{writer: writers[0]}
	config := containerConfig(v.writer.pod.config, `while read -r x; do echo "got $x"; done; echo over; exit 5`)
	config.Stdin, config.StdinOnce = true, false
	if v.talks, err = n.createConfig(ctx, v.writer.pod, config); err != nil {
		return nil, err
	}
	if err := n.CRI.StartContainer(ctx, v.talks.id); err != nil {
		return nil, err
	}
	if v.created, err = n.create(ctx, v.writer.pod, "exit 7"); err != nil {
		return nil, err
	}
	v.stopped, err = n.start(ctx, v.writer.pod, `trap "exit 6" TERM; echo up; while :; do usleep 20000; done`)
	return v, err
}

// inherit does to a pod of another version what the kubelet may ask for.
func (n *node) inherit(ctx context.Context, v *veteran) error {
	if err := n.talk(ctx, v.talks, "hello"); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if err := n.CRI.StartContainer(ctx, v.created.id); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := n.exits(ctx, v.created, 7); err != nil {
		return err
	}
	if err := n.CRI.StopContainer(ctx, v.stopped.id, 30); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if err := n.exits(ctx, v.stopped, 6); err != nil {
		return err
	}
	if err := n.CRI.UpdateContainerResources(ctx, v.writer.id, &runtimeapi.ContainerResources{
		Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512},
	}); err != nil {
		return fmt.Errorf("update: %w", err)
	}
	return nil
}

// exits waits for the end of a container.
func (n *node) exits(ctx context.Context, c *container, code int32) error {
	var st *runtimeapi.ContainerStatus
	var err error
	if waited := harness.Until(ctx, patience, "container "+c.id+" to exit", func() bool {
		st, err = n.status(ctx, c.id)
		return err != nil || st.State == runtimeapi.ContainerState_CONTAINER_EXITED
	}); waited != nil || err != nil {
		return errors.Join(waited, err)
	}
	if st.ExitCode != code || st.FinishedAt < st.StartedAt {
		return fmt.Errorf("%q has exited with %d (%s), not %d: %w", c.config.Command, st.ExitCode, st.Reason, code, errFault)
	}
	return nil
}

// talk attaches to a container, sends it a word and waits for its answer.
func (n *node) talk(ctx context.Context, c *container, word string) error {
	answer, err := n.raw.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: c.id, Stdin: true, Stdout: true})
	if err != nil {
		return err
	}
	address, err := url.Parse(answer.Url)
	if err != nil {
		return err
	}
	client, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, address)
	if err != nil {
		return err
	}
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	stdin, keyboard := io.Pipe()
	defer keyboard.Close()
	screen := &screen{}
	ended := make(chan error, 1)
	go func() {
		ended <- client.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: screen})
		_ = stdin.Close()
	}()
	if _, err := io.WriteString(keyboard, word+"\n"); err != nil {
		return errors.Join(err, <-ended)
	}
	err = harness.Until(ctx, patience, "the answer to "+word, func() bool { return strings.Contains(screen.String(), "got "+word+"\n") })
	leave()
	if end := <-ended; !errors.Is(end, context.Canceled) {
		err = errors.Join(err, end)
	}
	return err
}

// screen keeps what is written to it.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

// String is all of it.
func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}
