package sandbox

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestNetworkIsCollected: at start, after what was half made is undone, and
// with the sandboxes of that moment, those being made too.
func TestNetworkIsCollected(t *testing.T) {
	f := setUp(t)
	const pod = runtimeapi.NamespaceMode_POD
	live, err := f.store.Run(t.Context(), f.podConfig("live", pod, pod), "")
	if err != nil {
		t.Fatal(err)
	}
	gone, err := f.store.Run(t.Context(), f.podConfig("gone", pod, pod), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	// As after a crash within Run: GC comes after the pod was undone.
	gone.record.Ready, gone.record.Attachment = false, nil
	if err := gone.writeRecord(false); err != nil {
		t.Fatal(err)
	}
	f.net.collected = make(chan []string, 1)
	f.open()
	if ids := <-f.net.collected; !slices.Equal(ids, []string{live.id}) {
		t.Errorf("GC keeps %v, want %s", ids, live.id)
	}
	if got := f.net.detached.Load(); got != 1 {
		t.Errorf("%d pods were detached before GC, want 1", got)
	}
	f.net.entered, f.net.hold = make(chan struct{}, 1), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := f.store.Run(context.Background(), f.podConfig("new", pod, pod), "")
		done <- err
	}()
	<-f.net.entered
	if ids, err := f.store.attachable(); err != nil || len(ids) != 2 || !slices.Contains(ids, live.id) {
		t.Errorf("while a pod is attached: %v, %v", ids, err)
	}
	close(f.net.hold)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCheckNetwork(t *testing.T) {
	f := setUp(t)
	box, err := f.store.Run(t.Context(), f.podConfig("a", runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD), "")
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(box.root(sandboxFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []error{nil, errors.New("no eth0")} {
		f.net.check = want
		if err := box.CheckNetwork(t.Context()); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	if err := box.verb.lock(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	if err := box.CheckNetwork(t.Context()); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "at work") {
		t.Errorf("beside another verb: %v", err)
	}
	box.verb.unlock()
	if after, err := os.ReadFile(box.root(sandboxFile)); err != nil || string(after) != string(before) {
		t.Errorf("the record was changed: %v", err)
	}
	if err := box.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := box.CheckNetwork(t.Context()); !errors.Is(err, ErrState) {
		t.Errorf("of a stopped pod: %v", err)
	}
}
