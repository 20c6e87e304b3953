package harness

import "errors"

var (
	// ErrNotReady: the daemon did not answer in time, or ended.
	ErrNotReady = errors.New("the runtime does not answer")
	// ErrReport: the race detector or a sanitizer has found something.
	ErrReport = errors.New("reported")
	// ErrResidue: something was left on the host.
	ErrResidue = errors.New("left behind")
	// ErrTimeout: a condition did not come true in time.
	ErrTimeout = errors.New("waited in vain")
)
