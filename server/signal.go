package server

import (
	"strconv"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Real-time signals as libc numbers them for programs; the kernel's first two
// are libc's own.
const (
	firstRealTime = 34
	lastRealTime  = 64
	// halfRealTime is the last one that the CRI counts from the first.
	halfRealTime = 49
)

// stopSignal turns the number of a Linux signal into the CRI's, which differs:
// SIGTERM is 15 there and 23 here. Stopping uses SIGTERM when nobody asked for another.
func stopSignal(linux int) runtimeapi.Signal {
	name := unix.SignalName(unix.Signal(linux))
	switch {
	case linux == firstRealTime:
		name = "SIGRTMIN"
	case linux == lastRealTime:
		name = "SIGRTMAX"
	case linux > firstRealTime && linux <= halfRealTime:
		name = "SIGRTMINPLUS" + strconv.Itoa(linux-firstRealTime)
	case linux > halfRealTime && linux < lastRealTime:
		name = "SIGRTMAXMINUS" + strconv.Itoa(lastRealTime-linux)
	}
	if value, ok := runtimeapi.Signal_value["SIGNAL_"+name]; ok {
		return runtimeapi.Signal(value)
	}
	return runtimeapi.Signal_SIGNAL_SIGTERM
}
