package control

import (
	"time"

	"github.com/cri-runtime/cri-runtime/imageservice"
)

// Image is one image of a list.
type Image struct {
	ID          string    `json:"id"`
	RepoTags    []string  `json:"repoTags"`
	RepoDigests []string  `json:"repoDigests"`
	Size        uint64    `json:"size"`
	Pinned      bool      `json:"pinned"`
	PulledAt    time.Time `json:"pulledAt"`
}

func imageOf(i *imageservice.Image) Image {
	return Image{
		ID: i.ID, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests, Size: i.Size, Pinned: i.Pinned, PulledAt: i.PulledAt,
	}
}

// PullRequest is the body of a pull. The credentials are for this pull alone.
type PullRequest struct {
	Reference string `json:"reference"`
	Username  string `json:"username,omitempty"`
	Password  string `json:"password,omitempty"`
}

// PullEvent is one line of a pull's answer. The last one has Image or Error.
type PullEvent struct {
	Progress *imageservice.PullProgress `json:"progress,omitempty"`
	Image    *Image                     `json:"image,omitempty"`
	Error    *Error                     `json:"error,omitempty"`
}

// CheckRequest is the body of a check.
type CheckRequest struct {
	Repair bool `json:"repair"`
}

// Imported is the answer to an import.
type Imported struct {
	Images []Image `json:"images"`
}

// Error is what a request that failed is answered with.
type Error struct {
	Reason string `json:"reason"` // one word, for programs
	Text   string `json:"error"`
}

// Headers of an export, which come before the archive.
const (
	HeaderID       = "Cri-Runtime-Image"
	HeaderNewID    = "Cri-Runtime-Archived-Image"
	HeaderManifest = "Cri-Runtime-Archived-Manifest"
	HeaderSize     = "Cri-Runtime-Archive-Size"
	// TrailerError says after the archive why it is not whole; "" if it is.
	TrailerError = "Cri-Runtime-Error"
)
