package doctor

import "errors"

// errUnknownCall: no check asks for this system call.
var errUnknownCall = errors.New("not a system call that is tried")
