package network

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/network/builtin"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// auditFixture is a node with a pod of the built-in network, and one that a plugin attached.
type auditFixture struct {
	*fakes
	t    *testing.T
	n    *Network
	pods []Expected
}

func newAuditFixture(t *testing.T) *auditFixture {
	t.Helper()
	path := nodeNamespace(t)
	f := &auditFixture{fakes: newFakes(t), t: t}
	f.withBuiltin()
	f.n = open(t, f.config)
	attach := func(id string) {
		att, err := f.n.Attach(t.Context(), Pod{ID: id, NetNS: path})
		if err != nil {
			t.Fatal(err)
		}
		f.pods = append(f.pods, Expected{ID: id, NetNS: path, Own: true, Attachment: att})
	}
	attach("own")
	f.plugin("p", good)
	f.conf("10.conflist", listOf("net", "p"))
	attach("cni")
	return f
}

// as returns the pods with one of them changed.
func (f *auditFixture) as(id string, change func(e *Expected)) []Expected {
	pods := slices.Clone(f.pods)
	change(&pods[slices.IndexFunc(pods, func(e Expected) bool { return e.ID == id })])
	return pods
}

// without returns the pods but one.
func (f *auditFixture) without(id string) []Expected {
	return slices.DeleteFunc(slices.Clone(f.pods), func(e Expected) bool { return e.ID == id })
}

// file puts text in the place of a file's content, and returns what undoes it.
func (f *auditFixture) file(path, text string) func() {
	f.t.Helper()
	old, readErr := os.ReadFile(path)
	write(f.t, path, text)
	return func() {
		err := os.Remove(path)
		if readErr == nil {
			err = os.WriteFile(path, old, 0o600)
		}
		if err != nil {
			f.t.Error(err)
		}
	}
}

func (f *auditFixture) gone(path string) func() {
	f.t.Helper()
	mend := f.file(path, "")
	if err := os.Remove(path); err != nil {
		f.t.Fatal(err)
	}
	return func() {
		write(f.t, path, "") // what mend takes away or replaces
		mend()
	}
}

func (f *auditFixture) result(network, id string) string { return f.n.resultPath(network, id) }

