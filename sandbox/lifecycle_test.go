package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLifecycle(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	b := f.pod()
	c := f.create(b, "c", "sh", "-c", "echo out; echo err >&2; "+forever)
	if st := c.Status(); st.State != stateCreated || st.PID == 0 || st.CreatedAt == 0 {
		t.Errorf("created: %+v", st)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); !errors.Is(err, ErrState) {
		t.Errorf("second start: %v", err)
	}
	if got := f.exec(c, "cat", "/proc/1/comm"); got != "sh" {
		t.Errorf("PID 1 is %q", got)
	}
	if err := c.Stop(ctx, 20); err != nil {
		t.Fatal(err)
	}
	st := c.Status()
	if st.State != stateExited || st.ExitCode != 7 || st.Reason != reasonError || st.FinishedAt < st.StartedAt || st.StartedAt < st.CreatedAt {
		t.Errorf("exited: %+v", st)
	}
	log, err := os.ReadFile(st.LogPath)
	if err != nil || !bytes.Contains(log, []byte(" stdout F out\n")) || !bytes.Contains(log, []byte(" stderr F err\n")) {
		t.Errorf("log %q, %v", log, err)
	}
	for range 2 {
		if err := errors.Join(c.Stop(ctx, 1), c.Remove(ctx)); err != nil {
			t.Error("stop and remove again:", err)
		}
	}
	if _, err := f.store.Container(c.id); !errors.Is(err, ErrNotFound) {
		t.Error("removed container is found:", err)
	}
	if err := errors.Join(b.Stop(ctx), b.Stop(ctx)); err != nil {
		t.Error(err)
	}
	if _, err := b.CreateContainer(ctx, containerConfig("late", 0, "true"), f.image); !errors.Is(err, ErrState) {
		t.Error("create in a stopped pod:", err)
	}
	if err := errors.Join(b.Remove(ctx), b.Remove(ctx)); err != nil {
		t.Error(err)
	}
}

func TestGraceEndsInKill(t *testing.T) {
	f := setUp(t)
	c := f.run(f.pod(), "stubborn", "sh", "-c", "trap '' TERM; while :; do sleep 1000 & wait; done")
	if err := c.Stop(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	if st := c.Status(); st.ExitCode != 137 || st.Reason != reasonError {
		t.Errorf("%+v", st)
	}
}

func TestStartErrors(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	b := f.pod()
	for name, c := range map[string]struct {
		command []string
		code    int32
		text    string
	}{
		"missing":        {[]string{"nowhere"}, 127, "PATH"},
		"missing-path":   {[]string{"/bin/nowhere"}, 127, "/bin/nowhere"},
		"not-executable": {[]string{"/etc/hosts"}, 126, "permission denied"},
		"directory":      {[]string{"/etc"}, 126, "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			ctr := f.create(b, name, c.command...)
			err := ctr.Start(ctx)
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v does not name %q", err, c.text)
			}
			if st := f.await(ctr); st.ExitCode != c.code || st.Reason != reasonStartError || st.Message == "" {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestCreateFails(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	b := f.pod()
	for name, c := range map[string]struct {
		change func(c *runtimeapi.ContainerConfig)
		text   string
	}{
		"mount source": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "/nowhere", ContainerPath: "/data"}}
		}, "/nowhere"},
		"user": {func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUsername = "nobody-knows"
		}, "nobody-knows"},
		"log path": {func(c *runtimeapi.ContainerConfig) { c.LogPath = "../../x.log" }, "log_path"},
		"profile": {func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/nowhere.json"}
		}, "/nowhere.json"},
		"target": {func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "abc"}
		}, "abc"},
	} {
		t.Run(name, func(t *testing.T) {
			config := containerConfig("bad", runtimeapi.NamespaceMode_CONTAINER, "true")
			c.change(config)
			_, err := b.CreateContainer(ctx, config, f.image)
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v does not name %q", err, c.text)
			}
			left, _ := os.ReadDir(f.store.state("containers"))
			if len(left) > 0 {
				t.Error("left:", left)
			}
		})
	}
}

