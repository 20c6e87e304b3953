package faults

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

// givesUp sends a request that takes longer than its client waits.
func givesUp(t *testing.T, what string, send func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	count("requests given up by their client", 1)
	if err := send(ctx); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("%s with a time-out that is too short: %v", what, err)
	}
}

// A plugin is slow and its clients give up again and again: each retry joins, and
// the plugin is called once for ADD and once for DEL.
func TestSlowPluginIsCalledOnce(t *testing.T) {
	p, writers := beginCNI(t)
	p.configure("[network]\nplugin_timeout = \"25s\"\n")
	config := p.podConfig()
	doors := map[string]string{}
	for _, verb := range []string{"ADD", "DEL"} {
		doors[verb] = filepath.Join(p.dir, "door-"+verb)
		p.misbehave("second", verb, config, fmt.Sprintf("until [ -e '%s' ]; do sleep 0.01; done", doors[verb]))
	}
	run := func(ctx context.Context) (string, error) {
		answer, err := p.raw.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		return answer.GetPodSandboxId(), err
	}
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil { //nolint:gosec // as the kubelet makes it
		t.Fatal(err)
	}
	for range 2 {
		givesUp(t, "run", func(ctx context.Context) error { _, err := run(ctx); return err })
	}
	joined := make(chan error, 1)
	go func() {
		_, err := run(t.Context())
		joined <- err
	}()
	if err := os.WriteFile(doors["ADD"], nil, 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := run(t.Context())
	if err := <-joined; err != nil {
		t.Errorf("who waited: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if calls := p.calls(config); calls != "first ADD, second ADD" {
		t.Errorf("calls: %s", calls)
	}
	for _, stop := range []func(ctx context.Context) error{
		func(ctx context.Context) error {
			_, err := p.raw.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
			return err
		},
		func(ctx context.Context) error {
			_, err := p.raw.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		},
	} {
		givesUp(t, "stop", stop)
	}
	patiently(t, "everything else", func(ctx context.Context) error { return p.unaffected(ctx, writers[0]) })
	if err := os.WriteFile(doors["DEL"], nil, 0o600); err != nil {
		t.Fatal(err)
	}
	patiently(t, "remove", func(ctx context.Context) error { return p.remove(ctx, &pod{id: id, config: config}) })
	if calls := p.calls(config); calls != "first ADD, second ADD, second DEL, first DEL" {
		t.Errorf("calls: %s", calls)
	}
	if err := p.check(t.Context(), writers...); err != nil {
		t.Error(err)
	}
}

// A registry is slow: who asks for the same image joins the pull under way, which
// goes on when the first client gives up; each blob is asked for once.
func TestSlowRegistryIsAskedOnce(t *testing.T) {
	n := begin(t)
	image := &runtimeapi.ImageSpec{Image: noise(t, "slow", 2<<20)}
	images := runtimeapi.NewImageServiceClient(n.Conn)
	pull := func(ctx context.Context) error {
		_, err := images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: image})
		return err
	}
	before := depot.Requests("GET /v2/cri-runtime/slow/blobs/")
	depot.Break("/slow/blobs/", localregistry.Slow)
	t.Cleanup(depot.Mend)
	first, leave := context.WithCancel(t.Context())
	defer leave()
	left, stayed := make(chan error, 1), make(chan error, 1)
	go func() { left <- pull(first) }()
	if err := harness.Until(t.Context(), patience, "the pull to ask for a blob", func() bool {
		return depot.Requests("GET /v2/cri-runtime/slow/blobs/") > before
	}); err != nil {
		t.Fatal(err)
	}
	go func() { stayed <- pull(t.Context()) }()
	for range 3 { // time enough for the one that stays to have joined
		givesUp(t, "pull", pull)
	}
	leave()
	if err := <-left; status.Code(err) != codes.Canceled {
		t.Errorf("who gave up: %v", err)
	}
	depot.Mend()
	if err := <-stayed; err != nil {
		t.Error(err)
	}
	// A configuration and two layers.
	if asked := depot.Requests("GET /v2/cri-runtime/slow/blobs/") - before; asked != 3 {
		t.Errorf("%d requests for 3 blobs", asked)
	}
	patiently(t, "remove", func(ctx context.Context) error { return n.Images.RemoveImage(ctx, image) })
	if err := n.check(t.Context()); err != nil || strings.Contains(n.LogTail(), "reserved") {
		t.Error(err)
	}
}
