package sandbox

import (
	"fmt"
	"strconv"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The real-time signals as libc numbers them for programs: the kernel's first
// two are libc's own.
const (
	firstRealTime = 34
	lastRealTime  = 64
)

// stopSignal returns the Linux number of the signal that stops a container:
// the request's, else the image's, else SIGTERM. An image that names no signal
// of this kernel gets SIGTERM too: it must not make a container unstoppable.
func stopSignal(config *runtimeapi.ContainerConfig, image *imagespec.Image) (int, error) {
	if s := config.GetStopSignal(); s != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		n, ok := signalNumber(s)
		if !ok {
			return 0, fmt.Errorf("config.stop_signal: %d is no signal: %w", int32(s), ErrInvalid)
		}
		return n, nil
	}
	if n, ok := parseSignal(image.Config.StopSignal); ok {
		return n, nil
	}
	return int(unix.SIGTERM), nil
}

// signalNumber translates a signal of CRI, whose numbers are not Linux's and
// whose names change between versions.
func signalNumber(s runtimeapi.Signal) (int, bool) {
	numbers := [...]unix.Signal{
		1: unix.SIGABRT, unix.SIGALRM, unix.SIGBUS, unix.SIGCHLD, unix.SIGCHLD, unix.SIGCONT, unix.SIGFPE, unix.SIGHUP,
		unix.SIGILL, unix.SIGINT, unix.SIGIO, unix.SIGABRT, unix.SIGKILL, unix.SIGPIPE, unix.SIGIO, unix.SIGPROF, unix.SIGPWR,
		unix.SIGQUIT, unix.SIGSEGV, unix.SIGSTKFLT, unix.SIGSTOP, unix.SIGSYS, unix.SIGTERM, unix.SIGTRAP, unix.SIGTSTP,
		unix.SIGTTIN, unix.SIGTTOU, unix.SIGURG, unix.SIGUSR1, unix.SIGUSR2, unix.SIGVTALRM, unix.SIGWINCH, unix.SIGXCPU,
		unix.SIGXFSZ,
	}
	n := int(s)
	switch {
	case n > 0 && n < len(numbers):
		return int(numbers[n]), true
	case n >= int(runtimeapi.Signal_SIGNAL_SIGRTMIN) && n <= int(runtimeapi.Signal_SIGNAL_SIGRTMAX):
		return n - int(runtimeapi.Signal_SIGNAL_SIGRTMIN) + firstRealTime, true
	}
	return 0, false
}

// parseSignal reads a signal as images write it: "SIGQUIT", "quit", "3", "SIGRTMIN+3".
func parseSignal(text string) (int, bool) {
	if n, err := strconv.ParseUint(text, 10, 8); err == nil {
		return int(n), n > 0 && n <= lastRealTime
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	for prefix, base := range map[string]int{"RTMIN": firstRealTime, "RTMAX": lastRealTime} {
		if offset, ok := strings.CutPrefix(name, prefix); ok {
			n, err := strconv.Atoi("0" + strings.TrimLeft(offset, "+-"))
			if strings.HasPrefix(offset, "-") {
				n = -n
			}
			return base + n, err == nil && base+n >= firstRealTime && base+n <= lastRealTime
		}
	}
	n := unix.SignalNum("SIG" + name)
	return int(n), n != 0
}
