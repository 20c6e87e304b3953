package sandbox

import (
	"fmt"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	stateCreated = runtimeapi.ContainerState_CONTAINER_CREATED
	stateRunning = runtimeapi.ContainerState_CONTAINER_RUNNING
	stateExited  = runtimeapi.ContainerState_CONTAINER_EXITED
	stateUnknown = runtimeapi.ContainerState_CONTAINER_UNKNOWN

	sandboxReady    = runtimeapi.PodSandboxState_SANDBOX_READY
	sandboxNotReady = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
)

// nextStates is the table of legal changes of a container's state. A
// container is Unknown while its monitor does not answer after a restart.
func nextStates(from runtimeapi.ContainerState) []runtimeapi.ContainerState {
	switch from {
	case stateCreated:
		return []runtimeapi.ContainerState{stateRunning, stateExited}
	case stateRunning:
		return []runtimeapi.ContainerState{stateRunning, stateExited}
	case stateUnknown:
		return []runtimeapi.ContainerState{stateCreated, stateRunning, stateExited}
	case stateExited:
		return nil
	}
	return nil
}

// update is the only writer of a container's status: change works on a copy,
// which is published if the state table allows it.
func (c *Container) update(change func(s *ContainerStatus)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.status.Load()
	next := *old
	change(&next)
	next.order()
	if next.State != old.State && !slices.Contains(nextStates(old.State), next.State) {
		return false
	}
	if old.State == stateExited {
		return false
	}
	c.status.Store(&next)
	switch {
	case next.State == stateExited:
		c.store.emit(c.id, c.box, nil, eventStopped)
	case next.State == stateRunning && old.State == stateCreated:
		c.store.emit(c.id, c.box, nil, eventStarted)
	}
	return true
}

// update is the only writer of a sandbox's status. NotReady is final.
func (b *Sandbox) update(change func(s *SandboxStatus)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := *b.status.Load()
	change(&next)
	b.status.Store(&next)
}

// require is the guard of the verbs.
func (c *Container) require(verb string, states ...runtimeapi.ContainerState) error {
	if s := c.Status().State; !slices.Contains(states, s) {
		return fmt.Errorf("%s container %s: it is %s: %w", verb, c.id, stateText(s), ErrState)
	}
	return nil
}

// requireReady is the guard of the verbs.
func (b *Sandbox) requireReady(verb string) error {
	if b.Status().State != sandboxReady {
		return fmt.Errorf("%s in sandbox %s: it is not ready: %w", verb, b.id, ErrState)
	}
	return nil
}

func stateText(s runtimeapi.ContainerState) string {
	switch s {
	case stateCreated:
		return "created"
	case stateRunning:
		return "running"
	case stateExited:
		return "exited"
	case stateUnknown:
		return "unknown"
	}
	return s.String()
}
