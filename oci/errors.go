package oci

import (
	"errors"
	"fmt"
)

// What this package answers besides success. Callers test with errors.Is;
// the text of the error that wraps a sentinel names the field or the path.
var (
	// ErrInvalid: a field of the request, or the image's configuration, holds
	// what cannot be honoured. Asking again does not help.
	ErrInvalid = errors.New("invalid")
	// ErrUnsupported: the field is understood, but neither ignored nor
	// honoured by this version or on this kernel.
	ErrUnsupported = errors.New("not supported")
	// ErrNotFound: something that the request names does not exist (a user in
	// the image's passwd file, a device, a cgroup).
	ErrNotFound = errors.New("not found")
)

// FieldError says which field of a CRI message or of an image's
// configuration is wrong and why. It wraps one of the sentinels above.
type FieldError struct {
	Field  string // the path as CRI spells it: config.linux.security_context.run_as_user
	Reason string // what is wrong, complete with the value and the remedy
	Err    error  // ErrInvalid, ErrUnsupported or ErrNotFound
}

// Error names the field first.
func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

// Unwrap returns the sentinel.
func (e *FieldError) Unwrap() error { return e.Err }

func invalid(field, format string, args ...any) error {
	return &FieldError{Field: field, Reason: fmt.Sprintf(format, args...), Err: ErrInvalid}
}

func unsupported(field, format string, args ...any) error {
	return &FieldError{Field: field, Reason: fmt.Sprintf(format, args...), Err: ErrUnsupported}
}

func notFound(field, format string, args ...any) error {
	return &FieldError{Field: field, Reason: fmt.Sprintf(format, args...), Err: ErrNotFound}
}
