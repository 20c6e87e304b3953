package sandbox

import "errors"

// cleanup undoes the effects of a verb that fails half way, the last first.
// It is used as: defer u.undo(&err).
type cleanup []func() error

func (u *cleanup) add(f func() error) { *u = append(*u, f) }

// undo runs the undos if *err is set and joins their errors to it.
func (u *cleanup) undo(err *error) {
	if *err == nil {
		return
	}
	for i := len(*u) - 1; i >= 0; i-- {
		*err = errors.Join(*err, (*u)[i]())
	}
}
