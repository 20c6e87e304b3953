//go:build sanitize

package conmon

import _ "embed" // for the monitor

// Made by ./build sanitize, for make test-sanitize-e2e.
//
//go:embed monitor_sanitize
var monitorBinary []byte
