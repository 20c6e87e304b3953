package faults

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sender sends one request, in its own way, until it has succeeded.
type sender func(n *node, verb string, send func(ctx context.Context) (string, error)) (string, error)

// twice sends the request twice at once: both succeed, with one answer.
func twice(_ *node, _ string, send func(ctx context.Context) (string, error)) (string, error) {
	type answer struct {
		id  string
		err error
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answers := make(chan answer, 2)
	for range 2 {
		go func() {
			id, err := send(ctx)
			answers <- answer{id, err}
		}()
	}
	a, b := <-answers, <-answers
	err := errors.Join(a.err, b.err)
	if err == nil && a.id != b.id {
		err = fmt.Errorf("two requests at once were answered %q and %q: %w", a.id, b.id, errFault)
	}
	return a.id, err
}

// impatient gives up after limit and sends the request again.
func impatient(limit time.Duration) sender {
	return func(_ *node, _ string, send func(ctx context.Context) (string, error)) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		id, err := send(ctx)
		if err == nil {
			return id, nil
		}
		count("requests given up by their client", 1)
		if code := status.Code(err); code != codes.DeadlineExceeded && code != codes.Canceled {
			return "", err
		}
		again, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return send(again)
	}
}

// interrupted kills the daemon while it works and sends the request again.
func interrupted(after time.Duration) sender {
	return func(n *node, verb string, send func(ctx context.Context) (string, error)) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		first := make(chan error, 1)
		go func() {
			_, err := send(ctx)
			first <- err
		}()
		timer := time.NewTimer(after)
		<-timer.C
		n.restart()
		if err := <-first; err == nil && verb == "StartContainer" {
			return "", nil // it was answered: asked again, it would say that the container runs
		}
		return send(ctx)
	}
}

// TestRequestsRepeated lives the life of a pod with each request sent in one way.
func TestRequestsRepeated(t *testing.T) {
	n := begin(t)
	ways := map[string]sender{"twice at once": twice}
	for _, ms := range []int{1, 3, 10, 20} {
		ways[fmt.Sprintf("given up after %d ms", ms)] = impatient(time.Duration(ms) * time.Millisecond)
	}
	for _, ms := range []int{2, 6} {
		ways[fmt.Sprintf("daemon killed after %d ms", ms)] = interrupted(time.Duration(ms) * time.Millisecond)
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			n.repeatedLife(t, way)
			if err := n.check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func (n *node) repeatedLife(t *testing.T, way sender) {
	t.Helper()
	bg := context.Background()
	do := func(verb string, send func(ctx context.Context) (string, error)) string {
		t.Helper()
		count("requests repeated", 1)
		id, err := way(n, verb, send)
		if err != nil {
			t.Fatalf("%s: %v", verb, err)
		}
		if strings.Contains(n.LogTail(), "reserved") {
			t.Errorf("%s: the log speaks of a reserved name", verb)
		}
		return id
	}
	none := func(err error) (string, error) { return "", err }
	config := n.podConfig()
	p := &pod{config: config}
	p.id = do("RunPodSandbox", func(ctx context.Context) (string, error) {
		q, err := n.runConfig(ctx, config)
		if err != nil {
			return "", err
		}
		return q.id, nil
	})
	cc := containerConfig(config, `trap "" TERM; while :; do sleep 1; done`)
	id := do("CreateContainer", func(ctx context.Context) (string, error) {
		answer, err := n.raw.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cc, SandboxConfig: config})
		return answer.GetContainerId(), err
	})
	do("StartContainer", func(ctx context.Context) (string, error) {
		_, err := n.raw.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		if st, stErr := n.status(bg, id); status.Code(err) == codes.FailedPrecondition && stErr == nil && st.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			err = nil // a daemon that was killed meanwhile had started it
		}
		return none(err)
	})
	if st, err := n.status(bg, id); err != nil || st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("started: %v %v", st, err)
	}
	for _, r := range []struct {
		verb string
		send func(ctx context.Context) error
	}{
		{"UpdateContainerResources", func(ctx context.Context) error {
			_, err := n.raw.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 200}})
			return err
		}},
		{"UpdatePodSandboxResources", func(ctx context.Context) error {
			_, err := n.raw.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
				PodSandboxId: p.id, Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20},
			})
			return err
		}},
		{"UpdateRuntimeConfig", func(ctx context.Context) error {
			_, err := n.raw.UpdateRuntimeConfig(ctx, &runtimeapi.UpdateRuntimeConfigRequest{
				RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: n.Subnet() + ".0/24"}},
			})
			return err
		}},
		{"ExecSync", func(ctx context.Context) error {
			r, err := n.raw.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo", "here"}})
			if err == nil && string(r.Stdout) != "here\n" {
				err = fmt.Errorf("output %q: %w", r.Stdout, errFault)
			}
			return err
		}},
		{"ReopenContainerLog", func(ctx context.Context) error {
			_, err := n.raw.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
			return err
		}},
		{"StopContainer", func(ctx context.Context) error {
			_, err := n.raw.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1})
			return err
		}},
		{"RemoveContainer", func(ctx context.Context) error {
			_, err := n.raw.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
			return err
		}},
		{"StopPodSandbox", func(ctx context.Context) error {
			_, err := n.raw.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
			return err
		}},
		{"RemovePodSandbox", func(ctx context.Context) error {
			_, err := n.raw.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
			return err
		}},
	} {
		do(r.verb, func(ctx context.Context) (string, error) { return none(r.send(ctx)) })
	}
	for _, verb := range []string{"RemoveImage", "PullImage"} {
		do(verb, func(ctx context.Context) (string, error) {
			images := runtimeapi.NewImageServiceClient(n.Conn)
			if verb == "RemoveImage" {
				_, err := images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox()}})
				return none(err)
			}
			answer, err := images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox()}})
			return answer.GetImageRef(), err
		})
	}
	if pods, err := n.CRI.ListPodSandbox(bg, nil); err != nil || len(pods) > 0 {
		t.Errorf("pods are left: %v %v", pods, err)
	}
	if err := n.removeCgroup(bg, config); err != nil {
		t.Error(err)
	}
}
