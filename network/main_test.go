package network

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// The tests run again in network and mount namespaces of their own, which
// stand for the host: nothing that plugins do reaches the machine.
const (
	insideEnv  = "NETWORK_TEST_INSIDE"
	pluginsEnv = "NETWORK_TEST_PLUGINS"
	helperEnv  = "NETWORK_TEST_HELPER"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if !testing.Verbose() {
		klog.LogToStderr(false)
		klog.SetOutput(io.Discard)
	}
	switch {
	case os.Getenv(helperEnv) != "":
		os.Exit(attachForever(os.Getenv(helperEnv)))
	case os.Getenv(insideEnv) != "":
		if err := makeHost(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		goleak.VerifyTestMain(m)
	case os.Geteuid() == 0:
		os.Exit(runInside())
	default:
		goleak.VerifyTestMain(m)
	}
}

// runInside builds the plugins while there is a network and runs the tests
// in the namespaces.
func runInside() int {
	dir, err := os.MkdirTemp("", "cni-plugins-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if _, err := exec.LookPath("go"); err == nil {
		build := exec.Command("./plugins", dir)
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "build plugins:", err)
			return 1
		}
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1", pluginsEnv+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "run in new namespaces:", err)
		return 1
	}
	return 0
}

func makeHost() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	// The bridge's address is usable at once, not after a second of duplicate
	// detection, in which ::1 would be the source of what the host sends.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
		return err
	}
	return LoopbackUp()
}

func needHost(t testing.TB) {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		t.Skip("needs root")
	}
}

// needPlugins returns the directory of the real plugins.
func needPlugins(t testing.TB) string {
	t.Helper()
	needHost(t)
	dir := os.Getenv(pluginsEnv)
	if _, err := os.Stat(filepath.Join(dir, "bridge")); err != nil {
		t.Skip("needs the go command to build the plugins")
	}
	return dir
}

// newNetNS pins a new network namespace and returns its path.
func newNetNS(t testing.TB) string {
	t.Helper()
	needHost(t)
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dropNetNS(t, path) })
	return path
}

func dropNetNS(t testing.TB, path string) {
	t.Helper()
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		t.Errorf("unmount %s: %v", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// within runs f on a thread in the network namespace.
func within(t testing.TB, path string, f func() error) error {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func links(t testing.TB, path string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	read := func() error {
		all, err := net.Interfaces()
		for _, link := range all {
			names[link.Name] = true
		}
		return err
	}
	if path == "" {
		if err := read(); err != nil {
			t.Fatal(err)
		}
	} else if err := within(t, path, read); err != nil {
		t.Fatal(err)
	}
	return names
}

func open(t testing.TB, config Config) *Network {
	t.Helper()
	if config.CacheDir == "" {
		config.CacheDir = filepath.Join(t.TempDir(), "cache")
	}
	n, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// attachForever is the daemon that is killed in the middle of ADD.
func attachForever(dir string) int {
	n, err := Open(Config{ConfDir: dir + "/conf", BinDirs: []string{dir + "/bin"}, CacheDir: dir + "/cache"})
	if err == nil {
		_, err = n.Attach(context.Background(), Pod{ID: "killed", Name: "web", Namespace: "default", NetNS: dir + "/net"})
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func TestLoopbackUp(t *testing.T) {
	path := newNetNS(t)
	err := within(t, path, func() error {
		if err := LoopbackUp(); err != nil {
			return err
		}
		if err := LoopbackUp(); err != nil { // idempotent
			return err
		}
		link, err := net.InterfaceByName("lo")
		if err != nil {
			return err
		}
		addrs, err := link.Addrs()
		if err != nil {
			return err
		}
		if link.Flags&net.FlagUp == 0 || len(addrs) == 0 {
			return fmt.Errorf("lo has flags %v and addresses %v", link.Flags, addrs)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
