package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/conmon"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// mutilations calls try with every cut of content, and with each byte flipped:
// one bit of it. Of a long content it takes a part, with LONG=1 everything and each bit.
func mutilations(content []byte, try func(b []byte)) (n int) {
	bits, step := 1, 1+len(content)/400
	if os.Getenv("LONG") != "" {
		bits, step = 8, 1
	}
	for at := 0; at < len(content); at += step {
		try(content[:at])
		for bit := range bits {
			b := bytes.Clone(content)
			b[at] ^= 1 << ((at + bit) % 8)
			try(b)
			n++
		}
		n++
	}
	return n
}

// TestMutilatedFiles reads each file of a pod cut anywhere and with any byte
// flipped: it is damage, or reads as what was written.
func TestMutilatedFiles(t *testing.T) {
	f := setUpAudit(t)
	ctx := context.Background()
	if err := f.running.Update(ctx, &runtimeapi.LinuxContainerResources{CpuShares: 512}); err != nil {
		t.Fatal(err)
	}
	lost := f.ended.root(lostFile)
	if err := writeRecord(lost, &lostRecord{Reason: reasonUnknown, ExitCode: 255, FinishedAt: 1}, false); err != nil {
		t.Fatal(err)
	}
	s := f.store
	asJSON := func(v any, err error) (string, error) {
		b, _ := json.Marshal(v)
		return string(b), err
	}
	total := 0
	for path, read := range map[string]func() (string, error){
		f.b.root(sandboxFile): func() (string, error) {
			b, err := s.loadSandbox(f.b.id)
			if err != nil {
				return "", err
			}
			return asJSON(b.record, nil)
		},
		f.running.root(containerFile): func() (string, error) {
			c, err := s.loadContainer(f.running.id)
			if err != nil {
				return "", err
			}
			return asJSON(c.record, nil)
		},
		f.running.root(bundle):        func() (string, error) { return asJSON(f.running.readBundle()) },
		f.running.root(resourcesFile): func() (string, error) { return asJSON(f.running.readLimits()) },
		lost: func() (string, error) {
			var l lostRecord
			err := ledger.Read(lost, &l)
			return asJSON(&l, err)
		},
		f.ended.root(exitFile): func() (string, error) { return asJSON(conmon.ReadExit(f.ended.root())) },
		s.state(monitorsFile):  func() (string, error) { return s.config.monitorsCgroup(), nil },
	} {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := read()
		if err != nil {
			t.Fatal(err)
		}
		// Written in place: nothing here needs it to be whole at any moment.
		n := mutilations(content, func(b []byte) {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := read()
			switch {
			case err == nil && got != want:
				t.Errorf("%s is read as %s", path, got)
			case err != nil && !strings.Contains(err.Error(), path):
				t.Errorf("the error does not name %s: %v", path, err)
			}
		})
		total += n
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d", filepath.Base(path), n)
	}
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d mutilated records", total)
}

// TestMutilatedRecords starts with a damaged record of a pod that lives, and of one
// that has ended: that object alone goes, with all that it has on the host.
func TestMutilatedRecords(t *testing.T) {
	f := setUp(t)
	ctx := context.Background()
	bystander := f.run(f.podNamed("bystander"), "bystander", "sh", "-c", forever)
	for _, c := range []struct {
		name        string
		file        func(b *Sandbox, c *Container) string
		pod, listed bool // what is still known afterwards
		state       runtimeapi.ContainerState
	}{
		{"sandbox", func(b *Sandbox, _ *Container) string { return b.root(sandboxFile) }, false, false, 0},
		{"container", func(_ *Sandbox, c *Container) string { return c.root(containerFile) }, true, false, 0},
		{"bundle", func(_ *Sandbox, c *Container) string { return c.root(bundle) }, true, true, stateRunning},
		{"limits", func(_ *Sandbox, c *Container) string { return c.root(resourcesFile) }, true, true, stateRunning},
	} {
		for _, ended := range []bool{false, true} {
			for _, cut := range []bool{true, false} {
				name := c.name + map[bool]string{true: " of an ended pod", false: " of a living pod"}[ended] + map[bool]string{true: ", cut", false: ", flipped"}[cut]
				t.Run(name, func(t *testing.T) {
					config := f.podConfig("victim", runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD)
					b, err := f.store.Run(ctx, config, "")
					if err != nil {
						t.Fatal(err)
					}
					victim, err := b.CreateContainer(ctx, containerConfig("victim", runtimeapi.NamespaceMode_POD, "sh", "-c", forever), f.image)
					if err == nil {
						err = victim.Start(ctx)
					}
					if err == nil {
						err = victim.Update(ctx, &runtimeapi.LinuxContainerResources{CpuShares: 300})
					}
					if err == nil && ended {
						err = b.Stop(ctx)
					}
					if err != nil {
						t.Fatal(err)
					}
					if err := f.store.Close(); err != nil {
						t.Fatal(err)
					}
					path := c.file(b, victim)
					content, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					if cut {
						content = content[:len(content)/2]
					} else {
						content[len(content)/2] ^= 4
					}
					if err := os.WriteFile(path, content, 0o600); err != nil {
						t.Fatal(err)
					}
					f.open()
					f.store.background.Wait()
					f.afterMutilation(t, b, victim, c.pod, c.listed)
					if again, err := f.store.Container(bystander.id); err != nil || again.Status().State != stateRunning || f.exec(again, "echo", "here") != "here" {
						t.Error("the bystander:", err)
					}
					if found, err := Check(f.config, f.store.Memory()); err != nil || len(found.Findings) > 0 && !c.listed {
						t.Error(found, err)
					}
					if b, err := f.store.Sandbox(b.id); err == nil {
						if err := b.Remove(ctx); err != nil {
							t.Error(err)
						}
					}
					if err := os.RemoveAll(f.store.root("damaged")); err != nil {
						t.Error(err)
					}
					_ = os.Mkdir(f.store.root("damaged"), 0o700)
				})
			}
		}
	}
}