func TestRetryJoins(t *testing.T) {
	f := setUp(t)
	f.net.hold, f.net.entered = make(chan struct{}), make(chan struct{})
	config := f.podConfig("net", runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-f.net.entered
		cancel()
	}()
	if _, err := f.store.Run(ctx, config, ""); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "attach the network") {
		t.Fatal("a client that gives up is not told the stage:", err)
	}
	var ids [4]string
	var wait sync.WaitGroup
	for i := range ids {
		wait.Go(func() {
			b, err := f.store.Run(context.Background(), config, "")
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = b.id
		})
	}
	close(f.net.hold)
	wait.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Error("retries made sandboxes of their own:", ids)
		}
	}
	if n := f.net.attached.Load(); n != 1 {
		t.Errorf("%d attachments", n)
	}
	b, err := f.store.Sandbox(ids[0][:12])
	if err != nil {
		t.Fatal(err)
	}
	if st := b.Status(); len(st.IPs) != 1 || !isNamespace(st.NetNS) {
		t.Errorf("%+v", st)
	}
	c := f.run(b, "c", "sh", "-c", forever)
	again, err := b.CreateContainer(context.Background(), containerConfig("c", 0, "true"), f.image)
	if err != nil || again != c {
		t.Error("a retry of CreateContainer made another:", err)
	}
	if got := f.exec(c, "cat", "/proc/sys/kernel/hostname"); got != "a-pod" {
		t.Errorf("hostname %q", got)
	}
	if got := f.exec(c, "cat", "/etc/hosts"); !strings.Contains(got, "192.0.2.7\ta-pod") {
		t.Errorf("hosts %q", got)
	}
}

func TestRunFails(t *testing.T) {
	f := setUp(t)
	f.net.fail = errors.New("no address left")
	_, err := f.store.Run(context.Background(), f.podConfig("net", runtimeapi.NamespaceMode_POD, 1), "")
	if !errors.Is(err, f.net.fail) {
		t.Error(err)
	}
	if n := f.net.detached.Load(); n != 1 {
		t.Errorf("%d detachments after a failed ADD", n)
	}
	if all := f.store.Sandboxes(); len(all) > 0 {
		t.Error("a failed sandbox is listed")
	}
	f.net.fail = nil
	if _, err := f.store.Run(context.Background(), f.podConfig("net", runtimeapi.NamespaceMode_POD, 1), ""); err != nil {
		t.Error("run again:", err)
	}
}

