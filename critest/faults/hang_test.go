package faults

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// bounded wants an error in bounded time that says what is in the way.
func bounded(t *testing.T, what string, words []string, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	err := f(ctx)
	switch {
	case err == nil:
		t.Errorf("%s: succeeded", what)
	case ctx.Err() != nil:
		t.Errorf("%s: not answered within %s: %v", what, deadline, err)
	}
	for _, w := range words {
		if err != nil && !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v does not say %q", what, err, w)
		}
	}
}

// A workload waits for a file system that does not answer and cannot be
// killed: requests about it fail soon and say so, nothing else suffers, and
// once the file system answers all is well.
func TestWorkloadCannotDie(t *testing.T) {
	n := begin(t)
	writers, err := n.writers(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	fs := mountFuse(t)
	t.Cleanup(fs.release) // before the pods are removed
	var stuck []*container
	for range 3 {
		p, err := n.run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		config := containerConfig(p.config, "echo up; while :; do cat /hangs/file >/dev/null; done")
		config.Mounts = []*runtimeapi.Mount{{HostPath: fs.Dir, ContainerPath: "/hangs"}}
		c, err := n.createConfig(t.Context(), p, config)
		if err == nil {
			err = errors.Join(n.CRI.StartContainer(t.Context(), c.id), n.prints(t.Context(), c, "up"))
		}
		if err != nil {
			t.Fatal(err)
		}
		stuck = append(stuck, c)
	}
	fs.hang()
	if err := harness.Until(t.Context(), patience, "all to wait for the file system", func() bool { return fs.waiting() >= len(stuck) }); err != nil {
		t.Fatal(err)
	}
	words := []string{"not die", "waits in"}
	done := make(chan struct{}, len(stuck))
	go func() {
		defer func() { done <- struct{}{} }()
		bounded(t, "stop the container", words, func(ctx context.Context) error { return n.CRI.StopContainer(ctx, stuck[0].id, 1) })
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		bounded(t, "remove the container", words, func(ctx context.Context) error { return n.CRI.RemoveContainer(ctx, stuck[1].id) })
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		bounded(t, "stop the pod", words, func(ctx context.Context) error { return n.CRI.StopPodSandbox(ctx, stuck[2].pod.id) })
	}()
	patiently(t, "everything else", func(ctx context.Context) error { return n.unaffected(ctx, writers[0]) })
	for range stuck {
		<-done
	}
	n.restart()
	patiently(t, "everything else after a restart", func(ctx context.Context) error { return n.unaffected(ctx, writers[1]) })
	fs.release()
	patiently(t, "retries", func(ctx context.Context) error {
		return errors.Join(n.CRI.StopContainer(ctx, stuck[0].id, 1), n.CRI.RemoveContainer(ctx, stuck[1].id), n.CRI.StopPodSandbox(ctx, stuck[2].pod.id),
			n.remove(ctx, stuck[0].pod), n.remove(ctx, stuck[1].pod), n.remove(ctx, stuck[2].pod))
	})
	if err := n.check(t.Context(), writers...); err != nil {
		t.Error(err)
	}
}

// The daemon itself waits for such a file system: it costs one pod.
func TestMountSourceHangs(t *testing.T) {
	n := begin(t)
	writers, err := n.writers(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	fs := mountFuse(t)
	t.Cleanup(fs.release)
	fs.hang()
	p, err := n.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	config := containerConfig(p.config, "exit 0")
	config.Mounts = []*runtimeapi.Mount{{HostPath: filepath.Join(fs.Dir, "file"), ContainerPath: "/hangs"}}
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = n.raw.CreateContainer(short, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("create with a mount that hangs: %v", err)
	}
	patiently(t, "everything else", func(ctx context.Context) error { return n.unaffected(ctx, writers[0]) })
	fs.release()
	patiently(t, "the retry joins", func(ctx context.Context) error {
		c, err := n.createConfig(ctx, p, config)
		if err != nil {
			return err
		}
		return n.CRI.StartContainer(ctx, c.id)
	})
	patiently(t, "remove", func(ctx context.Context) error { return n.remove(ctx, p) })
	if err := n.check(t.Context(), writers...); err != nil {
		t.Error(err)
	}
}
