package images

import "errors"

var (
	// ErrCompression is returned for a Compression that is not defined here.
	ErrCompression = errors.New("unknown compression")
	// ErrRefused is returned when the registry does not accept a blob or a manifest.
	ErrRefused = errors.New("refused by the registry")
)
