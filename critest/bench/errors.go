package main

import "errors"

var (
	errNotRoot = errors.New("needs root")
	errExit    = errors.New("unexpected exit code")
	errNoValue = errors.New("no such value")
)
