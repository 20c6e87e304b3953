package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	readyTimeout = 30 * time.Second
	stopTimeout  = 30 * time.Second
)

// conflist is a bridge of the demo's own. It masquerades nothing.
const conflist = `{
  "cniVersion": "1.0.0",
  "name": "demo",
  "plugins": [
    {"type": "bridge", "bridge": "cri-demo0", "isGateway": true, "ipam": {
      "type": "host-local", "dataDir": %q,
      "ranges": [[{"subnet": "10.88.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]
    }},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// node is a daemon with directories of its own.
type node struct {
	dir, binary, plugins string
	cgroup               string
	cmd                  *exec.Cmd
	exited               chan error // gets what cmd.Wait returned
}

func newNode(dir, binary, plugins string) (*node, error) {
	n := &node{dir: dir, binary: binary, plugins: plugins, cgroup: fmt.Sprintf("/cri-demo-%d", os.Getpid())}
	if err := os.Mkdir(n.path("net.d"), 0o700); err != nil {
		return nil, err
	}
	list := fmt.Sprintf(conflist, n.path("ipam"))
	return n, os.WriteFile(n.path("net.d/10-demo.conflist"), []byte(list), 0o600)
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) socket() string { return "unix://" + n.path("cri.sock") }

// start runs the daemon until it says that it is ready.
func (n *node) start(ctx context.Context) error {
	notify := n.path("notify")
	_ = os.Remove(notify)
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer ready.Close() //nolint:errcheck // one message has been read from it
	log, err := os.OpenFile(n.path("daemon.log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the daemon has its own descriptor
	n.cmd = exec.CommandContext(context.WithoutCancel(ctx), n.binary, "serve",
		"--config", os.DevNull, "--root", n.path("root"), "--state", n.path("state"), "--listen", n.socket(),
		"--cni-conf-dir", n.path("net.d"), "--cni-bin-dir", n.plugins,
		"--cgroup-driver", "cgroupfs", "--cgroup-parent", n.cgroup)
	n.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err = n.cmd.Start(); err != nil {
		return err
	}
	n.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait() }(n.cmd, n.exited)
	heard := make(chan error, 1)
	go func() {
		_ = ready.SetReadDeadline(time.Now().Add(readyTimeout))
		text := make([]byte, 256)
		size, err := ready.Read(text)
		if err == nil && !strings.Contains(string(text[:size]), "READY=1") {
			err = fmt.Errorf("unexpected notification %q", text[:size])
		}
		heard <- err
	}()
	select {
	case err = <-heard:
	case err = <-n.exited:
		n.cmd = nil
		err = fmt.Errorf("the daemon ended early: %w", errors.Join(errEarly, err))
	}
	return err
}

// stop sends a signal and waits for the daemon's end.
func (n *node) stop(signal syscall.Signal) error {
	if n.cmd == nil {
		return nil
	}
	if err := n.cmd.Process.Signal(signal); err != nil {
		return err
	}
	select {
	case err := <-n.exited:
		n.cmd = nil
		var exit *exec.ExitError
		if signal == syscall.SIGKILL && errors.As(err, &exit) {
			return nil
		}
		return err
	case <-time.After(stopTimeout):
		return fmt.Errorf("the daemon goes on %v after signal %q", stopTimeout, signal)
	}
}

// clean ends what is left and removes the demo's cgroups.
func (n *node) clean() error {
	err := n.stop(syscall.SIGKILL)
	dirs, globErr := filepath.Glob("/sys/fs/cgroup/*" + n.cgroup)
	err = errors.Join(err, globErr)
	for _, dir := range append(dirs, "/sys/fs/cgroup"+n.cgroup) {
		err = errors.Join(err, removeCgroup(dir))
	}
	return err
}

// removeCgroup kills what is in a cgroup and removes it with those below.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeCgroup(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err, os.Remove(dir))
}
