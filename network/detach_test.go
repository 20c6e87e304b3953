package network

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDaemonKilledInAdd: the plugin ends with the daemon, and the next one
// runs DEL with the configuration that ADD began with.
func TestDaemonKilledInAdd(t *testing.T) {
	f := newFakes(t)
	f.plugin("p", `[ $CNI_COMMAND != ADD ] || { echo $$ >"$d/pid.new"; mv "$d/pid.new" "$d/pid"; exec sleep 1000; }`)
	f.conf("10.conflist", listOf("net", "p"))
	pod := f.pod("killed")
	write(t, f.dir+"/net", "")
	if err := unix.Mount(pod.NetNS, f.dir+"/net", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dropNetNS(t, f.dir+"/net") })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	daemon := exec.Command(self)
	daemon.Env, daemon.Stderr = append(os.Environ(), helperEnv+"="+f.dir), &stderr
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	pid := waitFor(t, f.dir+"/pid")
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait()
	if stderr.Len() > 0 {
		t.Log(stderr.String())
	}
	gone(t, pid)
	if err := os.RemoveAll(f.config.ConfDir); err != nil {
		t.Fatal(err)
	}
	n := open(t, f.config)
	pod.NetNS = f.dir + "/net"
	if err := n.Detach(t.Context(), pod, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := f.calls(), "ADD p killed, DEL p killed"; got != want {
		t.Errorf("calls %s, want %s", got, want)
	}
	if got := f.read("p.DEL.netns"); got != pod.NetNS {
		t.Errorf("DEL with namespace %q", got)
	}
	f.empty()
}

func TestDetachSources(t *testing.T) {
	lost := func(t *testing.T, name string) {
		if err := os.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		lose  func(t *testing.T, f *fakes, att *Attachment) *Attachment
		calls string // of DEL
	}{
		"all there": {func(_ *testing.T, _ *fakes, att *Attachment) *Attachment { return att }, "old"},
		"only the attachment": {func(t *testing.T, f *fakes, att *Attachment) *Attachment {
			lost(t, f.config.CacheDir+"/results")
			lost(t, f.config.CacheDir+"/attachments/a1.json")
			return att
		}, "old"},
		"only the record": {func(t *testing.T, f *fakes, _ *Attachment) *Attachment {
			lost(t, f.config.CacheDir+"/results")
			return nil
		}, "old"},
		"only the cache": {func(t *testing.T, f *fakes, _ *Attachment) *Attachment {
			lost(t, f.config.CacheDir+"/attachments/a1.json")
			return nil
		}, "old"},
		"record cut short": {func(t *testing.T, f *fakes, _ *Attachment) *Attachment {
			write(t, f.config.CacheDir+"/attachments/a1.json", `{"net`)
			return nil
		}, "old"},
		"record damaged, no cache": {func(t *testing.T, f *fakes, _ *Attachment) *Attachment {
			lost(t, f.config.CacheDir+"/results")
			write(t, f.config.CacheDir+"/attachments/a1.json", `{"net`)
			return nil
		}, "new"},
		"cache damaged, no record": {func(t *testing.T, f *fakes, _ *Attachment) *Attachment {
			write(t, f.config.CacheDir+"/results/net-a1-eth0", `{"kind`)
			lost(t, f.config.CacheDir+"/attachments/a1.json")
			return nil
		}, "new"},
		"damaged attachment": {func(_ *testing.T, _ *fakes, att *Attachment) *Attachment {
			att.Config = []byte("{\xff")
			return att
		}, "old"},
		"damaged result": {func(t *testing.T, f *fakes, att *Attachment) *Attachment {
			lost(t, f.config.CacheDir+"/results")
			att.Result = []byte("{")
			return att
		}, "old"},
		"nothing": {func(t *testing.T, f *fakes, _ *Attachment) *Attachment {
			lost(t, f.config.CacheDir+"/results")
			lost(t, f.config.CacheDir+"/attachments/a1.json")
			return nil
		}, ""},
		"not even a configuration": {func(t *testing.T, f *fakes, _ *Attachment) *Attachment {
			lost(t, f.config.CacheDir+"/results")
			lost(t, f.config.CacheDir+"/attachments/a1.json")
			lost(t, f.config.ConfDir)
			return nil
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakes(t)
			f.plugin("old", good)
			f.plugin("new", good)
			f.conf("10.conflist", listOf("net", "old"))
			n := open(t, f.config)
			pod := f.pod("a1")
			att, err := n.Attach(t.Context(), pod)
			if err != nil {
				t.Fatal(err)
			}
			dropNetNS(t, pod.NetNS)
			f.conf("10.conflist", listOf("net2", "new"))
			att = test.lose(t, f, att)
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // the RPC's end does not stop DEL
			if err := n.Detach(ctx, pod, att); err != nil {
				t.Fatal(err)
			}
			want := "ADD old a1"
			if test.calls != "" {
				want += ", DEL " + test.calls + " a1"
				if got := f.read(test.calls + ".DEL.netns"); got != "" {
					t.Errorf("DEL with namespace %q", got)
				}
			}
			if got := f.calls(); got != want {
				t.Errorf("calls %s, want %s", got, want)
			}
			if name == "only the attachment" && !strings.Contains(f.read("old.DEL.stdin"), "10.9.0.2") {
				t.Error("DEL without the result")
			}
			f.empty()
		})
	}
}

