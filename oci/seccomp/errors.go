package seccomp

import "errors"

var (
	// ErrInvalid marks a profile that contradicts the runtime specification;
	// the message names the field.
	ErrInvalid = errors.New("invalid seccomp profile")
	// ErrUnsupported marks a profile that asks for what this runtime does not
	// do: SCMP_ACT_NOTIFY, or an architecture it has no system call table for.
	ErrUnsupported = errors.New("unsupported seccomp profile")
	// ErrTooLarge marks a profile that is larger than the limits of this
	// package or whose program is longer than the kernel takes.
	ErrTooLarge = errors.New("seccomp profile too large")
)
