package critest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

func execSync(ctx context.Context, id string, timeout int64, command ...string) (*runtimeapi.ExecSyncResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	return raw.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: timeout})
}

func TestExecSync(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("sleep 1000")
	for _, test := range []struct {
		name           string
		command        []string
		code           int32
		stdout, stderr string
	}{
		{"output", []string{"echo", "a  b"}, 0, "a  b\n", ""},
		{"both streams", []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, 3, "out\n", "err\n"},
		{"code 255", []string{"sh", "-c", "exit 255"}, 255, "", ""},
		{"signal", []string{"sh", "-c", "kill -9 $$"}, 137, "", ""},
		{"no input", []string{"cat"}, 0, "", ""},
		{"same namespaces", []string{"sh", "-c", `for n in pid net ipc uts mnt cgroup; do test "$(readlink /proc/1/ns/$n)" = "$(readlink /proc/self/ns/$n)" || echo $n; done`}, 0, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := execSync(t.Context(), c.id, 30, test.command...)
			if err != nil {
				t.Fatal(err)
			}
			if got.ExitCode != test.code || string(got.Stdout) != test.stdout || string(got.Stderr) != test.stderr {
				t.Errorf("%v", got)
			}
		})
	}
	for name, command := range map[string][]string{"missing": {"/no/such/thing"}, "not executable": {"/etc/passwd"}, "directory": {"/etc"}} {
		got, err := execSync(t.Context(), c.id, 30, command...)
		if err == nil && got.ExitCode != 126 && got.ExitCode != 127 {
			t.Errorf("%s: %v, want an error or code 126 or 127", name, got)
		}
	}
	if _, err := execSync(t.Context(), c.id, 30); err == nil {
		t.Error("no command: no error")
	}
	if c.status().State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Error("the container has ended")
	}
}

func TestExecKeepsTheContainersLimits(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("sleep 1000", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtimeapi.Int64Value{Value: 1001}
		s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
		s.NoNewPrivs = true
		s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	}), func(c *runtimeapi.ContainerConfig) {
		c.WorkingDir = "/tmp"
		c.Envs = []*runtimeapi.KeyValue{{Key: "OWN", Value: []byte("x")}}
	})
	got := c.exec(0, "sh", "-c", `id -u; pwd; echo $OWN; awk '/CapBnd|NoNewPrivs|^Seccomp:/{print $2}' /proc/self/status`)
	if want := "1001\n/tmp\nx\n0000000000000000\n1\n2\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	inside := c.exec(0, "sh", "-c", "grep -v cpuacct.usage /proc/self/cgroup | grep memory; true")
	if strings.Contains(inside, "critest") && !strings.Contains(inside, "..") && !peer {
		t.Errorf("the exec sees the host's cgroup path %q", inside)
	}
}

func TestExecTimeoutKillsTheWholeTree(t *testing.T) {
	differs(t, "waits for the children")
	begin(t)
	p := run(t)
	c := p.start("sleep 1000")
	_, err := execSync(t.Context(), c.id, 1, "sh", "-c", "(sleep 4321 & sleep 4322 &) ; setsid sleep 4323 & sleep 4324")
	wantCode(t, err, codes.DeadlineExceeded)
	if err := harness.Until(t.Context(), patience, "the exec's processes to be gone", func() bool {
		got, err := execSync(t.Context(), c.id, 10, "sh", "-c", "ps -o args | grep -c '[s]leep 432'")
		return err == nil && strings.TrimSpace(string(got.Stdout)) == "0"
	}); err != nil {
		t.Errorf("%v: %s", err, c.exec(0, "ps", "-o", "args"))
	}
	if c.status().State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Error("the container has ended")
	}
}

func TestExecWithABackgroundChildReturns(t *testing.T) {
	differs(t, "waits for the child")
	begin(t)
	p := run(t)
	c := p.start("sleep 1000")
	// The child keeps the output open; draining must be bounded.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got, err := execSync(ctx, c.id, 0, "sh", "-c", "{ sleep 30; touch /over; sleep 500; } & echo done")
	if err != nil || string(got.Stdout) != "done\n" {
		t.Errorf("%v, %v", got, err)
	}
	c.exec(1, "test", "-e", "/over") // it was answered long before
}

