package faults

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

const (
	counting  = `i=0; while :; do i=$((i+1)); echo $i; usleep 5000; done`
	onRequest = `trap "exit 7" TERM; echo 1; while :; do usleep 10000; done`
)

// verbs are those of pods, containers and images with the built-in network.
func verbs() []*verb {
	return []*verb{
		runVerb("RunPodSandbox", ownCgroup), runVerb("RunPodSandbox in a user namespace", userNamespace),
		createVerb(), startVerb(),
		stopVerb("StopContainer", 30, 7), stopVerb("StopContainer without grace", 0, 137),
		removeContainerVerb("RemoveContainer", false), removeContainerVerb("RemoveContainer of a running one", true),
		exitVerb(), lostVerb(),
		execVerb(), updateVerb(), updatePodVerb(), reopenVerb(),
		stopPodVerb("StopPodSandbox"), removePodVerb(),
		pullVerb("layers"), moveTagVerb(), removeImageVerb(), removeHeldVerb(),
		recoverVerb("start, half a pod", runVerb("", ownCgroup), "run.attached"),
		recoverVerb("start, half a container", createVerb(), "create.bundle.written"),
		recoverVerb("start, half a removal", removePodVerb(), "discard.renamed"),
		recoverVerb("start, half a pull", pullVerb("layers"), "layer.renamed"),
		recoverVerb("start, half a layer", pullVerb("layers"), "layer.unpacked"),
		recoverVerb("start, a tag of two images", moveTagVerb(), "image.published"),
		recoverVerb("start, an update", updateVerb(), "update.recorded"),
		recoverLostVerb(),
	}
}

// pluginVerbs are those that run CNI plugins.
func pluginVerbs() []*verb {
	return []*verb{
		runVerb("RunPodSandbox with plugins"), stopPodVerb("StopPodSandbox with plugins"),
		portsVerb(),
		recoverVerb("start, half a pod with plugins", runVerb(""), "attach.added"),
	}
}

// emptyVerbs are those of a daemon that has no pod.
func emptyVerbs() []*verb {
	first := runVerb("the first pod")
	prepare := first.prepare
	first.prepare = func(ctx context.Context, s *sweep, sub *subject) error {
		// The bridge goes with the daemon.
		if err := s.Restart(ctx, syscall.SIGTERM); err != nil {
			return err
		}
		return prepare(ctx, s, sub)
	}
	return []*verb{first, shutdownVerb()}
}

// podWithPort is a pod's configuration with a host port of its own.
func (s *sweep) podWithPort(ctx context.Context, options ...podOption) (*runtimeapi.PodSandboxConfig, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return nil, err
	}
	number, err := strconv.ParseInt(port, 10, 32)
	config := s.podConfig(options...)
	config.PortMappings = []*runtimeapi.PortMapping{{HostPort: int32(number), ContainerPort: 80}}
	return config, err
}

// prepared makes the pod of a subject.
func (s *sweep) prepared(ctx context.Context, sub *subject, options ...podOption) (err error) {
	if sub.config, err = s.podWithPort(ctx, options...); err != nil {
		return err
	}
	sub.pod, err = s.runConfig(ctx, sub.config)
	return err
}

// running makes pod and container of a subject and waits for the first line of output.
func (s *sweep) running(ctx context.Context, sub *subject, script string, options ...podOption) (err error) {
	if err := s.prepared(ctx, sub, options...); err != nil {
		return err
	}
	if sub.c, err = s.start(ctx, sub.pod, script); err != nil {
		return err
	}
	return s.printed(ctx, sub.c)
}

func (s *sweep) printed(ctx context.Context, c *container) error {
	return harness.Until(ctx, patience, "a first line", func() bool {
		text, err := os.ReadFile(c.logPath())
		return err == nil && strings.Contains(string(text), " stdout F 1\n")
	})
}

// inState waits until a container is in that state.
func (s *sweep) inState(ctx context.Context, c *container, state runtimeapi.ContainerState) (st *runtimeapi.ContainerStatus, err error) {
	if waitErr := harness.Until(ctx, patience/4, "state "+state.String(), func() bool {
		st, err = s.status(ctx, c.id)
		return err != nil || st.State == state
	}); waitErr != nil {
		return st, fmt.Errorf("%w, it is %v", waitErr, st)
	}
	return st, err
}