func TestDetachRetried(t *testing.T) {
	f := newFakes(t)
	f.plugin("p", `[ $CNI_COMMAND != DEL ] || exit 1
`+good)
	f.conf("10.conflist", listOf("net", "p"))
	n := open(t, f.config)
	pod := f.pod("a1")
	att, err := n.Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(t.Context(), pod, att); err == nil || !strings.Contains(err.Error(), "DEL by plugin p") {
		t.Errorf("%v", err)
	}
	if err := os.Remove(f.config.BinDirs[0] + "/p"); err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(t.Context(), pod, att); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "no executable p") {
		t.Errorf("%v", err)
	}
	// A second ADD makes up for the DEL that is missing.
	f.plugin("p", good)
	if att, err = n.Attach(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(t.Context(), pod, att); err != nil {
		t.Fatal(err)
	}
	if got, want := f.calls(), "ADD p a1, DEL p a1, DEL p a1, ADD p a1, DEL p a1"; got != want {
		t.Errorf("calls %s, want %s", got, want)
	}
	f.empty()
}

// TestMendedConfiguration: what a wrong configuration left is cleaned up by
// the right one.
func TestMendedConfiguration(t *testing.T) {
	f := newFakes(t)
	f.plugin("p", good)
	f.plugin("q", `! grep -q wrong "$d/q.$CNI_COMMAND.stdin" || exit 1
`+good)
	f.conf("10.conflist", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"p"},{"type":"q","mode":"wrong"}]}`)
	n := open(t, f.config)
	pod := f.pod("a1")
	if _, err := n.Attach(t.Context(), pod); err == nil {
		t.Fatal("no error")
	}
	if err := n.Detach(t.Context(), pod, nil); err == nil {
		t.Fatal("no error")
	}
	f.conf("10.conflist", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"p"},{"type":"q","mode":"right"}]}`)
	if err := n.Detach(t.Context(), pod, nil); err != nil {
		t.Error(err)
	}
	if got, want := f.calls(), "ADD p a1, ADD q a1, DEL q a1, DEL q a1, DEL q a1, DEL q a1, DEL p a1"; got != want {
		t.Errorf("calls %s, want %s", got, want)
	}
	f.empty()
}

func TestGC(t *testing.T) {
	f := newFakes(t)
	f.plugin("p", good)
	f.conf("10.conflist", `{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"p"}]}`)
	n := open(t, f.config)
	kept := f.pod("kept")
	for _, pod := range []Pod{kept, f.pod("stale")} {
		if _, err := n.Attach(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.GC(t.Context(), only("kept")); err != nil {
		t.Fatal(err)
	}
	if got := f.calls(); !strings.Contains(got, "DEL p stale") || strings.Contains(got, "DEL p kept") || !strings.Contains(got, "GC p") {
		t.Errorf("calls %s", got)
	}
	if got := normal(t, f.read("p.GC.stdin"), "cni.dev/valid-attachments"); got != `[{"containerID":"kept","ifname":"eth0"}]` {
		t.Errorf("valid attachments %s", got)
	}
	if err := n.GC(t.Context(), only()); err != nil {
		t.Fatal(err)
	}
	f.empty()
}