func TestSharedPIDNamespace(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	b, err := f.store.Run(ctx, f.podConfig("shared", runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_POD), "")
	if err != nil {
		t.Fatal(err)
	}
	var list [2]*Container
	for i := range list {
		list[i], err = b.CreateContainer(ctx, containerConfig(fmt.Sprint("c", i), runtimeapi.NamespaceMode_POD, "sh", "-c", forever), f.image)
		if err == nil {
			err = list[i].Start(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := f.exec(list[0], "cat", "/proc/1/comm"); got != "cri-pause" {
		t.Errorf("PID 1 is %q", got)
	}
	if got := f.exec(list[1], "ps"); strings.Count(got, "trap") != 2 {
		t.Errorf("the containers do not see each other:\n%s", got)
	}
	f.restart()
	again, err := f.store.Container(list[1].id)
	if err != nil {
		t.Fatal(err)
	}
	if got := f.exec(again, "cat", "/proc/1/comm"); got != "cri-pause" {
		t.Errorf("after a restart PID 1 is %q", got)
	}
}

func TestMonitorDies(t *testing.T) {
	f := setUp(t)
	b := f.pod()
	c, other := f.run(b, "c", "sh", "-c", forever), f.run(b, "other", "sh", "-c", forever)
	kill(t, parent(t, c.Status().PID))
	if st := f.await(c); st.Reason != reasonMonitorLost || st.ExitCode != 137 {
		t.Errorf("%+v", st)
	}
	if got := f.exec(other, "cat", "/proc/1/comm"); got != "sh" {
		t.Errorf("the other container suffers: %q", got)
	}
	f.restart()
	again, err := f.store.Container(c.id)
	if err != nil {
		t.Fatal(err)
	}
	if st := again.Status(); st.Reason != reasonMonitorLost {
		t.Errorf("after a restart: %+v", st)
	}
}

func parent(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var ppid int
	if _, err := fmt.Sscanf(string(stat[bytes.LastIndexByte(stat, ')')+4:]), "%d", &ppid); err != nil {
		t.Fatal(err)
	}
	return ppid
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func TestExecSync(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	c := f.run(f.pod(), "c", "sh", "-c", forever)
	r, err := c.ExecSync(ctx, []string{"sh", "-c", "echo o; echo e >&2; exit 5"}, 10)
	if err != nil || r.ExitCode != 5 || string(r.Stdout) != "o\n" || string(r.Stderr) != "e\n" {
		t.Errorf("%v %+v", err, r)
	}
	if _, err := c.ExecSync(ctx, []string{"nowhere"}, 10); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Error("missing command:", err)
	}
	if _, err := c.ExecSync(ctx, []string{"sh", "-c", "sleep 1001 & sleep 1001"}, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("time-out:", err)
	}
	if got := f.exec(c, "ps"); strings.Contains(got, "1001") {
		t.Errorf("a process outlived its exec's time-out:\n%s", got)
	}
	if r, err = c.ExecSync(ctx, []string{"sh", "-c", "cat /dev/zero | busybox head -c 20000000"}, 20); err != nil || len(r.Stdout) != maxExecOutput {
		t.Errorf("flood: %v, %d bytes", err, len(r.Stdout))
	}
	// The stream stays open in a child that goes on: the answer does not wait for it.
	if r, err = c.ExecSync(ctx, []string{"sh", "-c", "echo x; sleep 1002 &"}, 20); err != nil || string(r.Stdout) != "x\n" {
		t.Errorf("child keeps the stream: %v %+v", err, r)
	}
	f.store.background.Wait()
	left, _ := filepath.Glob("/sys/fs/cgroup/pids" + c.record.Cgroup + "/exec-*")
	unified, _ := filepath.Glob("/sys/fs/cgroup" + c.record.Cgroup + "/exec-*")
	if left = append(left, unified...); len(left) != 1 {
		t.Error("cgroups of execs:", left, "want the one with a process in it")
	}
}

// TestDevicesAreDenied opens a device that is not in the container's list.
func TestDevicesAreDenied(t *testing.T) {
	f := setUp(t)
	c := f.run(f.pod(), "c", "sh", "-c", forever)
	r, err := c.ExecSync(context.Background(), []string{"sh", "-c", "busybox mknod /tmp/mem c 1 1 && cat /tmp/mem"}, 20)
	if err != nil || r.ExitCode == 0 || !bytes.Contains(r.Stderr, []byte("Operation not permitted")) {
		t.Errorf("/dev/mem: %v, code %d, %q", err, r.ExitCode, r.Stderr)
	}
	if got := f.exec(c, "sh", "-c", "echo x >/dev/null && echo written"); got != "written" {
		t.Errorf("/dev/null: %q", got)
	}
}

func TestReopenLog(t *testing.T) {
	f := setUp(t)
	const lines = 50_000
	c := f.run(f.pod(), "c", "sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done", lines))
	path := c.Status().LogPath
	for n := range 5 {
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, n)); err != nil {
			t.Fatal(err)
		}
		if err := c.ReopenLog(context.Background()); errors.Is(err, ErrState) {
			break // it was faster
		} else if err != nil {
			t.Fatal(err)
		}
	}
	f.await(c)
	files, _ := filepath.Glob(path + "*")
	seen := map[string]int{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(data) {
			_, text, ok := bytes.Cut(line, []byte(" stdout F "))
			if !ok {
				t.Fatalf("%s: line %q", file, line)
			}
			seen[string(text)]++
		}
	}
	if len(seen) != lines {
		t.Errorf("%d lines of %d in %d files", len(seen), lines, len(files))
	}
	for text, n := range seen {
		if n != 1 {
			t.Errorf("%q is there %d times", text, n)
		}
	}
}
