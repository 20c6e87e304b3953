//go:build !sanitize

package conmon

import _ "embed" // for the monitor

// Made by ./build.
//
//go:embed monitor_arm64
var monitorBinary []byte
