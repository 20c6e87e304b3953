package network

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// leftover is a process of a plugin that a former daemon has started. The
// kernel kills a plugin with its daemon, but not what the plugin has started:
// bridge's host-local would reserve an address after the DEL of this daemon.
type leftover struct {
	pid   int
	verb  string
	pidfd int // so that nobody else is meant
}

// pluginMark begins the variable that is in the environment of our plugins.
const pluginMark = "CRI_RUNTIME_NETWORK="

// findLeftovers notes them by the sandbox they are for, and kills those that
// are for none, as a STATUS is.
func (n *Network) findLeftovers() error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	n.left = map[string][]leftover{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !n.started(pid, nil) {
			continue
		}
		l := leftover{pid: pid}
		var id string
		if l.pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			continue // it has ended
		}
		switch ours := n.started(pid, map[string]*string{"CNI_CONTAINERID=": &id, "CNI_COMMAND=": &l.verb}); {
		case ours && id != "":
			n.left[id] = append(n.left[id], l)
			continue
		case ours:
			l.kill(id)
		}
		_ = unix.Close(l.pidfd)
	}
	return nil
}

// started tells whether a process was started by a plugin of this network, and
// looks up variables in its environment.
func (n *Network) started(pid int, variables map[string]*string) (ours bool) {
	environment, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return false // it has ended
	}
	for variable := range strings.SplitSeq(string(environment), "\x00") {
		ours = ours || variable == n.runner.mark
		for name, value := range variables {
			if rest, ok := strings.CutPrefix(variable, name); ok {
				*value = rest
			}
		}
	}
	return ours
}

// endLeftovers comes before the first DEL for an attachment. An ADD that
// nobody waits for any more is killed, unless it had succeeded: what it
// left running then serves the pod. A DEL may go on to its end (see runOnce),
// for as long as any plugin may.
func (n *Network) endLeftovers(id string, attached bool) {
	n.leftMu.Lock()
	left := n.left[id]
	delete(n.left, id)
	n.leftMu.Unlock()
	deadline := time.Now().Add(n.config.Timeout)
	for _, l := range left {
		switch {
		case l.verb == "DEL":
			l.await(time.Until(deadline))
			fallthrough
		case !attached:
			l.kill(id)
		}
		_ = unix.Close(l.pidfd)
	}
}

// kill ends the process with what it has started meanwhile: a plugin has a
// process group of its own.
func (l leftover) kill(id string) {
	group, err := unix.Getpgid(l.pid)
	if unix.PidfdSendSignal(l.pidfd, unix.SIGKILL, nil, 0) != nil {
		return // it has ended
	}
	if err == nil && group > 1 && group != unix.Getpgrp() {
		_ = unix.Kill(-group, unix.SIGKILL)
	}
	l.await(drainTime)
	klog.InfoS("A plugin that a former daemon started was killed", "sandbox", id, "command", l.verb, "pid", l.pid)
}

// await waits for the end of the process.
func (l leftover) await(limit time.Duration) {
	poll := []unix.PollFd{{Fd: int32(l.pidfd), Events: unix.POLLIN}}
	for end := time.Now().Add(limit); ; {
		_, err := unix.Poll(poll, int(max(0, time.Until(end).Milliseconds())))
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// dropLeftovers lets go of those that nobody has asked for.
func (n *Network) dropLeftovers() {
	n.leftMu.Lock()
	defer n.leftMu.Unlock()
	for _, left := range n.left {
		for _, l := range left {
			_ = unix.Close(l.pidfd)
		}
	}
	n.left = nil
}
