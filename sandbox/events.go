package sandbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

const (
	maxSubscribers = 32
	maxQueued      = 1024            // events that wait for one subscriber
	maxEarly       = 4096            // events that wait for the first one
	earlyFor       = 5 * time.Minute // and how long after the start they do
)

// Event is a change of a sandbox or of a container, with what its pod is like
// right after it. It is never changed, nor may its readers change it.
type Event struct {
	ID         string // of the container, or of the sandbox
	Kind       runtimeapi.ContainerEventType
	At         int64 // ns since the epoch; each event has a later one than the event before
	Sandbox    *SandboxStatus
	Containers []*ContainerStatus // of the sandbox, the newest first
}

const (
	eventCreated = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	eventStarted = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	eventStopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	eventDeleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
)

// events hands out events to the subscribers, in one order to all.
//
// An exit that happened while no daemon ran is an event of the recovery, when
// nobody can have subscribed: such early ones are kept for the first subscriber.
type events struct {
	mu          sync.Mutex // taken after a Container's, before the Store's
	last        int64
	subscribers map[*Subscription]bool
	early       []earlyEvent
	earlyEnd    *time.Timer // nil: early ones are not kept any more
}

// earlyEvent gets its pod's state when it is told: at the recovery that is
// not complete, and a pod that seems to lack a container would get another one.
type earlyEvent struct {
	id   string
	kind runtimeapi.ContainerEventType
	box  *Sandbox
}

// open begins to keep early events.
func (e *events) open() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.subscribers = map[*Subscription]bool{}
	e.earlyEnd = time.AfterFunc(earlyFor, e.dropEarly)
}

func (e *events) dropEarly() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.earlyEnd, e.early = nil, nil
}

// close ends all subscriptions.
func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.earlyEnd != nil {
		e.earlyEnd.Stop()
	}
	e.earlyEnd, e.early = nil, nil
	for sub := range e.subscribers {
		sub.end(ErrClosed)
	}
	e.subscribers = nil
}

// emit publishes a change and tells all subscribers of it, in one: nobody can
// act on the change and be told of that first. publish may be nil.
func (s *Store) emit(id string, b *Sandbox, publish func(), kinds ...runtimeapi.ContainerEventType) {
	e := &s.events
	e.mu.Lock()
	defer e.mu.Unlock()
	if publish != nil {
		publish()
	}
	for _, kind := range kinds {
		if len(e.subscribers) == 0 {
			if e.earlyEnd != nil && len(e.early) < maxEarly {
				e.early = append(e.early, earlyEvent{id, kind, b})
			}
			continue
		}
		event := s.event(kind, id, b)
		for sub := range e.subscribers {
			sub.put(event)
		}
	}
}

// event makes an event of now, with events.mu held.
func (s *Store) event(kind runtimeapi.ContainerEventType, id string, b *Sandbox) *Event {
	e := &s.events
	e.last = now(e.last)
	event := &Event{ID: id, Kind: kind, At: e.last, Sandbox: b.Status()}
	for _, c := range b.Containers() {
		event.Containers = append(event.Containers, c.Status())
	}
	return event
}

// Pod returns the state of the sandbox and of its containers, and a time at or
// before which it was so: events with a later one may be news.
func (b *Sandbox) Pod() (*SandboxStatus, []*ContainerStatus, int64) {
	e := &b.store.events
	e.mu.Lock()
	e.last = now(e.last)
	at := e.last
	e.mu.Unlock()
	var containers []*ContainerStatus
	for _, c := range b.Containers() {
		containers = append(containers, c.Status())
	}
	return b.Status(), containers, at
}

// Subscription is a reader of events. All that happens after Subscribe has
// returned comes out of Next, in order and once, or Next says that it was too much.
type Subscription struct {
	store *Store
	ready chan struct{} // has a value when there may be something new
	ended chan struct{} // closed with err set

	// The events' mu guards what follows.
	queue []*Event
	limit int // of queue
	err   error
}

// Subscribe begins a subscription. Its owner closes it.
func (s *Store) Subscribe() (*Subscription, error) {
	e := &s.events
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.subscribers == nil:
		return nil, fmt.Errorf("subscribe to events: %w", ErrClosed)
	case len(e.subscribers) >= maxSubscribers:
		return nil, fmt.Errorf("subscribe to events: there are %d subscribers already: %w", maxSubscribers, ErrOverrun)
	}
	sub := &Subscription{store: s, ready: make(chan struct{}, 1), ended: make(chan struct{}), limit: maxQueued + len(e.early)}
	e.subscribers[sub] = true
	if e.earlyEnd != nil {
		e.earlyEnd.Stop()
		if len(e.early) == maxEarly {
			klog.InfoS("Some of the first events since the start are not told", "kept", maxEarly)
		}
		for _, early := range e.early {
			sub.queue = append(sub.queue, s.event(early.kind, early.id, early.box))
		}
		e.earlyEnd, e.early = nil, nil
		sub.wake()
	}
	return sub, nil
}

// put appends an event, or ends a subscription whose reader is too slow.
func (sub *Subscription) put(event *Event) {
	if len(sub.queue) >= sub.limit {
		sub.end(fmt.Errorf("the subscriber is %d events behind, subscribe again and list: %w", len(sub.queue), ErrOverrun))
		delete(sub.store.events.subscribers, sub)
		return
	}
	sub.queue = append(sub.queue, event)
	sub.wake()
}

func (sub *Subscription) wake() {
	select {
	case sub.ready <- struct{}{}:
	default:
	}
}

func (sub *Subscription) end(err error) {
	if sub.err == nil {
		sub.err = err
		close(sub.ended)
	}
}

// Next waits for the next event. After an overrun it first returns what is queued.
func (sub *Subscription) Next(ctx context.Context) (*Event, error) {
	e := &sub.store.events
	for {
		e.mu.Lock()
		if len(sub.queue) > 0 {
			event := sub.queue[0]
			sub.queue[0] = nil
			sub.queue = sub.queue[1:]
			e.mu.Unlock()
			return event, nil
		}
		err := sub.err
		e.mu.Unlock()
		if err != nil {
			return nil, err
		}
		select {
		case <-sub.ready:
		case <-sub.ended:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Ended is closed once no more events will be queued.
func (sub *Subscription) Ended() <-chan struct{} { return sub.ended }

// Err says why the subscription has ended, nil while it has not.
func (sub *Subscription) Err() error {
	sub.store.events.mu.Lock()
	defer sub.store.events.mu.Unlock()
	return sub.err
}

// Close ends the subscription; idempotent.
func (sub *Subscription) Close() {
	sub.store.events.mu.Lock()
	defer sub.store.events.mu.Unlock()
	delete(sub.store.events.subscribers, sub)
	sub.queue = nil
	sub.end(ErrClosed)
}