func (f *fixture) afterMutilation(t *testing.T, b *Sandbox, c *Container, pod, listed bool) {
	t.Helper()
	if _, err := f.store.Sandbox(b.id); (err == nil) != pod {
		t.Errorf("sandbox: %v", err)
	}
	if _, err := f.store.Container(c.id); (err == nil) != listed {
		t.Errorf("container: %v", err)
	}
	damaged, err := f.store.Damaged()
	if err != nil || (len(damaged) == 1) == (pod && listed) {
		t.Errorf("moved aside: %+v %v", damaged, err)
	}
	for _, d := range damaged {
		if !strings.Contains(d.Reason, ".json") || d.Remedy == "" || d.From == "" {
			t.Errorf("%+v says too little", d)
		}
	}
	if listed {
		return
	}
	if _, err := f.store.cgroups.Load(c.record.Cgroup); err == nil {
		t.Errorf("the container's cgroup is left")
	}
	if mounts, err := mountsBelow(b.state()); err != nil || !pod && len(mounts) > 0 {
		t.Errorf("mounts %v are left (%v)", mounts, err)
	}
}

// TestMutilatedMarks starts with files whose being there says all: whatever is in
// them, and in the file that says where the monitors are.
func TestMutilatedMarks(t *testing.T) {
	f := setUp(t)
	b := f.podNamed("pod")
	c := f.run(b, "running", "sh", "-c", forever)
	for _, content := range []string{"", "\x00", "{", `{"Cgroup":"/elsewhere/` + filepath.Base(f.config.monitorsCgroup()) + `","crc32c":"00000000"}`, "\xff/" + strings.Repeat("x", 1<<16)} {
		if err := f.store.Close(); err != nil {
			t.Fatal(err)
		}
		file(t, f.store.state(monitorsFile), content)
		f.open()
		c, err := f.store.Container(c.id)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.exec(c, "echo", "here"); got != "here" {
			t.Errorf("%.20q: exec after the start: %q", content, got)
		}
		if place := f.store.config.monitorsCgroup(); !strings.HasPrefix(place, f.config.CgroupParent+"/") {
			t.Errorf("%.20q: the monitors are taken to be in %s", content, place)
		}
	}
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	file(t, b.root(stoppingFile), "\x00rubbish")
	file(t, b.root(stoppingFile+".tmp"), "{")
	f.open()
	f.store.background.Wait()
	again, err := f.store.Sandbox(b.id)
	if err != nil || again.Status().State == sandboxReady || !again.record.Stopped {
		t.Errorf("a stop that was cut off: %v", err)
	}
	if found, err := Check(f.config, f.store.Memory()); err != nil || len(found.Findings) > 0 {
		t.Error(found, err)
	}
}

// TestMutilatedReasons: what was moved aside is told whatever has become of the reason.
func TestMutilatedReasons(t *testing.T) {
	f := setUp(t)
	dir := f.store.root("damaged", strings.Repeat("0f", 32)+"-12345678")
	defer directory(t, dir)()
	path := filepath.Join(dir, reasonFile)
	want := Damaged{From: "/from", Reason: "why", Remedy: remedyAside}
	if err := writeRecord(path, &want, false); err != nil {
		t.Fatal(err)
	}
	want.Dir = dir
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d mutilations", mutilations(content, func(b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := f.store.Damaged()
		if err != nil || len(got) != 1 || got[0].Dir != dir || got[0].Remedy == "" || got[0].From != "" && got[0] != want {
			t.Fatalf("%q: %+v %v", b, got, err)
		}
	}))
}
