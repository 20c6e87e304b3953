package main

import "errors"

var (
	// errEarly: the daemon's process ended by itself.
	errEarly = errors.New("see its log")
	// errShown: what a step showed is not what it should be.
	errShown = errors.New("not as expected")
)
