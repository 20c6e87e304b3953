package server

import (
	"strconv"
	"strings"
	"syscall"

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

// stopSignal says which signal stops a container: the request's, else the
// image's, else SIGTERM.
func stopSignal(request runtimeapi.Signal, image string) runtimeapi.Signal {
	if request != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return request
	}
	if signal, ok := parseSignal(image); ok {
		return signal
	}
	return runtimeapi.Signal_SIGNAL_SIGTERM
}

// parseSignal reads a signal as images write it: "SIGQUIT", "quit", "3",
// "SIGRTMIN+3". The numbers are Linux's; those of the CRI are others.
func parseSignal(text string) (runtimeapi.Signal, bool) {
	if n, err := strconv.ParseUint(text, 10, 8); err == nil {
		name := signalName(int(n))
		value, ok := runtimeapi.Signal_value["SIGNAL_"+name]
		return runtimeapi.Signal(value), ok
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(text), "SIG")
	name = strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)
	value, ok := runtimeapi.Signal_value["SIGNAL_"+name]
	return runtimeapi.Signal(value), ok
}

// signalName names a Linux signal as the CRI does.
func signalName(n int) string {
	switch {
	case n == firstRealTime:
		return "SIGRTMIN"
	case n == lastRealTime:
		return "SIGRTMAX"
	case n > firstRealTime && n <= halfRealTime:
		return "SIGRTMINPLUS" + strconv.Itoa(n-firstRealTime)
	case n > halfRealTime && n < lastRealTime:
		return "SIGRTMAXMINUS" + strconv.Itoa(lastRealTime-n)
	}
	return unix.SignalName(syscall.Signal(n))
}