func TestExecOutputIsCapped(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("sleep 1000")
	got, err := raw.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{
		ContainerId: c.id, Cmd: []string{"sh", "-c", "head -c 40000000 /dev/zero"}, Timeout: 60,
	})
	if err != nil {
		differs(t, "answers with an error") // an answer, too
		t.Fatal(err)
	}
	if n := len(got.Stdout); n > 16<<20 || n < 15<<20 {
		t.Errorf("%d bytes, want at most 16 MiB", n)
	}
	if got.ExitCode != 0 && got.ExitCode != 141 {
		t.Errorf("code %d", got.ExitCode)
	}
	// What the answer leaves out was not kept before: the memory that all commands share is
	// not one command's, and the daemon does not grow with what they write.
	const flood = 256 << 20
	pid := node.PID()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil { // VmHWM begins anew
		t.Fatal(err)
	}
	before := highestResident(t, pid)
	type answer struct {
		*runtimeapi.ExecSyncResponse
		err error
	}
	flooded := make(chan answer, 1)
	go func() {
		got, err := execSync(t.Context(), c.id, 60, "sh", "-c",
			fmt.Sprintf("head -c %d /dev/zero; touch /flooded; while ! test -e /enough; do usleep 10000; done", flood))
		flooded <- answer{got, err}
	}()
	c.exec(0, "sh", "-c", "while ! test -e /flooded; do usleep 10000; done")
	beside, err := execSync(t.Context(), c.id, 60, "head", "-c", "8000000", "/dev/zero")
	if err != nil || len(beside.Stdout) != 8000000 {
		t.Errorf("of another command beside it %d bytes are kept, want 8000000: %v", len(beside.GetStdout()), err)
	}
	c.exec(0, "touch", "/enough")
	if got := <-flooded; got.err != nil || len(got.Stdout) > 16<<20 || len(got.Stdout) < 15<<20 || got.ExitCode != 0 {
		t.Errorf("%d bytes, code %d, %v", len(got.GetStdout()), got.GetExitCode(), got.err)
	}
	grown := highestResident(t, pid) - before
	t.Logf("the daemon grew by %d MiB", grown>>20)
	if grown > flood {
		t.Errorf("the daemon grew by %d MiB", grown>>20)
	}
}

// highestResident is the most memory that a process has had.
func highestResident(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	var kib int
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

func TestExecBigOutput(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("sleep 1000")
	got, err := execSync(t.Context(), c.id, 60, "seq", "1", "300000")
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	for i := range 300000 {
		fmt.Fprintln(&want, i+1)
	}
	if !bytes.Equal(got.Stdout, want.Bytes()) {
		t.Errorf("%d bytes, want %d", len(got.Stdout), want.Len())
	}
}

func TestManyExecsAtOnce(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("sleep 1000")
	const n = 50
	errs := make(chan error, n)
	for i := range n {
		go func() {
			got, err := execSync(t.Context(), c.id, 60, "sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i))
			if err == nil && (string(got.Stdout) != fmt.Sprintf("%d\n", i) || got.ExitCode != int32(i)) {
				err = fmt.Errorf("exec %d: %v", i, got) //nolint:err113 // only its text is read
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestExecNeedsARunningContainer(t *testing.T) {
	begin(t)
	p := run(t)
	created := p.create("true")
	if _, err := execSync(t.Context(), created.id, 5, "true"); err == nil {
		t.Error("an exec in a created container")
	}
	exited := p.start("true")
	exited.wait()
	if _, err := execSync(t.Context(), exited.id, 5, "true"); err == nil {
		t.Error("an exec in an exited container")
	}
}

func TestExecEndsWithItsContainer(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("sleep 1000")
	done := make(chan error, 1)
	mark := filepath.Join("/tmp", "started")
	go func() {
		_, err := execSync(t.Context(), c.id, 60, "sh", "-c", "touch "+mark+"; sleep 1000")
		done <- err
	}()
	if err := harness.Until(t.Context(), patience, "the exec to start", func() bool {
		got, err := execSync(t.Context(), c.id, 10, "test", "-e", mark)
		return err == nil && got.ExitCode == 0
	}); err != nil {
		t.Fatal(err)
	}
	c.stop(0)
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("the exec goes on without its container")
	}
}

func TestCancelledExecIsKilled(t *testing.T) {
	differs(t, "lets it go on")
	begin(t)
	p := run(t)
	c := p.start("sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = execSync(ctx, c.id, 0, "sleep", "7654")
	}()
	running := func() string {
		got, err := execSync(t.Context(), c.id, 10, "sh", "-c", "ps -o args | grep -c '[s]leep 7654'")
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(string(got.Stdout))
	}
	if err := harness.Until(t.Context(), patience, "the exec to start", func() bool { return running() == "1" }); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	if err := harness.Until(t.Context(), patience, "the exec to be gone", func() bool { return running() == "0" }); err != nil {
		t.Error(err)
	}
}

func TestExecUnderMemoryLimit(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("sleep 1000", resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}))
	got, err := execSync(t.Context(), c.id, 60, "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
	if err != nil || got.ExitCode != 137 {
		t.Errorf("%v, %v, want code 137", got, err)
	}
	if _, err := os.Stat("/proc/self"); err != nil {
		t.Fatal(err)
	}
	if c.status().State == runtimeapi.ContainerState_CONTAINER_EXITED && !peer {
		t.Error("the container ended with its exec")
	}
}
