package imageservice

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// Memory is what a running Store knows, for a check from outside.
type Memory struct {
	Images  []string            `json:"images"`            // ids, also of those that are not listed
	Holds   map[string][]string `json:"holds"`             // users by image id
	Pulling bool                `json:"pulling"`           // or importing, or removing
	Orphans []string            `json:"orphans,omitempty"` // layers that are kept for a container, see orphan.go
}

// Memory returns what the Store knows.
func (s *Store) Memory() *Memory {
	pulling := s.tracker.busy()
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &Memory{Holds: map[string][]string{}, Images: slices.Sorted(maps.Keys(s.images)), Orphans: slices.Clone(s.orphans)}
	for id, users := range s.holds {
		m.Holds[id] = slices.Sorted(maps.Keys(users))
	}
	m.Pulling = pulling || len(s.pins) > 0
	return m
}

const (
	remedyPull    = "pull the image again, or run cri-runtime image check --repair"
	remedyRestart = "restart the daemon"
)

// Audit compares the records of images with the layers, and holds with the
// containers: users by image id. What is in the layers is not read, see Check.
// Nothing is changed. memory is what the daemon knows, nil if none runs.
func Audit(root string, users map[string][]string, memory *Memory) (ledger.Findings, error) {
	a := &auditor{Store: &Store{config: Config{Root: root}, images: map[string]*entry{}, layers: map[digest.Digest]*layerRecord{}}, memory: memory}
	for _, step := range []func() error{a.records, a.unnamed} {
		if err := step(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("check the images: %w", err)
		}
	}
	a.used(users)
	if memory != nil {
		a.compareHolds(users)
	}
	return a.findings, nil
}

type auditor struct {
	*Store
	memory   *Memory
	findings ledger.Findings
}

func (a *auditor) settled() bool { return a.memory != nil && !a.memory.Pulling }

func (a *auditor) records() error {
	dirs, err := os.ReadDir(a.path("records"))
	if err != nil {
		return err
	}
	tags := map[string]string{}
	for _, d := range dirs {
		dir := a.path("records", d.Name())
		e, err := readEntry(dir)
		if err != nil {
			a.findings.Add(dir, err.Error(), remedyRestart)
			continue
		}
		id := e.record.ID
		a.images[id] = e
		if err := ledger.Read(filepath.Join(dir, imageFile), &imageRecord{}); err != nil {
			a.findings.Add(filepath.Join(dir, imageFile), err.Error(), remedyPull)
		}
		for _, tag := range e.record.Tags {
			if other, ok := tags[tag]; ok && a.settled() {
				a.findings.Add(filepath.Join(dir, imageFile), fmt.Sprintf("image %s has the tag %s, too", other, tag), remedyRestart)
			}
			tags[tag] = id
		}
		if e.torn && !e.unreadable {
			a.findings.Add(dir, "a document of the image is missing or damaged", remedyPull)
		}
		for _, diffID := range unique(e.record.Layers) {
			a.layer(id, diffID)
		}
	}
	return nil
}

func (a *auditor) layer(image string, diffID digest.Digest) {
	if a.layers[diffID] != nil {
		return
	}
	if err := diffID.Validate(); err != nil {
		a.findings.Add(a.recordPath(image), fmt.Sprintf("layer %q: %v", diffID, err), remedyPull)
		return
	}
	record, err := readLayer(a.layerPath(diffID))
	if err != nil {
		a.findings.Add(a.layerPath(diffID), fmt.Sprintf("image %s needs this layer: %v", image, err), remedyPull)
		return
	}
	a.layers[diffID] = record
}

// unnamed looks for layers of no image and leftovers of pulls, which the next
// start removes.
func (a *auditor) unnamed() error {
	if !a.settled() {
		return nil
	}
	layers, err := os.ReadDir(a.path("layers"))
	if err != nil {
		return err
	}
	for _, d := range layers {
		if !a.knows(d.Name()) && !slices.Contains(a.memory.Orphans, d.Name()) {
			a.findings.Add(a.path("layers", d.Name()), "this layer belongs to no image", remedyRestart)
		}
	}
	left, err := os.ReadDir(a.path("ingest"))
	if err != nil {
		return err
	}
	for _, d := range left {
		a.findings.Add(a.path("ingest", d.Name()), "a pull or a removal has left this behind", remedyRestart)
	}
	for _, id := range a.memory.Images {
		if e := a.images[id]; e == nil && len(a.memory.Holds[id]) == 0 {
			a.findings.Add(a.recordPath(id), "the daemon knows this image, but there is no record of it", remedyRestart)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(a.images)) {
		if !slices.Contains(a.memory.Images, id) {
			a.findings.Add(a.recordPath(id), "the daemon does not know this image", remedyRestart)
		}
	}
	return nil
}

// used looks for the images that containers need.
func (a *auditor) used(users map[string][]string) {
	for _, id := range slices.Sorted(maps.Keys(users)) {
		if a.images[id] == nil {
			a.findings.Add(a.recordPath(id), fmt.Sprintf("containers %v are of this image, but there is no record of it", users[id]), remedyPull)
		}
	}
}

// compareHolds compares holds with containers.
func (a *auditor) compareHolds(users map[string][]string) {
	for _, id := range slices.Sorted(maps.Keys(users)) {
		for _, user := range users[id] {
			// A hold of another kind, a pod's or a call's, may be for a container whose client gave up while it was made.
			own := slices.Contains(a.memory.Holds[id], user)
			other := slices.ContainsFunc(a.memory.Holds[id], func(h string) bool { return !slices.Contains(users[id], h) })
			if !own && !other {
				a.findings.Add(a.recordPath(id), "container "+user+" is of this image, but does not hold it", remedyRestart)
			}
		}
	}
}

// Unheld returns the holds of users who are not among those that may have one.
func (m *Memory) Unheld(exists func(user string) bool) ledger.Findings {
	var out ledger.Findings
	for _, id := range slices.Sorted(maps.Keys(m.Holds)) {
		for _, user := range m.Holds[id] {
			if !exists(user) {
				out.Add(id, "it is held by "+user+", of which there is neither a container, a sandbox nor a call", remedyRestart)
			}
		}
	}
	return out
}
