package seccomp

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const maxErrno = 4095 // the kernel cuts larger ones down to it

// parseAction gives the value that a filter returns for an action.
func parseAction(action specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	var value uint32
	switch action {
	case specs.ActErrno:
		return withData(unix.SECCOMP_RET_ERRNO, errno, maxErrno)
	case specs.ActTrace:
		return withData(unix.SECCOMP_RET_TRACE, errno, unix.SECCOMP_RET_DATA)
	case specs.ActKill, specs.ActKillThread:
		value = unix.SECCOMP_RET_KILL_THREAD
	case specs.ActKillProcess:
		value = unix.SECCOMP_RET_KILL_PROCESS
	case specs.ActTrap:
		value = unix.SECCOMP_RET_TRAP
	case specs.ActLog:
		value = unix.SECCOMP_RET_LOG
	case specs.ActAllow:
		value = unix.SECCOMP_RET_ALLOW
	case specs.ActNotify:
		return 0, fmt.Errorf("%w: SCMP_ACT_NOTIFY needs a notification listener, which this runtime does not provide yet", ErrUnsupported)
	case "":
		return 0, fmt.Errorf("%w: missing", ErrInvalid)
	default:
		return 0, fmt.Errorf("%w: %q is not an action", ErrInvalid, action)
	}
	if errno != nil {
		return 0, fmt.Errorf("%w: %s takes no errnoRet", ErrInvalid, action)
	}
	return value, nil
}

// withData adds an errno to an action; the specification's default is EPERM.
func withData(value uint32, errno *uint, limit uint) (uint32, error) {
	if errno == nil {
		return value | uint32(unix.EPERM), nil
	}
	if *errno > limit {
		return 0, fmt.Errorf("%w: errnoRet %d, at most %d", ErrInvalid, *errno, limit)
	}
	return value | uint32(*errno), nil
}

// checkArchitectures checks the names of a profile's architectures.
func checkArchitectures(archs []specs.Arch) error {
	for i, a := range archs {
		switch a {
		case specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64, specs.ArchMIPS, specs.ArchMIPS64,
			specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64,
			specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64,
			specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB:
		default:
			return fmt.Errorf("architectures[%d]: %w: %q is not an architecture", i, ErrInvalid, a)
		}
	}
	return nil
}

// filterFlags gives the flags to load a filter with.
//
// Without any mention of flags the filter does not ask for the mitigation of
// speculative store bypass, as with runc: kernels before 5.16 would otherwise
// slow every container down.
func filterFlags(flags []specs.LinuxSeccompFlag) (uint32, error) {
	if flags == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var out uint32
	for i, f := range flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			out |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			out |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC":
			// A container's first process has one thread when it loads its filter.
		case specs.LinuxSeccompFlagWaitKillableRecv:
			// Without SCMP_ACT_NOTIFY it has no meaning, and the kernel refuses it.
		default:
			return 0, fmt.Errorf("flags[%d]: %w: %q is not a flag", i, ErrInvalid, f)
		}
	}
	return out, nil
}
