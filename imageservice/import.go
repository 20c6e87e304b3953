package imageservice

import (
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// imported is the part of an archive that an import reads.
type imported struct {
	blobs func(ocispec.Descriptor) (io.ReadSeekCloser, error)
}

func (a *imported) open(desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	rc, err := a.blobs(desc)
	if err != nil {
		return nil, err
	}
	if _, err := rc.Seek(offset, io.SeekStart); err != nil {
		_ = rc.Close()
		return nil, err
	}
	return rc, nil
}
