package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// fakeContainer is what a CreateContainer made.
type fakeContainer struct {
	status  sandbox.ContainerStatus
	removed bool
}

func (c *fakeContainer) Status() *sandbox.ContainerStatus { return &c.status }

func (c *fakeContainer) Remove(ctx context.Context) error {
	c.removed = true
	return ctx.Err()
}

func holdServer(t *testing.T, images *memoryImages) *Server {
	t.Helper()
	s, err := New(testConfig(t, images))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (m *memoryImages) held() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var held []string
	for hold := range m.holds {
		held = append(held, hold[0]+" "+hold[1])
	}
	slices.Sort(held)
	return held
}

func TestCreateHolds(t *testing.T) {
	images := newMemoryImages(busybox())
	s := holdServer(t, images)
	var during []string
	id, err := s.createHeld(t.Context(), busybox(), func(image *imageservice.Image) (created, error) {
		during = images.held()
		return &fakeContainer{status: sandbox.ContainerStatus{ID: "c1", ImageID: image.ID}}, nil
	})
	if err != nil || id != "c1" {
		t.Fatalf("got %q, %v", id, err)
	}
	if want := []string{busyboxID + " create-1"}; !slices.Equal(during, want) {
		t.Errorf("while it is made: %v", during)
	}
	// The container isn't in the runtime: it was removed before it was held.
	if held := images.held(); len(held) != 0 {
		t.Errorf("held for a container that is gone: %v", held)
	}
	want := []string{"hold create-1", "hold c1", "release c1", "release create-1"}
	for i, event := range images.events {
		if got := strings.Replace(event, busyboxID+" ", "", 1); i >= len(want) || got != want[i] {
			t.Errorf("events %v", images.events)
			break
		}
	}
}

func TestCreateFails(t *testing.T) {
	images := newMemoryImages(busybox())
	s := holdServer(t, images)
	_, err := s.createHeld(t.Context(), busybox(), func(*imageservice.Image) (created, error) {
		return nil, sandbox.ErrState
	})
	if !errors.Is(err, sandbox.ErrState) || len(images.held()) != 0 {
		t.Errorf("got %v, held %v", err, images.held())
	}
}

func TestCreateImageIsGone(t *testing.T) {
	images := newMemoryImages()
	images.holdErr = func(string, string) error { return imageservice.ErrNotFound }
	s := holdServer(t, images)
	_, err := s.createHeld(t.Context(), busybox(), func(*imageservice.Image) (created, error) {
		t.Error("created without an image")
		return nil, nil
	})
	if !errors.Is(err, imageservice.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// A container whose image cannot be held is taken back, also when the client
// has gone meanwhile.
func TestCreateCannotHold(t *testing.T) {
	images := newMemoryImages(busybox())
	full := errors.New("disk full")
	images.holdErr = func(_, user string) error {
		if user == "c1" {
			return full
		}
		return nil
	}
	s := holdServer(t, images)
	c := &fakeContainer{status: sandbox.ContainerStatus{ID: "c1", ImageID: busyboxID}}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.createHeld(ctx, busybox(), func(*imageservice.Image) (created, error) {
		cancel()
		return c, nil
	})
	if !errors.Is(err, full) || errors.Is(err, context.Canceled) || !c.removed || len(images.held()) != 0 {
		t.Errorf("got %v, removed %v, held %v", err, c.removed, images.held())
	}
}

// Calls that join one operation have holds of their own.
func TestCreateJoined(t *testing.T) {
	images := newMemoryImages(busybox())
	s := holdServer(t, images)
	var wg sync.WaitGroup
	both := make(chan struct{}, 2)
	goOn := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			_, err := s.createHeld(t.Context(), busybox(), func(*imageservice.Image) (created, error) {
				both <- struct{}{}
				<-goOn
				return &fakeContainer{status: sandbox.ContainerStatus{ID: "c1", ImageID: busyboxID}}, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	within(t, "first call", both)
	within(t, "second call", both)
	if held := images.held(); len(held) != 2 {
		t.Errorf("held %v", held)
	}
	close(goOn)
	wg.Wait()
}

func TestHoldExisting(t *testing.T) {
	log := captureLog(t, "0")
	images := newMemoryImages(busybox())
	holdExisting(images, &sandbox.ContainerStatus{ID: "c1", ImageID: busyboxID})
	holdExisting(images, &sandbox.ContainerStatus{ID: "c2"})
	images.holdErr = func(string, string) error { return imageservice.ErrNotFound }
	holdExisting(images, &sandbox.ContainerStatus{ID: "c3", ImageID: "sha256:9"})
	if held := images.held(); !slices.Equal(held, []string{busyboxID + " c1"}) {
		t.Errorf("held %v", held)
	}
	if !strings.Contains(log.String(), `container="c3"`) {
		t.Errorf("the log lacks the container that has no image: %s", log)
	}
}
