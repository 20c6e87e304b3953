package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRestartKeepsContainers(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	b := f.pod()
	running, ends := f.run(b, "running", "sh", "-c", forever), f.run(b, "ends", "sh", "-c", forever)
	created := f.create(b, "created", "true")
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(ends.Status().PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitFile(t, ends.root("exit"))
	f.open()
	get := func(old *Container) *Container {
		c, err := f.store.Container(old.id)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if st := get(running).Status(); st.State != stateRunning || st.PID != running.Status().PID || st.StartedAt != running.Status().StartedAt || st.User == nil {
		t.Errorf("running: %+v", st)
	}
	if st := get(ends).Status(); st.State != stateExited || st.ExitCode != 7 || st.FinishedAt == 0 {
		t.Errorf("ended meanwhile: %+v", st)
	}
	c := get(created)
	if err := c.Start(ctx); err != nil {
		t.Fatal("start what an earlier daemon created:", err)
	}
	if st := f.await(c); st.ExitCode != 0 || st.Reason != reasonCompleted {
		t.Errorf("%+v", st)
	}
	if got := f.exec(get(running), "echo", "still"); got != "still" {
		t.Errorf("exec after a restart: %q", got)
	}
	same, err := f.store.Run(ctx, b.Status().Config, "")
	if err != nil || same.id != b.id {
		t.Error("the same RunPodSandbox after a restart:", err)
	}
}

func awaitFile(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	for !exists(path) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, 20_000); n == 0 || (err != nil && !errors.Is(err, unix.EINTR)) {
			t.Fatal("no file", path, err)
		}
		var drop [4096]byte
		_, _ = unix.Read(fd, drop[:])
	}
}

// TestReboot takes away what a reboot does: the state directory, and all processes.
func TestReboot(t *testing.T) {
	f := setUp(t)
	b, err := f.store.Run(context.Background(), f.podConfig("net", runtimeapi.NamespaceMode_POD, 1), "")
	if err != nil {
		t.Fatal(err)
	}
	c := f.run(b, "c", "sh", "-c", forever)
	pid := c.Status().PID
	monitor := parent(t, pid)
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	kill(t, monitor)
	kill(t, pid)
	awaitExit(fd, pid)
	if err := errors.Join(b.unmountState(), os.RemoveAll(c.state())); err != nil {
		t.Fatal(err)
	}
	f.open()
	f.store.background.Wait()
	again, err := f.store.Sandbox(b.id)
	if err != nil || again.Status().State != sandboxNotReady {
		t.Fatal("sandbox after a reboot:", err)
	}
	if n := f.net.detached.Load(); n != 1 {
		t.Errorf("%d detachments after a reboot", n)
	}
	lost, err := f.store.Container(c.id)
	if err != nil {
		t.Fatal(err)
	}
	if st := lost.Status(); st.State != stateExited || st.Reason != reasonUnknown || st.ExitCode != 255 {
		t.Errorf("%+v", st)
	}
}

// TestHalfMade finds records of verbs that a crash interrupted.
func TestHalfMade(t *testing.T) {
	f := setUp(t)
	b := f.pod()
	c := f.create(b, "c", "true")
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	b.record.Ready = false
	if err := errors.Join(b.writeRecord(false), os.Rename(c.root(bundle), c.root(unfinishedBundle))); err != nil {
		t.Fatal(err)
	}
	f.open()
	f.store.background.Wait()
	if n := len(f.store.Sandboxes()) + len(f.store.Containers()); n > 0 {
		t.Errorf("%d half made objects are known", n)
	}
}

func TestDamagedRecords(t *testing.T) {
	f := setUp(t)
	b := f.pod()
	f.run(b, "c", "sh", "-c", forever)
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	for dir, record := range map[string]string{"sandboxes": "sandbox.json", "containers": "container.json"} {
		bad, empty := f.store.root(dir, "bad"), f.store.root(dir, "empty")
		if err := errors.Join(os.Mkdir(bad, 0o700), os.Mkdir(empty, 0o700), os.WriteFile(filepath.Join(bad, record), []byte("{"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	// A monitor is begun beside the record.
	begun := f.store.state("containers", strings.Repeat("0e", 32))
	if err := errors.Join(os.Mkdir(begun, 0o700), os.WriteFile(filepath.Join(begun, "monitor.sock"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	stray := f.store.state("containers", "stray")
	if err := os.Mkdir(stray, 0o700); err != nil {
		t.Fatal(err)
	}
	f.open()
	f.store.background.Wait()
	if exists(stray) || exists(begun) {
		t.Error("a state directory without a record is left")
	}
	if len(f.store.Sandboxes()) != 1 || len(f.store.Containers()) != 1 {
		t.Error("a damaged record took others with it")
	}
	aside, err := os.ReadDir(f.store.root("damaged"))
	if err != nil || len(aside) != 2 {
		t.Error("quarantine holds", aside, err)
	}
	for _, dir := range []string{"sandboxes", "containers"} {
		if exists(f.store.root(dir, "empty")) {
			t.Error("a directory without a record is left in", dir)
		}
	}
}
