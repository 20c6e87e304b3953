package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// audited is a store with a pod that lives: one of its containers runs, one has ended.
type auditFixture struct {
	*fixture
	b              *Sandbox
	running, ended *Container
	memory         *Memory
}

func setUpAudit(t *testing.T) *auditFixture {
	t.Helper()
	f := &auditFixture{fixture: setUp(t)}
	var err error
	if f.b, err = f.store.Run(context.Background(), f.podConfig("audited", runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER), ""); err != nil {
		t.Fatal(err)
	}
	f.running, f.ended = f.run(f.b, "running", "sh", "-c", forever), f.run(f.b, "ended", "true")
	f.await(f.ended)
	awaitFile(t, f.ended.root(exitFile))
	f.store.background.Wait()
	return f
}

// findings checks with what the daemon knows, after change of it.
func (f *auditFixture) findings(change func(m *Memory)) ledger.Findings {
	f.t.Helper()
	f.memory = f.store.Memory()
	if change != nil {
		change(f.memory)
	}
	a, err := Check(f.config, f.memory)
	if err != nil {
		f.t.Fatal(err)
	}
	return a.Findings
}

// file replaces a file, and returns what puts the old one back.
func file(t testing.TB, path, content string) func() {
	t.Helper()
	old, readErr := os.ReadFile(path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
	return func() {
		err := os.Remove(path)
		if readErr == nil {
			err = os.WriteFile(path, old, 0o600)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func directory(t testing.TB, path string) func() {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return func() { _ = os.RemoveAll(path) }
}

// copyOf makes the record of a container that there is not.
func (f *auditFixture) copyOf(id, box string) func() {
	f.t.Helper()
	r := f.running.record
	r.ID, r.SandboxID, r.Cgroup = id, box, f.b.containerCgroup(id)
	undo := directory(f.t, f.store.root("containers", id))
	if err := writeRecord(f.store.root("containers", id, containerFile), &r, false); err != nil {
		f.t.Fatal(err)
	}
	data, err := os.ReadFile(f.running.root(bundle))
	if err == nil {
		err = os.WriteFile(f.store.root("containers", id, bundle), data, 0o600)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return undo
}

func (f *auditFixture) stray(cgroup string) func() {
	f.t.Helper()
	cg, err := f.store.cgroups.Create(cgroup, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	return func() {
		if err := cg.Remove(context.Background()); err != nil {
			f.t.Error(err)
		}
	}
}

// TestCheckFinds breaks one thing at a time; the check names it.
func TestCheckFinds(t *testing.T) {
	f := setUpAudit(t)
	ghost := strings.Repeat("0f", 32)
	mountAt := func(t *testing.T, dir string) func() {
		if err := unix.Mount("stray", dir, "tmpfs", 0, "size=4k"); err != nil {
			t.Fatal(err)
		}
		return func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }
	}
	for _, c := range []struct {
		name, want string
		damage     func(t *testing.T) func()
		memory     func(m *Memory)
	}{
		{"foreign file", "it is nothing of ours", func(t *testing.T) func() { return file(t, f.store.root("sandboxes", "notes.txt"), "") }, nil},
		{"sandbox without record", ghost + ": it has no record", func(t *testing.T) func() { return directory(t, f.store.root("sandboxes", ghost)) }, nil},
		{"container without record", ghost + ": it has no record", func(t *testing.T) func() { return directory(t, f.store.root("containers", ghost)) }, nil},
		{"sandbox record cut", "sandbox.json: record", func(t *testing.T) func() { return file(t, f.b.root(sandboxFile), `{"ID":`) }, nil},
		{"container record cut", "container.json: record", func(t *testing.T) func() { return file(t, f.running.root(containerFile), "") }, nil},
		{"sandbox of a container", "its sandbox " + ghost + " has no record", func(*testing.T) func() { return f.copyOf(ghost, ghost) }, nil},
		{"parts", "its parts do not fit together", func(t *testing.T) func() {
			r := f.b.record
			r.Attachment = nil
			undo := file(t, f.b.root(sandboxFile), "")
			if err := writeRecord(f.b.root(sandboxFile), &r, false); err != nil {
				t.Fatal(err)
			}
			return undo
		}, nil},
		{"exit", "damaged exit record", func(t *testing.T) func() { return file(t, f.ended.root(exitFile), "code 1") }, nil},
		{"exit of a running one", "the daemon says that the container is running; that there is a record of its end: true", func(t *testing.T) func() { return file(t, f.running.root(exitFile), "x") }, nil},
		{"lost", "lost.json: record", func(t *testing.T) func() { return file(t, f.ended.root(lostFile), "{") }, nil},
		{"bundle", "config.json: read bundle", func(t *testing.T) func() { return file(t, f.running.root(bundle), "{}") }, nil},
		{"limits", "resources.json: record", func(t *testing.T) func() { return file(t, f.running.root(resourcesFile), "[") }, nil},
		{"state of no sandbox", "no sandbox has this id", func(t *testing.T) func() { return directory(t, f.store.state("sandboxes", ghost)) }, nil},
		{"state of no container", "no container has this id", func(t *testing.T) func() { return directory(t, f.store.state("containers", ghost)) }, nil},
		{"mount", "this mount belongs to no sandbox", func(t *testing.T) func() {
			undo := directory(t, f.b.state("extra"))
			unmount := mountAt(t, f.b.state("extra"))
			return func() { unmount(); undo() }
		}, nil},
		{"mount twice", "2 mounts are on one another", func(t *testing.T) func() { return mountAt(t, f.b.state("shm")) }, nil},
		{"pin", "but this mount of it is gone", func(t *testing.T) func() {
			if err := unpin(f.b.state("ns", "uts")); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := pinNamespace(fmt.Sprintf("/proc/%d/ns/uts", f.running.Status().PID), f.b.state("ns", "uts")); err != nil {
					t.Error(err)
				}
			}
		}, nil},
		{"namespace", "of its namespaces one at least is gone", func(t *testing.T) func() {
			if err := unpin(f.b.state("ns", "ipc")); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := pinNamespace(fmt.Sprintf("/proc/%d/ns/ipc", f.running.Status().PID), f.b.state("ns", "ipc")); err != nil {
					t.Error(err)
				}
			}
		}, nil},
		{"cgroup of no sandbox", "this cgroup belongs to no sandbox", func(*testing.T) func() { return f.stray(filepath.Join(f.config.CgroupParent, ghost)) }, nil},
		{"cgroup of no container", "this cgroup belongs to no container", func(*testing.T) func() { return f.stray(filepath.Join(f.b.record.Cgroup, ghost)) }, nil},
		{"cgroup of no reaper", "this cgroup belongs to no shared PID namespace", func(*testing.T) func() { return f.stray(filepath.Join(f.b.record.Cgroup, "pause-"+f.b.id)) }, nil},
		{"process of an ended container", "the container has ended, but processes", func(t *testing.T) func() { return f.intruder(t) }, nil},
		{"monitor of no container", "this monitor serves a container that no record names", func(t *testing.T) func() {
			aside := f.store.root("trash", f.running.id+"-x")
			if err := os.Rename(f.running.root(), aside); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Rename(aside, f.running.root()) }
		}, nil},
		{"reaper", "the reaper of its PID namespace, process 1, is gone", func(t *testing.T) func() {
			r := f.b.record
			r.Pause = &pauseRecord{PID: 1, StartTime: 1 << 62}
			undo := file(t, f.b.root(sandboxFile), "")
			if err := writeRecord(f.b.root(sandboxFile), &r, false); err != nil {
				t.Fatal(err)
			}
			return undo
		}, nil},
		{"forgotten sandbox", "the daemon does not know this sandbox", nil, func(m *Memory) { m.Sandboxes = nil }},
		{"ghost sandbox", "knows this sandbox, but there is no record", nil, func(m *Memory) { m.Sandboxes = append(m.Sandboxes, SandboxMemory{ID: ghost}) }},
		{"sandbox not ready", "but its sandbox is not ready", nil, func(m *Memory) { m.Sandboxes[0].Ready = false }},
		{"forgotten container", "the daemon does not know this container", nil, func(m *Memory) { m.Containers = m.Containers[:1] }},
		{"ghost container", "knows this container, but there is no record", nil, func(m *Memory) { m.Containers = append(m.Containers, ContainerMemory{ID: ghost}) }},
		{"no monitor", "the container is running, but it has no monitor", func(*testing.T) func() { return f.copyOf(ghost, f.b.id) }, func(m *Memory) {
			m.Containers = append(m.Containers, ContainerMemory{ID: ghost, SandboxID: f.b.id, State: "running", PID: 1})
		}},
		{"process elsewhere", "its process 1 is not in its cgroup", nil, func(m *Memory) { m.Containers[0].PID = 1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if found := f.findings(nil); len(found) > 0 {
				t.Fatal("before:", found)
			}
			if c.damage != nil {
				defer c.damage(t)()
			}
			found := f.findings(c.memory)
			var text strings.Builder
			for _, one := range found {
				text.WriteString(one.String() + "\n")
				if one.Path == "" || one.Problem == "" || one.Remedy == "" {
					t.Errorf("a part is missing of %+v", one)
				}
			}
			if !strings.Contains(text.String(), c.want) {
				t.Errorf("want %q, found:\n%s", c.want, text.String())
			}
		})
	}
	if found := f.findings(nil); len(found) > 0 {
		t.Error("in the end:", found)
	}
}

// intruder is a process in the cgroup of the container that has ended.
func (f *auditFixture) intruder(t *testing.T) func() {
	t.Helper()
	sleep := exec.Command("sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	cg, err := f.store.cgroups.Create(f.ended.record.Cgroup, nil)
	if err != nil {
		t.Fatal(err)
	}
	files := cg.JoinPaths()
	if f.store.cgroups.V2() {
		files = []string{cg.Path() + "/cgroup.procs"}
	}
	for _, p := range files {
		if err := os.WriteFile(p, fmt.Appendf(nil, "%d", sleep.Process.Pid), 0); err != nil {
			t.Error(err)
		}
	}
	return func() { _, _ = sleep.Process.Kill(), sleep.Wait() }
}

// TestCheckWithoutDaemon: what a crash may leave half made is no finding then.
func TestCheckWithoutDaemon(t *testing.T) {
	f := setUpAudit(t)
	ghost := strings.Repeat("0e", 32)
	r := f.b.record
	r.ID, r.Ready, r.Attachment, r.Cgroup = ghost, false, nil, filepath.Join(f.config.CgroupParent, ghost)
	defer directory(t, f.store.root("sandboxes", ghost))()
	defer directory(t, f.store.root("containers", ghost))()
	defer directory(t, f.store.state("containers", ghost))()
	if err := writeRecord(f.store.root("sandboxes", ghost, sandboxFile), &r, false); err != nil {
		t.Fatal(err)
	}
	a, err := Check(f.config, nil)
	if err != nil || len(a.Findings) > 0 {
		t.Error(a, err)
	}
	if found := f.findings(nil); len(found) < 3 {
		t.Error("with a daemon they are findings:", found)
	}
}
