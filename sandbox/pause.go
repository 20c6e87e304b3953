package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/conmon"
	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// sharedPIDNS returns the path of the pod's PID namespace, making it for the first
// container that asks for it. The caller has the verb lock.
func (b *Sandbox) sharedPIDNS(ctx context.Context) (string, error) {
	pin := b.state("ns", "pid")
	if b.record.Pause != nil {
		return pin, nil
	}
	fault.Point("pause.begun")
	// A daemon that was killed before it could write the record may have left one.
	if err := errors.Join(b.killPause(), unpin(pin)); err != nil {
		return "", fmt.Errorf("shared PID namespace: %w", err)
	}
	pid, err := b.startPause(ctx)
	if err != nil {
		return "", fmt.Errorf("shared PID namespace: %w", err)
	}
	fault.Point("pause.started")
	b.record.Pause = &pauseRecord{PID: pid}
	if b.record.Pause.StartTime, err = startTime(pid); err == nil {
		err = pinNamespace(fmt.Sprintf("/proc/%d/ns/pid", pid), pin)
	}
	if err == nil {
		err = b.writeRecord(false)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("shared PID namespace: %w", err), b.killPause(), unpin(pin))
	}
	fault.Point("pause.recorded")
	b.update(func(s *SandboxStatus) { s.PausePID = pid })
	return pin, nil
}

// pauseCgroup names the cgroup of the pod's reaper.
func (b *Sandbox) pauseCgroup() string {
	return b.containerCgroup("pause-" + b.id)
}

func (b *Sandbox) startPause(ctx context.Context) (int, error) {
	var open fileList
	defer open.close()
	cg, err := b.store.cgroups.Create(b.pauseCgroup(), nil)
	if err != nil {
		return 0, err
	}
	fault.Point("pause.cgroup.made")
	pause := &conmon.Pause{Files: []*os.File{b.store.emptyNS}, Clones: b.ownUser(), OOMScoreAdj: b.store.host.ClampOOMScoreAdj(pauseOOMScoreAdj)}
	if b.ownUser() {
		pause.Files = []*os.File{b.store.userNS}
	}
	if b.store.cgroups.V2() {
		pause.Cgroup = open.keep(cg.Dir())
	}
	for _, path := range cg.JoinPaths() {
		pause.Files = append(pause.Files, open.keep(os.OpenFile(path, os.O_WRONLY, 0)))
	}
	if open.err != nil {
		return 0, open.err
	}
	var ns []specs.LinuxNamespace
	for kind, pin := range map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts", specs.UserNamespace: "user"} {
		if p := b.state("ns", pin); exists(p) {
			ns = append(ns, specs.LinuxNamespace{Type: kind, Path: p})
		}
	}
	ids, err := b.ids()
	if err != nil {
		return 0, errors.Join(err, cg.Remove(ctx))
	}
	linux := &specs.Linux{Namespaces: ns, UIDMappings: ids.uids, GIDMappings: ids.gids}
	program, err := oci.CompilePause(linux, &oci.CompileOptions{TaskFiles: cg.JoinPaths(), LastCap: b.store.lastCap()})
	if err == nil {
		pause.Program = program
		var pid int
		if pid, err = b.store.binary.Pause(ctx, pause); err == nil {
			return pid, nil
		}
	}
	return 0, errors.Join(err, cg.Remove(ctx))
}

// killPause ends the reaper and with it every process of its PID namespace;
// idempotent. One that is not on record yet is found by its cgroup.
func (b *Sandbox) killPause() error {
	if p := b.record.Pause; p != nil {
		if err := p.kill(); err != nil {
			return fmt.Errorf("end cri-pause %d: %w", p.PID, err)
		}
		fault.Point("pause.killed")
	}
	cg, err := b.store.cgroups.Load(b.pauseCgroup())
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
		defer cancel()
		err = cg.Remove(ctx)
	}
	if err != nil && !errors.Is(err, oci.ErrNotFound) {
		return err
	}
	b.record.Pause = nil
	return nil
}

// kill ends the process and waits for its end; one that is gone is no error.
func (p *pauseRecord) kill() error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// The pidfd holds on to one process; is it ours, and not a later one with its number?
	if start, err := startTime(p.PID); err != nil || start != p.StartTime {
		return nil // it is gone
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	awaitExit(fd, p.PID)
	return nil
}

// awaitExit waits for a killed process and reaps it if it is our child.
func awaitExit(pidfd, pid int) {
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(poll, int(killTimeout.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if poll[0].Revents != 0 {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // ECHILD after a restart of the daemon
	}
}

// startTime returns when a process started, in clock ticks since boot (proc(5)),
// whatever time namespace this daemon is in.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	// The name may hold anything, also parentheses: count from the last one.
	_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	fields := strings.Fields(rest)
	const field = 22 - 3
	if len(fields) <= field {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, unix.EINVAL)
	}
	ticks, err := strconv.ParseInt(fields[field], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	offsets, err := os.ReadFile("/proc/self/timens_offsets")
	if err != nil {
		return uint64(ticks), nil //nolint:nilerr // the kernel has no time namespaces
	}
	return uint64(ticks - bootOffset(string(offsets))), nil
}

// userHz is what the kernel tells times to programs in, on all of its architectures
// that we run on.
const userHz = 100

// bootOffset returns by how many ticks the time since boot is off here
// (time_namespaces(7)).
func bootOffset(offsets string) int64 {
	for line := range strings.Lines(offsets) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "boottime" {
			continue
		}
		seconds, err := strconv.ParseInt(fields[1], 10, 64)
		if err == nil {
			return seconds * userHz
		}
	}
	return 0
}

// targetPIDNS returns the PID namespace of another container of the pod.
func (b *Sandbox) targetPIDNS(id string) (string, error) {
	target, err := b.store.Container(id)
	if err != nil {
		return "", fmt.Errorf("target of the PID namespace: %w", err)
	}
	st := target.Status()
	switch {
	case target.box != b:
		return "", fmt.Errorf("target of the PID namespace: container %s is in another pod: %w", id, ErrInvalid)
	case st.State != runtimeapi.ContainerState_CONTAINER_RUNNING:
		return "", fmt.Errorf("target of the PID namespace: container %s does not run: %w", id, ErrState)
	}
	return fmt.Sprintf("/proc/%d/ns/pid", st.PID), nil
}
