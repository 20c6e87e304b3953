package main

import "errors"

// errShown: what a step showed is not what it should be.
var errShown = errors.New("not as expected")
