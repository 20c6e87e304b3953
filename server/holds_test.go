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

func made(imageID string) *fakeContainer {
	return &fakeContainer{status: sandbox.ContainerStatus{ID: "c1", SandboxID: "p1", ImageID: imageID}}
}

// held returns the users that hold busybox.
func (m *memoryImages) held() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var users []string
	for hold := range m.holds {
		users = append(users, hold[1])
	}
	slices.Sort(users)
	return strings.Join(users, " ")
}

// testHolds are holds over a runtime that has the ids.
func testHolds(images *memoryImages, ids ...string) *holds {
	h := newHolds(images, nil)
	h.exists = func(id string) bool { return slices.Contains(ids, id) }
	return h
}

func TestCreateHolds(t *testing.T) {
	images := newMemoryImages(busybox())
	h := testHolds(images, "p1", "c1")
	var during string
	id, err := h.create(t.Context(), "p1", []string{busyboxID}, func() (created, error) {
		during = images.held()
		return made(busyboxID), nil
	})
	if err != nil || id != "c1" {
		t.Fatalf("got %q, %v", id, err)
	}
	if during != "create-1" {
		t.Errorf("while it is made: %q", during)
	}
	if held := images.held(); held != "c1" {
		t.Errorf("afterwards: %q", held)
	}
	// At no moment is there no hold.
	want := []string{"hold create-1", "hold c1", "release create-1"}
	for i, event := range images.events {
		if i >= len(want) || strings.Replace(event, busyboxID+" ", "", 1) != want[i] {
			t.Fatalf("events %v", images.events)
		}
	}
}

// A container that is removed before its creator has held its image.
func TestCreateRemovedMeanwhile(t *testing.T) {
	images := newMemoryImages(busybox())
	h := testHolds(images, "p1")
	if _, err := h.create(t.Context(), "p1", []string{busyboxID}, func() (created, error) { return made(busyboxID), nil }); err != nil {
		t.Fatal(err)
	}
	if held := images.held(); held != "" {
		t.Errorf("held: %q", held)
	}
}

func TestCreateFails(t *testing.T) {
	images := newMemoryImages(busybox())
	h := testHolds(images, "p1")
	_, err := h.create(t.Context(), "p1", []string{busyboxID}, func() (created, error) { return nil, sandbox.ErrState })
	if !errors.Is(err, sandbox.ErrState) || images.held() != "" {
		t.Errorf("got %v, held %q", err, images.held())
	}
}

// The client gives up, the making goes on: the image stays until the pod goes.
func TestCreateGoesOn(t *testing.T) {
	images := newMemoryImages(busybox())
	ids := []string{"p1"}
	h := testHolds(images)
	h.exists = func(id string) bool { return slices.Contains(ids, id) }
	giveUp := func() {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := h.create(ctx, "p1", []string{busyboxID}, func() (created, error) {
			cancel()
			return nil, ctx.Err()
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	giveUp()
	giveUp()
	if held := images.held(); held != "p1" {
		t.Errorf("given up: held by %q", held)
	}
	h.releasePod("p1")
	if held := images.held(); held != "p1" {
		t.Errorf("while the pod is there: held by %q", held)
	}
	ids = nil
	h.releasePod("p1")
	if held := images.held(); held != "" {
		t.Errorf("without the pod: held by %q", held)
	}
	giveUp()
	if held := images.held(); held != "" || len(h.unfinished) != 0 {
		t.Errorf("given up after the pod was removed: held by %q", held)
	}
}

func TestCreateImageIsGone(t *testing.T) {
	images := newMemoryImages()
	images.holdErr = func(string, string) error { return imageservice.ErrNotFound }
	_, err := testHolds(images).create(t.Context(), "p1", []string{busyboxID}, func() (created, error) {
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
	c := made(busyboxID)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := testHolds(images, "p1", "c1").create(ctx, "p1", []string{busyboxID}, func() (created, error) {
		cancel()
		return c, nil
	})
	if !errors.Is(err, full) || errors.Is(err, context.Canceled) || !c.removed || images.held() != "" {
		t.Errorf("got %v, removed %v, held %q", err, c.removed, images.held())
	}
}

// Calls that join one operation have holds of their own.
func TestCreateJoined(t *testing.T) {
	images := newMemoryImages(busybox())
	h := testHolds(images, "p1", "c1")
	var wg sync.WaitGroup
	both, goOn := make(chan struct{}, 2), make(chan struct{})
	for range 2 {
		wg.Go(func() {
			_, err := h.create(t.Context(), "p1", []string{busyboxID}, func() (created, error) {
				both <- struct{}{}
				<-goOn
				return made(busyboxID), nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	within(t, "first call", both)
	within(t, "second call", both)
	if held := images.held(); held != "create-1 create-2" {
		t.Errorf("held by %q", held)
	}
	close(goOn)
	wg.Wait()
	if held := images.held(); held != "c1" {
		t.Errorf("afterwards held by %q", held)
	}
}

func TestHoldExisting(t *testing.T) {
	log := captureLog(t, "0")
	images := newMemoryImages(busybox())
	holdExisting(images, &sandbox.ContainerStatus{ID: "c1", ImageID: busyboxID})
	holdExisting(images, &sandbox.ContainerStatus{ID: "c2"})
	images.holdErr = func(string, string) error { return imageservice.ErrNotFound }
	holdExisting(images, &sandbox.ContainerStatus{ID: "c3", ImageID: "sha256:9"})
	if held := images.held(); held != "c1" {
		t.Errorf("held by %q", held)
	}
	if !strings.Contains(log.String(), `container="c3"`) {
		t.Errorf("the log lacks the container that has no image: %s", log)
	}
}
