package main

import "errors"

var (
	// errConfig: a configuration file or flag is wrong; the text says which and why.
	errConfig = errors.New("invalid configuration")
	// errInUse: another daemon works on the directory.
	errInUse = errors.New("in use by another cri-runtime")
	// errNotOurs: a directory open to other users holds something else.
	errNotOurs = errors.New("directory holds other files")
)
