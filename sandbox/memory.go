package sandbox

// Memory is what a Store knows at one moment, for a check that compares it with
// the records and the host.
type Memory struct {
	Sandboxes  []SandboxMemory   `json:"sandboxes"`
	Containers []ContainerMemory `json:"containers"`
	// UnderWay are the ids of sandboxes and containers that are being made, and
	// of sandboxes that a verb works on.
	UnderWay []string `json:"underWay"`
	// Tidying: what an earlier daemon left half made is being undone.
	Tidying bool `json:"tidying"`
}

// SandboxMemory is one sandbox.
type SandboxMemory struct {
	ID    string `json:"id"`
	Ready bool   `json:"ready"`
}

// ContainerMemory is one container.
type ContainerMemory struct {
	ID        string   `json:"id"`
	SandboxID string   `json:"sandbox"`
	State     string   `json:"state"` // created, running, exited or unknown
	PID       int      `json:"pid"`   // of init, 0 when there is none
	Images    []string `json:"images"`
}

// Memory returns what the Store knows.
func (s *Store) Memory() *Memory {
	m := &Memory{Tidying: s.tidying.Load()}
	s.mu.RLock()
	for _, f := range s.names {
		if f.underWay() {
			m.UnderWay = append(m.UnderWay, f.id)
		}
	}
	s.mu.RUnlock()
	for _, b := range s.Sandboxes() {
		m.Sandboxes = append(m.Sandboxes, SandboxMemory{ID: b.id, Ready: b.Status().State == sandboxReady})
		if b.verb.busy() {
			m.UnderWay = append(m.UnderWay, b.id)
		}
		b.mu.Lock()
		for _, f := range b.names {
			if f.underWay() {
				m.UnderWay = append(m.UnderWay, f.id)
			}
		}
		b.mu.Unlock()
	}
	for _, c := range s.Containers() {
		st := c.Status()
		m.Containers = append(m.Containers, ContainerMemory{
			ID: c.id, SandboxID: c.box.id, State: stateText(st.State), PID: st.PID, Images: st.images(),
		})
	}
	return m
}

// images returns the ids of the images that the container needs.
func (s *ContainerStatus) images() []string {
	if s.ImageID == "" {
		return s.VolumeImages
	}
	return append([]string{s.ImageID}, s.VolumeImages...)
}
