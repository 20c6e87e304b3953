package builtin

import "errors"

var (
	// ErrInvalid: a subnet or a port mapping that cannot be.
	ErrInvalid = errors.New("invalid")
	// ErrExhausted: no address of a subnet is free.
	ErrExhausted = errors.New("no address is free")
	// ErrTaken: a host port, or the bridge's name, is somebody else's.
	ErrTaken = errors.New("taken already")
)