// ended waits for a container's end with that code.
func (s *sweep) ended(ctx context.Context, c *container, code int32) error {
	st, err := s.inState(ctx, c, runtimeapi.ContainerState_CONTAINER_EXITED)
	if err == nil && st.ExitCode != code {
		err = fmt.Errorf("exit code %d, want %d: %v: %w", st.ExitCode, code, st, errFault)
	}
	return err
}

func runVerb(name string, options ...podOption) *verb {
	return &verb{
		name: name,
		prepare: func(ctx context.Context, s *sweep, sub *subject) (err error) {
			sub.config, err = s.podWithPort(ctx, options...)
			return err
		},
		do: func(ctx context.Context, s *sweep, sub *subject) (err error) {
			sub.pod, err = s.runConfig(ctx, sub.config)
			return err
		},
		done: func(ctx context.Context, s *sweep, sub *subject) error {
			pods, err := s.CRI.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}})
			if err != nil {
				return err
			}
			same := 0
			for _, p := range pods {
				if p.Metadata.Uid == sub.config.Metadata.Uid {
					same++
				}
			}
			answer, err := s.CRI.PodSandboxStatus(ctx, sub.pod.id, false)
			if err != nil {
				return err
			}
			if st := answer.Status; same != 1 || st.State != runtimeapi.PodSandboxState_SANDBOX_READY || net.ParseIP(st.Network.GetIp()) == nil {
				return fmt.Errorf("%d pods, this one is %v: %w", same, st, errFault)
			}
			c, err := s.start(ctx, sub.pod, "exit 3")
			if err != nil {
				return err
			}
			return s.ended(ctx, c, 3)
		},
	}
}

func createVerb() *verb {
	return &verb{
		name: "CreateContainer",
		prepare: func(ctx context.Context, s *sweep, sub *subject) error {
			if err := s.prepared(ctx, sub, sharedPID); err != nil {
				return err
			}
			sub.want = containerConfig(sub.config, counting)
			return nil
		},
		do: func(ctx context.Context, s *sweep, sub *subject) (err error) {
			sub.c, err = s.createConfig(ctx, sub.pod, sub.want)
			return err
		},
		done: func(ctx context.Context, s *sweep, sub *subject) error {
			all, err := s.CRI.ListContainers(ctx, &runtimeapi.ContainerFilter{PodSandboxId: sub.pod.id})
			if err != nil {
				return err
			}
			if len(all) != 1 || all[0].Id != sub.c.id || all[0].State != runtimeapi.ContainerState_CONTAINER_CREATED {
				return fmt.Errorf("containers %v: %w", all, errFault)
			}
			if err := s.CRI.StartContainer(ctx, sub.c.id); err != nil {
				return err
			}
			return s.printed(ctx, sub.c)
		},
	}
}

func startVerb() *verb {
	return &verb{
		name: "StartContainer",
		prepare: func(ctx context.Context, s *sweep, sub *subject) (err error) {
			if err := s.prepared(ctx, sub); err != nil {
				return err
			}
			sub.c, err = s.create(ctx, sub.pod, counting)
			return err
		},
		do: func(ctx context.Context, s *sweep, sub *subject) error {
			err := s.CRI.StartContainer(ctx, sub.c.id)
			if status.Code(err) != codes.FailedPrecondition {
				return err
			}
			// The kubelet looks before it starts a container again.
			_, err = s.inState(ctx, sub.c, runtimeapi.ContainerState_CONTAINER_RUNNING)
			return err
		},
		done: func(ctx context.Context, s *sweep, sub *subject) error {
			if err := s.printed(ctx, sub.c); err != nil {
				return err
			}
			_, err := checkLog(sub.c.logPath()) // it ran once
			return err
		},
	}
}

