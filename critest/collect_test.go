package critest

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// TestStartCollectsLeases: a pod whose record is lost gives its address back when the
// daemon starts; one that lives keeps its own.
func TestStartCollectsLeases(t *testing.T) {
	differs(t, "other records")
	begin(t)
	if node.Bridge == "" {
		t.Skip("needs CNI plugins: the built-in network has no leases of theirs")
	}
	lost, kept := run(t, podNetwork), run(t, podNetwork)
	lease := func(p *pod) string {
		return filepath.Join(node.Dir, "ipam", node.Tag+"net", p.status().Network.GetIp())
	}
	gone, stays := lease(lost), lease(kept)
	for _, file := range []string{gone, stays} {
		if _, err := os.Stat(file); err != nil {
			t.Fatal(err)
		}
	}
	if err := node.Signal(syscall.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(node.Dir, "root", "sandboxes", lost.id)); err != nil {
		t.Fatal(err)
	}
	if err := node.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := harness.Until(t.Context(), patience, "the lost pod's lease to go", func() bool {
		_, err := os.Stat(gone)
		return errors.Is(err, os.ErrNotExist)
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stays); err != nil {
		t.Error("the live pod's lease:", err)
	}
	if got := kept.output("ip -4 addr show eth0 | grep -c inet"); got != "1" {
		t.Errorf("addresses of the live pod: %q", got)
	}
}