// TestAuditFinds breaks one thing at a time; the check names it, with a remedy.
func TestAuditFinds(t *testing.T) {
	f := newAuditFixture(t)
	healthy := f.n.Memory()
	known := func(change func(leases map[string]*builtin.Lease)) *Memory {
		leases := maps.Clone(healthy.Leases)
		change(leases)
		return &Memory{Leases: leases}
	}
	record := f.n.recordPath
	beginning := func(e *Expected) { e.Begun, e.Attachment = true, nil }
	finished := func(e *Expected) { e.Finished = true }
	for _, c := range []struct {
		name   string
		want   string // nothing is to be found when it is ""
		pods   []Expected
		memory *Memory
		quiet  bool // no daemon runs
		damage func() (mend func())
	}{
		{name: "nothing"},
		{name: "nothing, no daemon", quiet: true},
		// The records.
		{name: "no record", want: "x: it is not the name of a record", damage: func() func() { return f.file(filepath.Join(f.n.recordDir(), "x"), "") }},
		{name: "no record, no daemon", quiet: true, damage: func() func() { return f.file(filepath.Join(f.n.recordDir(), "x"), "") }},
		{name: "unfinished record", want: "own.next.json: it is not the name of a record", damage: func() func() { return f.file(record("own.next"), "") }},
		{name: "record that is being replaced", pods: f.as("own", func(e *Expected) { e.Begun = true }), damage: func() func() { return f.file(record("own.next"), "") }},
		{name: "record damaged", want: "cni.json: record ", damage: func() func() { return f.file(record("cni"), `{"network":`) }},
		{name: "record of nobody", want: "cni.json: no sandbox has this id", pods: f.without("cni")},
		{name: "record of a stopped pod", want: "cni.json: its sandbox is stopped", pods: f.as("cni", finished)},
		{name: "record of a pod that is being stopped", pods: f.as("cni", func(e *Expected) { e.Finished, e.Begun = true, true })},
		{name: "record of a pod that is being made", pods: f.as("cni", beginning)},
		{name: "record gone", want: "cni.json: the sandbox is attached, but there is no record of it", damage: func() func() { return f.gone(record("cni")) }},
		{name: "record gone, being made", pods: f.as("cni", beginning), damage: func() func() { return f.gone(record("cni")) }},
		{name: "record gone, host's network", pods: f.as("cni", func(e *Expected) { e.Own, e.Attachment = false, nil }), damage: func() func() {
			mends := []func(){f.gone(record("cni")), f.gone(f.result("net", "cni"))}
			return func() { mends[0](); mends[1]() }
		}},
		{name: "other addresses", want: "own.json: it has the addresses [10.79.0.2], the sandbox has [10.79.0.9]", pods: f.as("own", func(e *Expected) {
			e.Attachment = &Attachment{Network: builtinName, IPs: []string{"10.79.0.9"}}
		})},
		// libcni's cache.
		{name: "result damaged", want: "net-cni-eth0: unexpected end of JSON input", damage: func() func() { return f.file(f.result("net", "cni"), `{"kind":`) }},
		{name: "result of another", want: `net-cni-eth0: it is about sandbox "own"`, damage: func() func() { return f.file(f.result("net", "cni"), `{"containerId":"own"}`) }},
		{name: "result of nobody", want: `net-ghost-eth0: no sandbox has the id "ghost"`, damage: func() func() { return f.file(f.result("net", "ghost"), `{"containerId":"ghost"}`) }},
		{name: "result of a stopped pod", want: "net-cni-eth0: its sandbox is stopped", pods: f.as("cni", finished)},
		{name: "no result", want: "x: it is not the name of a result", damage: func() func() { return f.file(filepath.Join(f.n.resultDir(), "x"), "{}") }},
		// The built-in network, beside what network/builtin finds.
		{name: "lease of nobody", want: "ghost.json: the daemon has a lease for it, but there is no record of it", memory: known(func(l map[string]*builtin.Lease) { l["ghost"] = &builtin.Lease{} })},
		{name: "lease not known", want: "own.json: the daemon does not know this lease", memory: known(func(l map[string]*builtin.Lease) { delete(l, "own") })},
		{name: "lease not known yet", pods: f.as("own", func(e *Expected) { e.Begun = true }), memory: known(func(l map[string]*builtin.Lease) { delete(l, "own") })},
		{
			name: "address twice", want: "10.79.0.2: sandboxes own and second both have this address", damage: func() func() { return f.lease("second", "10.79.0.2/24") },
			memory: known(func(l map[string]*builtin.Lease) { l["second"] = &builtin.Lease{} }),
		},
	} {
		// Not a test of its own: this thread is in the namespace.
		mend := func() {}
		if c.damage != nil {
			mend = c.damage()
		}
		if c.pods == nil {
			c.pods = f.pods
		}
		if c.memory == nil && !c.quiet {
			c.memory = healthy
		}
		findings, err := Audit(f.config, c.pods, c.memory)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		wantFinding(t, c.name, findings, c.want)
		mend()
	}
	for _, e := range f.pods {
		if err := f.n.Detach(t.Context(), Pod{ID: e.ID, NetNS: e.NetNS}, e.Attachment); err != nil {
			t.Error(err)
		}
	}
	f.empty()
}

// lease writes the record of a lease.
func (f *auditFixture) lease(id, address string) func() {
	f.t.Helper()
	r := &record{Network: builtinName, Lease: &builtin.Lease{Addresses: []netip.Prefix{netip.MustParsePrefix(address)}}}
	if err := f.n.writeRecord(id, r); err != nil {
		f.t.Fatal(err)
	}
	return func() {
		if err := f.n.removeRecord(id); err != nil {
			f.t.Error(err)
		}
	}
}

// wantFinding wants one that says so, or none at all.
func wantFinding(t *testing.T, name string, findings ledger.Findings, want string) {
	t.Helper()
	found := want == ""
	for _, f := range findings {
		if found = found || strings.Contains(f.String(), want); want == "" || f.Path == "" || f.Remedy == "" {
			t.Errorf("%s: found: %s", name, f)
		}
	}
	if !found {
		t.Errorf("%s: not found: %q in %v", name, want, findings)
	}
}

// TestAuditUnreadable: what cannot be looked at is an error, not a clean bill.
func TestAuditUnreadable(t *testing.T) {
	for _, dir := range []string{"attachments", "results"} {
		f := newFakes(t)
		if err := errors.Join(os.MkdirAll(f.config.CacheDir, 0o700), os.WriteFile(filepath.Join(f.config.CacheDir, dir), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		if findings, err := Audit(f.config, nil, nil); err == nil {
			t.Errorf("%s is a file: %v", dir, findings)
		}
	}
}
