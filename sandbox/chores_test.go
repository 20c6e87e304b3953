package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func awaitGone(t *testing.T, path string) {
	t.Helper()
	end := time.Now().Add(time.Minute)
	for tick := time.NewTicker(10 * time.Millisecond); exists(path); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s is still there", path)
		}
	}
}

// Trash that cannot be removed now is removed later, without a restart.
func TestTrashLater(t *testing.T) {
	f := setUp(t)
	path := f.store.root("later") // what is in the trash goes as the store opens
	busy := filepath.Join(path, "busy")
	if err := os.MkdirAll(busy, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", busy, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(busy, unix.MNT_DETACH) })
	f.store.removeAll(path)
	if !exists(path) {
		t.Error("a directory with a mount in it was removed")
	}
	if err := unix.Unmount(busy, 0); err != nil {
		t.Fatal(err)
	}
	awaitGone(t, path)
}

// A stop that was cut off: the pod is not ready from the start on, and the stop
// is finished without being asked for again.
func TestStopIsFinished(t *testing.T) {
	f := setUp(t)
	b := f.pod()
	c := f.run(b, "c", "sh", "-c", forever)
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	b.markStopping()
	f.open()
	again, err := f.store.Sandbox(b.id)
	if err != nil || again.Status().State != sandboxNotReady {
		t.Fatal("a sandbox whose stop was cut off:", err)
	}
	if _, err := again.CreateContainer(context.Background(), containerConfig("d", runtimeapi.NamespaceMode_POD, "true"), f.image); !errors.Is(err, ErrState) {
		t.Error("create in it:", err)
	}
	awaitGone(t, b.state())
	f.store.background.Wait()
	if !again.record.Stopped {
		t.Error("it is not recorded as stopped")
	}
	if c, err := f.store.Container(c.id); err != nil || c.Status().State != stateExited {
		t.Error("its container:", err)
	}
}