func stopVerb(name string, grace int64, code int32) *verb {
	return &verb{
		name: name,
		prepare: func(ctx context.Context, s *sweep, sub *subject) error {
			return s.running(ctx, sub, onRequest)
		},
		do: func(ctx context.Context, s *sweep, sub *subject) error {
			return s.CRI.StopContainer(ctx, sub.c.id, grace)
		},
		done: func(ctx context.Context, s *sweep, sub *subject) error { return s.ended(ctx, sub.c, code) },
	}
}

func removeContainerVerb(name string, runs bool) *verb {
	return &verb{
		name: name,
		prepare: func(ctx context.Context, s *sweep, sub *subject) error {
			if err := s.running(ctx, sub, counting); err != nil || runs {
				return err
			}
			return s.CRI.StopContainer(ctx, sub.c.id, 0)
		},
		do: func(ctx context.Context, s *sweep, sub *subject) error { return s.CRI.RemoveContainer(ctx, sub.c.id) },
		done: func(ctx context.Context, s *sweep, sub *subject) error {
			if _, err := s.status(ctx, sub.c.id); status.Code(errors.Unwrap(err)) != codes.NotFound {
				return fmt.Errorf("a removed container's status: %w: %w", err, errFault)
			}
			return nil
		},
	}
}

// exitVerb is a container's end by itself.
func exitVerb() *verb {
	return &verb{
		name: "a container's end",
		prepare: func(ctx context.Context, s *sweep, sub *subject) (err error) {
			if err := s.prepared(ctx, sub); err != nil {
				return err
			}
			sub.c, err = s.startWaiting(ctx, sub.pod, 5)
			return err
		},
		do:   func(_ context.Context, s *sweep, sub *subject) error { return s.open(sub.c) },
		done: func(ctx context.Context, s *sweep, sub *subject) error { return s.ended(ctx, sub.c, 5) },
	}
}

// lostVerb is a monitor's end.
func lostVerb() *verb {
	return &verb{
		name:    "a monitor's end",
		prepare: func(ctx context.Context, s *sweep, sub *subject) error { return s.running(ctx, sub, counting) },
		do: func(ctx context.Context, s *sweep, sub *subject) error {
			if st, err := s.status(ctx, sub.c.id); err != nil || st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				return err // it is the repetition
			}
			killProcess(s.t, s.monitor(sub.c))
			return nil
		},
		done: func(ctx context.Context, s *sweep, sub *subject) error {
			st, err := s.inState(ctx, sub.c, runtimeapi.ContainerState_CONTAINER_EXITED)
			if err == nil && (st.ExitCode == 0 || st.Reason == "" || st.FinishedAt == 0) {
				err = fmt.Errorf("the container of a killed monitor is %v: %w", st, errFault)
			}
			return err
		},
	}
}

func execVerb() *verb {
	return &verb{
		name:    "ExecSync",
		prepare: func(ctx context.Context, s *sweep, sub *subject) error { return s.running(ctx, sub, counting) },
		do: func(ctx context.Context, s *sweep, sub *subject) error {
			out, _, err := s.CRI.ExecSync(ctx, sub.c.id, []string{"echo", "here"}, patience)
			if err == nil && string(out) != "here\n" {
				err = fmt.Errorf("exec: output %q: %w", out, errFault)
			}
			count(execsRun, 1)
			return err
		},
		done: func(ctx context.Context, s *sweep, sub *subject) error {
			var left []string
			return harness.Until(ctx, patience/4, "no cgroup of an exec", func() bool {
				now, err := s.Residue()
				left = left[:0]
				for _, dir := range now.Cgroups {
					if strings.HasPrefix(filepath.Base(dir), "exec-") {
						left = append(left, dir)
					}
				}
				return err == nil && len(left) == 0
			})
		},
	}
}

