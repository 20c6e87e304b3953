package sandbox

import "errors"

// What a verb can answer besides success. The server maps each to one gRPC
// code; everything else is an internal error.
var (
	// ErrNotFound: no sandbox or container has that id.
	ErrNotFound = errors.New("not found")
	// ErrInvalid: the request itself is wrong; the text names the field.
	ErrInvalid = errors.New("invalid")
	// ErrState: the object's state does not allow the verb.
	ErrState = errors.New("not possible in this state")
	// ErrUnsupported: the kernel or this version cannot do what is asked for.
	ErrUnsupported = errors.New("not supported")
	// ErrSlow: an attached client stayed too far behind the container's output.
	ErrSlow = errors.New("the client did not take the output fast enough and was detached")
	// ErrOverrun: a subscriber did not keep up, or there are too many.
	ErrOverrun = errors.New("too many events or subscribers")
	// ErrTooMany: as many of its kind as may be are under way.
	ErrTooMany = errors.New("too many at once")
	// ErrClosed: the daemon ends.
	ErrClosed = errors.New("the daemon ends")

	// errNewer: a later version of the daemon has written it.
	errNewer = errors.New("written by a later version")

	errTooMany = errors.New("too many files to count at once")
	errTooDeep = errors.New("directories are nested too deep")
)
