package imageservice

import (
	"errors"
	"fmt"
)

// What a call can answer besides success, for errors.Is. Everything else is
// an error of this machine (disk full, permission), with its system error.
var (
	// ErrNotFound: the store, or on Pull the registry, has no such image.
	ErrNotFound = errors.New("image not found")
	// ErrInvalidReference: the text is not an image reference.
	ErrInvalidReference = errors.New("invalid image reference")
	// ErrAmbiguous: a shortened id fits several images.
	ErrAmbiguous = errors.New("ambiguous image id")
	// ErrUnauthorized: the registry asks for other credentials than the given.
	ErrUnauthorized = errors.New("registry denied access")
	// ErrRegistryUnavailable: the registry could not be reached, or it went on
	// answering that it cannot serve the request.
	ErrRegistryUnavailable = errors.New("registry unavailable")
	// ErrStalled: the registry sent nothing for Config.NoProgressTimeout.
	ErrStalled = errors.New("registry sent nothing for too long")
	// ErrDigestMismatch: content is not what the digest or size that named it
	// says, or ended early.
	ErrDigestMismatch = errors.New("content does not match its digest")
	// ErrUnsupported: a media type, manifest schema or platform that this node
	// cannot use.
	ErrUnsupported = errors.New("unsupported image")
	// ErrMalformedManifest: an index, manifest or config that contradicts the
	// specification or itself.
	ErrMalformedManifest = errors.New("malformed manifest")
	// ErrMalformedLayer: a layer's archive cannot be unpacked as it is written.
	ErrMalformedLayer = errors.New("malformed layer")
	// ErrTooLarge: a manifest, config or layer goes beyond one of the limits.
	ErrTooLarge = errors.New("image exceeds a limit")
	// ErrDenied: the image policy does not let the image in.
	ErrDenied = errors.New("denied")
	// ErrMalformedArchive: what is to be imported is no archive of images, or
	// one that lacks something.
	ErrMalformedArchive = errors.New("malformed archive")
	// ErrLocked: another process has the store open.
	ErrLocked = errors.New("image store is in use by another process")
	// ErrClosed: the Store was closed.
	ErrClosed = errors.New("image store is closed")
)

// cutShort is a blob that ended before its size.
type cutShort struct{ want, got int64 }

func (e *cutShort) Error() string {
	return fmt.Sprintf("%v: it ended after %d of %d bytes", ErrDigestMismatch, e.got, e.want)
}

func (e *cutShort) Unwrap() error { return ErrDigestMismatch }
