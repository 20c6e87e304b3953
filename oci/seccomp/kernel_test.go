package seccomp

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const childVariable = "CRI_RUNTIME_SECCOMP_TEST"

func TestMain(m *testing.M) {
	if test := os.Getenv(childVariable); test != "" {
		if err := child(test); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child loads filters on threads of its own, which end with their filter.
func child(test string) error {
	run := map[string]func() error{"default": filtered, "largest": largest, "cost": cost}[test]
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- run()
	}()
	return <-done
}

func load(f *Filter) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	program := unix.SockFprog{Len: uint16(f.Len()), Filter: (*unix.SockFilter)(unsafe.Pointer(&f.Instructions[0]))}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(f)
	if errno != 0 {
		return fmt.Errorf("seccomp, %d instructions, flags %#x: %w", f.Len(), f.Flags, errno)
	}
	return nil
}

// filtered checks calls before and after the default profile.
func filtered() error {
	kernel, err := runningKernel()
	if err != nil {
		return err
	}
	p, err := Default([]string{"CAP_SYS_CHROOT"}, kernel)
	if err != nil {
		return err
	}
	f, err := Compile(p, runtime.GOARCH)
	if err != nil {
		return err
	}
	calls := []struct {
		name          string
		number        uintptr
		args          [3]uintptr
		before, after unix.Errno
	}{
		{"getpid", unix.SYS_GETPID, [3]uintptr{}, 0, 0},
		{"mount", unix.SYS_MOUNT, [3]uintptr{0, 0, 0}, unix.EFAULT, unix.EPERM},
		{"unshare", unix.SYS_UNSHARE, [3]uintptr{1 << 31}, unix.EINVAL, unix.EPERM},
		{"clone3", unix.SYS_CLONE3, [3]uintptr{0, 0, 0}, unix.EINVAL, unix.ENOSYS},
		{"chroot", unix.SYS_CHROOT, [3]uintptr{0}, unix.EFAULT, unix.EFAULT},
		{"bpf", unix.SYS_BPF, [3]uintptr{9999, 0, 0}, unix.EINVAL, unix.EPERM},
		{"personality 0xffffffff", unix.SYS_PERSONALITY, [3]uintptr{0xffffffff}, 0, 0},
		{"socket unix", unix.SYS_SOCKET, [3]uintptr{unix.AF_UNIX, 9999, 0}, unix.EINVAL, unix.EINVAL},
		{"socket vsock", unix.SYS_SOCKET, [3]uintptr{unix.AF_VSOCK, 9999, 0}, unix.EINVAL, unix.EPERM},
		// The kernel drops the high half of an int argument.
		{"socket vsock with a high bit", unix.SYS_SOCKET, [3]uintptr{1<<32 | unix.AF_VSOCK, 9999, 0}, unix.EINVAL, unix.EPERM},
		{"socket unix with a high bit", unix.SYS_SOCKET, [3]uintptr{1<<32 | unix.AF_UNIX, 9999, 0}, unix.EINVAL, unix.EINVAL},
		{"newer than all", 900, [3]uintptr{}, unix.ENOSYS, unix.ENOSYS},
	}
	for _, after := range []bool{false, true} {
		if after {
			if err := load(f); err != nil {
				return err
			}
		}
		for _, c := range calls {
			want := c.before
			if after {
				want = c.after
			}
			if _, _, errno := unix.RawSyscall(c.number, c.args[0], c.args[1], c.args[2]); errno != want {
				return fmt.Errorf("%s, filtered %v: %w, want %w", c.name, after, errno, want)
			}
		}
	}
	return nil
}

func runningKernel() (KernelVersion, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return KernelVersion{}, err
	}
	return ParseKernelVersion(unix.ByteSliceToString(uts.Release[:]))
}

// largestProfile has about as many rules as a program can hold.
func largestProfile() *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{
		Names: []string{"lseek"}, Action: specs.ActErrno,
	}}}
	for i := range 1000 {
		p.Syscalls[0].Args = append(p.Syscalls[0].Args, specs.LinuxSeccompArg{Index: 1, Op: specs.OpEqualTo, Value: uint64(i+1) << 32})
	}
	return p
}

func largest() error {
	f, err := Compile(largestProfile(), runtime.GOARCH)
	if err != nil {
		return err
	}
	fmt.Printf("%d instructions\n", f.Len())
	if err := load(f); err != nil {
		return err
	}
	for _, c := range []struct {
		offset uintptr
		want   unix.Errno
	}{{1 << 32, unix.EPERM}, {1000 << 32, unix.EPERM}, {1001 << 32, unix.EBADF}, {1<<32 + 1, unix.EBADF}} {
		if _, _, errno := unix.RawSyscall(unix.SYS_LSEEK, ^uintptr(0), c.offset, 0); errno != c.want {
			return fmt.Errorf("lseek %#x: %w, want %w", c.offset, errno, c.want)
		}
	}
	return nil
}

// cost prints how long the kernel takes to load the default profile.
func cost() error {
	for _, native := range []bool{false, true} {
		p, err := Default(nil, KernelVersion{6, 18})
		if err != nil {
			return err
		}
		if native {
			p.Architectures = nil
		}
		f, err := Compile(p, runtime.GOARCH)
		if err != nil {
			return err
		}
		var took []time.Duration
		for range 31 {
			done := make(chan error)
			go func() {
				runtime.LockOSThread() // never unlocked: the thread ends
				start := time.Now()
				err := load(f)
				took = append(took, time.Since(start))
				done <- err
			}()
			if err := <-done; err != nil {
				return err
			}
		}
		slices.Sort(took)
		fmt.Printf("%d instructions: load p50 %v\n", f.Len(), took[len(took)/2])
	}
	return nil
}

func TestKernel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, test := range []string{"default", "largest", "cost"} {
		t.Run(test, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
			cmd.Env = append(os.Environ(), childVariable+"="+test)
			out, err := cmd.CombinedOutput()
			t.Log(strings.TrimSpace(string(out)))
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				t.Fatal(exit)
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
}
