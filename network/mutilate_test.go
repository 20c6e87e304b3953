package network

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// mutilations calls try with every cut of content, and with each byte flipped:
// one bit of it, chosen by a seed that is printed. LONG=1 flips each bit.
func mutilations(t *testing.T, content []byte, try func(what string, b []byte)) (n int) {
	t.Helper()
	seed := rand.Uint64()
	chance := rand.New(rand.NewPCG(seed, 0))
	for at := range content {
		try("cut", content[:at])
		n++
		for bit := range 8 {
			if os.Getenv("LONG") == "" {
				bit = chance.IntN(8)
			}
			b := bytes.Clone(content)
			b[at] ^= 1 << bit
			try("flipped", b)
			if n++; os.Getenv("LONG") == "" {
				break
			}
		}
	}
	t.Logf("%d mutilations of %d bytes, seed %d", n, len(content), seed)
	return n
}

func readBytes(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// mutilated is a network with a pod of a plugin that has host ports, bandwidth and
// an attachment that was kept elsewhere.
func mutilated(t *testing.T) (*fakes, *Network, Pod, *Attachment) {
	t.Helper()
	f := newFakes(t)
	f.plugin("p", good)
	f.conf("10.conflist", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"p","capabilities":{"portMappings":true,"bandwidth":true}}]}`)
	n := open(t, f.config)
	pod := f.pod("a1")
	pod.PortMappings = hostPort(8080, 80)
	pod.Annotations = map[string]string{egressBandwidth: "1M"}
	att, err := n.Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	return f, n, pod, att
}

// TestMutilatedRecords: the record of an attachment, or libcni's file of it, cut
// anywhere or with a flipped bit: the next start has what was written, or writes
// the record anew and does without libcni's file.
func TestMutilatedRecords(t *testing.T) {
	f, n, pod, att := mutilated(t)
	record, result := n.recordPath(pod.ID), n.resultPath(att.Network, pod.ID)
	whole, cached := readBytes(t, record), readBytes(t, result)
	want, err := n.readRecord(pod.ID)
	if err != nil || want == nil {
		t.Fatal(want, err)
	}
	mutilations(t, whole, func(what string, b []byte) {
		write(t, record, string(b))
		if got, err := n.readRecord(pod.ID); err != nil || got != nil && !reflect.DeepEqual(got, want) {
			t.Fatalf("%s to %s: read as %+v, %v", what, b, got, err)
		}
		if err := n.Restore(pod, att); err != nil {
			t.Fatalf("%s to %s: %v", what, b, err)
		}
		got, err := n.readRecord(pod.ID)
		if err != nil || got == nil {
			t.Fatalf("%s to %s: the record was not written anew: %v", what, b, err)
		}
		a, _ := json.Marshal(got)
		if w, _ := json.Marshal(want); !bytes.Equal(a, w) {
			t.Fatalf("%s to %s: the new record is %s", what, b, a)
		}
	})
	write(t, record, string(whole))
	var is, was cachedResult
	if err := json.Unmarshal(cached, &was); err != nil {
		t.Fatal(err)
	}
	mutilations(t, cached, func(what string, b []byte) {
		write(t, result, string(b))
		ids, err := n.attached()
		if _, ok := ids[pod.ID]; err != nil || len(ids) != 1 || !ok {
			t.Fatalf("%s to %s: attached: %v, %v", what, b, ids, err)
		}
		if err := n.Restore(pod, att); err != nil {
			t.Fatalf("%s to %s: %v", what, b, err)
		}
		left, err := os.ReadFile(result)
		if err != nil {
			return // it is gone, and the attachment's own result serves
		}
		is = cachedResult{}
		if err := json.Unmarshal(left, &is); err != nil || !reflect.DeepEqual(is, was) {
			t.Fatalf("%s to %s: is left, and says %+v", what, left, is)
		}
	})
	write(t, result, "{")
	if err := n.Restore(pod, att); err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(t.Context(), pod, att); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(f.read("p.DEL.stdin"), "10.9.0.2") {
		t.Error("DEL without the result")
	}
	f.empty()
}

// TestMutilatedWithoutPod: of a pod that is gone both files are damaged. A start
// detaches it once and leaves nothing, whatever they say.
func TestMutilatedWithoutPod(t *testing.T) {
	f, n, pod, att := mutilated(t)
	record, result := n.recordPath(pod.ID), n.resultPath(att.Network, pod.ID)
	whole, cached := readBytes(t, record), readBytes(t, result)
	for _, cut := range []bool{true, false} {
		damage := func(b []byte) []byte {
			if cut {
				return b[:len(b)/2]
			}
			b = bytes.Clone(b)
			b[bytes.Index(b, []byte("a1"))+1] ^= 2 // another sandbox, in libcni's file
			return b
		}
		for _, both := range []bool{true, false} {
			write(t, result, string(damage(cached)))
			if both {
				write(t, record, string(damage(whole)))
			} else {
				write(t, record, string(whole))
			}
			if err := os.Remove(filepath.Join(f.dir, "calls")); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := n.GC(t.Context(), only()); err != nil {
					t.Error(err)
				}
			}
			if got := f.calls(); got != "DEL p a1" {
				t.Errorf("cut %t, both %t: calls %s", cut, both, got)
			}
			f.empty()
		}
	}
}

// TestMutilatedSubnets: the node's subnets, cut anywhere or with a flipped bit:
// they are what was written, or those of the configuration.
func TestMutilatedSubnets(t *testing.T) {
	nodeNamespace(t)
	f := newFakes(t)
	f.withBuiltin()
	n := open(t, f.config)
	want := []netip.Prefix{netip.MustParsePrefix("10.80.0.0/24"), netip.MustParsePrefix("fd80::/64")}
	if err := n.SetSubnets(want); err != nil {
		t.Fatal(err)
	}
	path := n.subnetsPath()
	mutilations(t, readBytes(t, path), func(what string, b []byte) {
		write(t, path, string(b))
		if got := n.keptSubnets(); got != nil && !slices.Equal(got, want) {
			t.Errorf("%s to %s: %v", what, b, got)
		}
	})
	for _, text := range []string{"", "{", `["10.80.0.1/24"]`, `["10.80.0.0/24"]`, `{"subnets":["127.0.0.0/8"]}`, `{"subnets":["10.80.0.7/24"]}`, "\xff", strings.Repeat("[", 1<<20)} {
		write(t, path, text)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		n = open(t, f.config)
		if got := n.Status().Subnets; !slices.Equal(got, f.config.Builtin.Subnets) {
			t.Errorf("%.20q: %v", text, got)
		}
	}
}

// TestMutilatedConfiguration: a configuration list, cut anywhere or with a flipped
// bit, is refused with its name or is another list: the network stays open, and what
// is attached is detached as it was attached.
func TestMutilatedConfiguration(t *testing.T) {
	f, n, pod, att := mutilated(t)
	path := filepath.Join(f.config.ConfDir, "10.conflist")
	content := readBytes(t, path)
	refused := 0
	mutilations(t, content, func(what string, b []byte) {
		write(t, path, string(b))
		if err := n.Ready(); err != nil {
			refused++
			if s := n.Status(); !strings.Contains(err.Error(), "10.conflist") {
				t.Errorf("%s to %s: the error does not name the file: %v (%v)", what, b, err, s.Refused)
			}
		}
	})
	if refused < len(content) {
		t.Errorf("%d were refused, which is less than all cuts", refused)
	}
	if err := n.Detach(t.Context(), pod, att); err != nil {
		t.Fatal(err)
	}
	if got := strings.ReplaceAll(f.calls(), "STATUS p , ", ""); got != "ADD p a1, DEL p a1" {
		t.Errorf("calls %s", got)
	}
	f.empty()
}