func updateVerb() *verb {
	const limit = 64 << 20
	return &verb{
		name:    "UpdateContainerResources",
		prepare: func(ctx context.Context, s *sweep, sub *subject) error { return s.running(ctx, sub, counting) },
		do: func(ctx context.Context, s *sweep, sub *subject) error {
			return s.CRI.UpdateContainerResources(ctx, sub.c.id, &runtimeapi.ContainerResources{
				Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: limit, OomScoreAdj: 500},
			})
		},
		done: func(ctx context.Context, s *sweep, sub *subject) error {
			st, err := s.status(ctx, sub.c.id)
			if err != nil {
				return err
			}
			out, _, err := s.CRI.ExecSync(ctx, sub.c.id, []string{"sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max"}, patience)
			if err != nil {
				return err
			}
			if st.Resources.Linux.MemoryLimitInBytes != limit || strings.TrimSpace(string(out)) != strconv.Itoa(limit) {
				return fmt.Errorf("status %v, cgroup %q: %w", st.Resources, out, errFault)
			}
			return nil
		},
	}
}

func updatePodVerb() *verb {
	return &verb{
		name: "UpdatePodSandboxResources",
		prepare: func(ctx context.Context, s *sweep, sub *subject) error {
			return s.running(ctx, sub, counting, ownCgroup)
		},
		do: func(ctx context.Context, s *sweep, sub *subject) error {
			_, err := s.raw.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
				PodSandboxId: sub.pod.id, Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20},
			})
			return err
		},
		done: func(ctx context.Context, s *sweep, sub *subject) error {
			_, err := s.inState(ctx, sub.c, runtimeapi.ContainerState_CONTAINER_RUNNING)
			return err
		},
	}
}

// reopenVerb rotates a log; the lines before and after it are one sequence.
func reopenVerb() *verb {
	return &verb{
		name: "ReopenContainerLog",
		prepare: func(ctx context.Context, s *sweep, sub *subject) error {
			if err := s.running(ctx, sub, counting); err != nil {
				return err
			}
			return os.Rename(sub.c.logPath(), sub.c.logPath()+".1")
		},
		do: func(ctx context.Context, s *sweep, sub *subject) error {
			return s.CRI.ReopenContainerLog(ctx, sub.c.id)
		},
		done: func(ctx context.Context, s *sweep, sub *subject) error {
			if err := harness.Until(ctx, patience/4, "lines in the new log", func() bool {
				info, err := os.Stat(sub.c.logPath())
				return err == nil && info.Size() > 0
			}); err != nil {
				return err
			}
			whole := filepath.Join(s.t.TempDir(), "whole")
			for _, part := range []string{sub.c.logPath() + ".1", sub.c.logPath()} {
				text, err := os.ReadFile(part)
				if err != nil {
					return err
				}
				f, err := os.OpenFile(whole, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
				if err != nil {
					return err
				}
				_, err = f.Write(text)
				if err := errors.Join(err, f.Close()); err != nil {
					return err
				}
			}
			_, err := checkLog(whole)
			return err
		},
	}
}

func stopPodVerb(name string) *verb {
	return &verb{
		name: name,
		prepare: func(ctx context.Context, s *sweep, sub *subject) error {
			return s.running(ctx, sub, counting, sharedPID)
		},
		do: func(ctx context.Context, s *sweep, sub *subject) error { return s.CRI.StopPodSandbox(ctx, sub.pod.id) },
		done: func(ctx context.Context, s *sweep, sub *subject) error {
			answer, err := s.CRI.PodSandboxStatus(ctx, sub.pod.id, false)
			if err != nil {
				return err
			}
			if answer.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				return fmt.Errorf("a stopped pod is %v: %w", answer.Status, errFault)
			}
			return s.ended(ctx, sub.c, 137)
		},
	}
}

func removePodVerb() *verb {
	return &verb{
		name: "RemovePodSandbox",
		prepare: func(ctx context.Context, s *sweep, sub *subject) error {
			if err := s.running(ctx, sub, counting, ownCgroup); err != nil {
				return err
			}
			return s.CRI.StopPodSandbox(ctx, sub.pod.id)
		},
		do: func(ctx context.Context, s *sweep, sub *subject) error {
			return s.CRI.RemovePodSandbox(ctx, sub.pod.id)
		},
		done: func(ctx context.Context, s *sweep, sub *subject) error {
			if _, err := s.CRI.PodSandboxStatus(ctx, sub.pod.id, false); status.Code(err) != codes.NotFound {
				return fmt.Errorf("a removed pod's status: %w: %w", err, errFault)
			}
			return nil
		},
	}
}
