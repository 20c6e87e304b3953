package ledger

import "errors"

var (
	// ErrDamaged: the file is not as it was written.
	ErrDamaged = errors.New("damaged record")
	// ErrInvalid: what is to be sealed is no JSON object.
	ErrInvalid = errors.New("not a JSON object")
)
