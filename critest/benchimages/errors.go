package main

import "errors"

var (
	errNotRoot = errors.New("needs root")
	errNoValue = errors.New("no such value")
	errNoImage = errors.New("no image of that name")
)
