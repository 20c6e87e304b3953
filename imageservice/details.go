package imageservice

import (
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Details are what the store knows of one image, for people to read.
type Details struct {
	ID          string        `json:"id"`
	RepoTags    []string      `json:"repoTags"`
	RepoDigests []string      `json:"repoDigests"`
	Manifest    digest.Digest `json:"manifest"` // of this platform
	// Source is the host that served the manifest, a mirror perhaps, or what the
	// image was imported from; "" for an image of an older version.
	Source   string    `json:"source,omitempty"`
	PulledAt time.Time `json:"pulledAt"`
	Pinned   bool      `json:"pinned"`
	Size     uint64    `json:"size"`            // on the disk, shared layers included
	Unshared uint64    `json:"unshared"`        // of it, what goes when the image goes
	Users    []string  `json:"users,omitempty"` // who holds it: containers
	// Layers are the chain, the lowest one first.
	Layers []LayerDetails `json:"layers"`
	Config ocispec.Image  `json:"config"` // hostile input
}

// LayerDetails are one layer of an image.
type LayerDetails struct {
	DiffID     digest.Digest `json:"diffID"`
	Blob       digest.Digest `json:"blob"`       // that it was unpacked from
	Compressed int64         `json:"compressed"` // bytes of the blob
	Bytes      uint64        `json:"bytes"`      // on the disk
	Inodes     uint64        `json:"inodes"`
	SharedBy   int           `json:"sharedBy"` // images that have it, this one too
	Directory  string        `json:"directory"`
}

// Details returns what the store knows of the image that ref finds.
func (s *Store) Details(ref string) (*Details, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	i := e.image
	d := &Details{
		ID: i.ID, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests, Manifest: i.Manifest, Source: e.record.Source,
		PulledAt: i.PulledAt, Pinned: i.Pinned, Size: i.Size, Unshared: e.size, Config: i.Config,
		Layers: []LayerDetails{},
	}
	for user := range s.holds[i.ID] {
		d.Users = append(d.Users, user)
	}
	slices.Sort(d.Users)
	for n, diffID := range e.record.Layers {
		l := s.layers[diffID]
		shared := s.sharedBy(diffID)
		if shared == 1 && !slices.Contains(e.record.Layers[:n], diffID) {
			d.Unshared += l.Bytes
		}
		d.Layers = append(d.Layers, LayerDetails{
			DiffID: diffID, Blob: l.Blob, Compressed: l.Size, Bytes: l.Bytes, Inodes: l.Inodes,
			SharedBy: shared, Directory: filepath.Join(s.layerPath(diffID), diffDir),
		})
	}
	return d, nil
}

// sharedBy counts the images that have a layer, also those that are kept only
// for their containers. The caller holds mu.
func (s *Store) sharedBy(diffID digest.Digest) int {
	n := 0
	for _, e := range s.images {
		if slices.Contains(e.record.Layers, diffID) {
			n++
		}
	}
	return n
}
