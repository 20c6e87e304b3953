//go:build !sanitize

package conmon

import _ "embed" // for the monitor

// Made by ./build.
//
//go:embed monitor_amd64
var monitorBinary []byte
