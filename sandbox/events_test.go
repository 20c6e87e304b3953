package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// next returns the next event, as "kind id-of-what".
func (f *fixture) next(sub *Subscription) *Event {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	e, err := sub.Next(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	return e
}

func (f *fixture) subscribe() *Subscription {
	f.t.Helper()
	sub, err := f.store.Subscribe()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(sub.Close)
	return sub
}

func TestEvents(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	subs := []*Subscription{f.subscribe(), f.subscribe()}
	b := f.pod()
	quick := f.run(b, "quick", "true")
	f.await(quick)
	c := f.run(b, "c", "sh", "-c", forever)
	if _, own, _ := b.Pod(); len(own) != 2 || own[0].ID != c.id || own[1].ID != quick.id {
		t.Errorf("containers of the pod: %v, want the newest first", own)
	}
	if err := errors.Join(c.Stop(ctx, 20), c.Remove(ctx), b.Stop(ctx), b.Remove(ctx)); err != nil {
		t.Fatal(err)
	}
	want := []struct {
		id         string
		kind       runtimeapi.ContainerEventType
		pod        runtimeapi.PodSandboxState
		containers []runtimeapi.ContainerState
	}{
		{b.id, eventCreated, sandboxReady, nil},
		{b.id, eventStarted, sandboxReady, nil},
		{quick.id, eventCreated, sandboxReady, []runtimeapi.ContainerState{stateCreated}},
		{quick.id, eventStarted, sandboxReady, []runtimeapi.ContainerState{stateRunning}},
		{quick.id, eventStopped, sandboxReady, []runtimeapi.ContainerState{stateExited}},
		{c.id, eventCreated, sandboxReady, []runtimeapi.ContainerState{stateCreated, stateExited}},
		{c.id, eventStarted, sandboxReady, []runtimeapi.ContainerState{stateRunning, stateExited}},
		{c.id, eventStopped, sandboxReady, []runtimeapi.ContainerState{stateExited, stateExited}},
		{c.id, eventDeleted, sandboxReady, []runtimeapi.ContainerState{stateExited}},
		{b.id, eventStopped, sandboxNotReady, []runtimeapi.ContainerState{stateExited}},
		{quick.id, eventDeleted, sandboxNotReady, nil},
		{b.id, eventDeleted, sandboxNotReady, nil},
	}
	for k, sub := range subs {
		last := int64(0)
		for i, w := range want {
			e := f.next(sub)
			var states []runtimeapi.ContainerState
			for _, c := range e.Containers {
				states = append(states, c.State)
			}
			if e.ID != w.id || e.Kind != w.kind || e.Sandbox.State != w.pod || e.Sandbox.ID != b.id || !slices.Equal(states, w.containers) || e.At <= last {
				t.Errorf("subscriber %d, event %d: %s of %.8s, pod %s, containers %v, want %+v", k, i, e.Kind, e.ID, e.Sandbox.State, states, w)
			}
			last = e.At
		}
	}
}

// Exits without a daemon are told to the first subscriber after its start.
func TestEventsAfterRestart(t *testing.T) {
	f := setUp(t)
	b := f.pod()
	c := f.run(b, "c", "sh", "-c", "while ! test -e /tmp/go; do sleep 0.02; done; exit 5")
	stays := f.run(b, "stays", "sh", "-c", forever)
	f.exec(c, "sh", "-c", ": > /tmp/go")
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	for _, err := f.store.Subscribe(); !errors.Is(err, ErrClosed); {
		t.Fatal("subscribed to a closed store:", err)
	}
	deadline := time.After(20 * time.Second)
	for !exists(c.root("exit")) {
		select {
		case <-deadline:
			t.Fatal("no exit record")
		case <-time.After(10 * time.Millisecond):
		}
	}
	f.open()
	sub := f.subscribe()
	e := f.next(sub)
	if e.ID != c.id || e.Kind != eventStopped || len(e.Containers) != 2 || e.Sandbox.State != sandboxReady {
		t.Fatalf("%+v", e)
	}
	if st := e.Containers[1]; st.State != stateExited || st.ExitCode != 5 {
		t.Errorf("%+v", st)
	}
	if st := e.Containers[0]; st.ID != stays.id || st.State != stateRunning {
		t.Errorf("%+v", st)
	}
	again, err := f.store.Container(stays.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Stop(context.Background(), 20); err != nil {
		t.Fatal(err)
	}
	if e := f.next(sub); e.ID != stays.id || e.Kind != eventStopped {
		t.Errorf("%+v", e)
	}
}

// A subscriber that reads nothing has what fits and then an error; others see everything.
func TestSlowSubscriber(t *testing.T) {
	f := setUp(t)
	b := f.pod()
	slow, quick := f.subscribe(), f.subscribe()
	f.next(slow) // the first one also gets what was before it
	f.next(slow)
	for i := range 2 * maxQueued {
		f.store.emit(fmt.Sprint(i), b, nil, eventStarted)
		if e := f.next(quick); e.ID != fmt.Sprint(i) {
			t.Fatal(e)
		}
	}
	<-slow.Ended()
	queued := 0
	for {
		e, err := slow.Next(context.Background())
		if errors.Is(err, ErrOverrun) {
			break
		}
		if err != nil || e.ID != fmt.Sprint(queued) {
			t.Fatal(e, err)
		}
		queued++
	}
	if queued < maxQueued || queued > maxQueued+2 || !errors.Is(slow.Err(), ErrOverrun) {
		t.Errorf("%d queued, %v", queued, slow.Err())
	}
}

func TestTooManySubscribers(t *testing.T) {
	f := setUp(t)
	for range maxSubscribers {
		f.subscribe()
	}
	if _, err := f.store.Subscribe(); !errors.Is(err, ErrOverrun) {
		t.Error(err)
	}
}

// Whatever ends at once: each container has its four events, in their order.
func TestEventsInParallel(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	b := f.pod()
	sub := f.subscribe()
	const n = 12
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() {
			c, err := b.CreateContainer(ctx, containerConfig(fmt.Sprint("c", i), runtimeapi.NamespaceMode_CONTAINER, "true"), f.image)
			if err != nil {
				t.Error(err)
				return
			}
			if err := errors.Join(c.Start(ctx), c.Stop(ctx, 1), c.Remove(ctx)); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	kinds := map[string][]runtimeapi.ContainerEventType{}
	for range n*4 + 2 {
		e := f.next(sub)
		kinds[e.ID] = append(kinds[e.ID], e.Kind)
		in := slices.ContainsFunc(e.Containers, func(st *ContainerStatus) bool { return st.ID == e.ID })
		if in == (e.Kind == eventDeleted) && e.ID != b.id {
			t.Errorf("%s: container listed: %v", e.Kind, in)
		}
	}
	delete(kinds, b.id)
	for id, got := range kinds {
		if !slices.Equal(got, []runtimeapi.ContainerEventType{eventCreated, eventStarted, eventStopped, eventDeleted}) {
			t.Errorf("%.8s: %v", id, got)
		}
	}
	if len(kinds) != n {
		t.Errorf("events of %d containers", len(kinds))
	}
}
