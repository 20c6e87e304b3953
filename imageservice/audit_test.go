package imageservice

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// auditFixture is a store of two images, one of which a container holds.
type auditFixture struct {
	*Store
	t           *testing.T
	held, other *Image
}

func newAuditFixture(t *testing.T) *auditFixture {
	t.Helper()
	r, f := newRegistry(t), &auditFixture{Store: openStore(t, nil), t: t}
	r.putImage("x", "1", testConfig(), gzipped(t, file("f", "x")))
	r.putImage("y", "1", testConfig(), gzipped(t, file("f", "y")))
	f.held, f.other = mustPull(t, f.Store, r.ref("x:1")), mustPull(t, f.Store, r.ref("y:1"))
	if err := f.Hold(f.held.ID, "c"); err != nil {
		t.Fatal(err)
	}
	return f
}

// aside moves a file or directory away until the test ends.
func (f *auditFixture) aside(path string) func() {
	f.t.Helper()
	away := filepath.Join(f.t.TempDir(), "away")
	if err := os.Rename(path, away); err != nil {
		f.t.Fatal(err)
	}
	return func() {
		if err := os.Rename(away, path); err != nil {
			f.t.Error(err)
		}
	}
}

// rewrite changes the record of an image that nobody holds.
func (f *auditFixture) rewrite(change func(r *imageRecord)) func() {
	f.t.Helper()
	dir := f.recordPath(f.other.ID)
	e, err := readEntry(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	changed := e.record.clone()
	change(changed)
	write := func(r *imageRecord) {
		if err := writeRecord(dir, r); err != nil {
			f.t.Error(err)
		}
	}
	write(changed)
	return func() { write(e.record) }
}

func (f *auditFixture) stray(path string) func() {
	f.t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		f.t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			f.t.Error(err)
		}
	}
}

// TestAuditFinds breaks one thing at a time; the check names it, with a remedy.
func TestAuditFinds(t *testing.T) {
	f := newAuditFixture(t)
	users := map[string][]string{f.held.ID: {"c"}}
	tag := f.images[f.held.ID].record.Tags[0]
	unknown := strings.Repeat("0f", 32)
	for _, c := range []struct {
		name   string
		want   string // nothing is to be found when it is ""
		damage func() (mend func())
		users  map[string][]string
		memory func(m *Memory)
	}{
		{name: "nothing"},
		{name: "record that is none", want: "records/" + unknown + ": ", damage: func() func() { return f.stray(f.path("records", unknown)) }},
		{name: "record damaged", want: imageFile + ": ", damage: func() func() {
			path := filepath.Join(f.recordPath(f.other.ID), imageFile)
			content, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, content[:len(content)/2], 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := os.WriteFile(path, content, 0o600); err != nil {
					t.Error(err)
				}
			}
		}},
		{name: "tag twice", want: "has the tag " + tag + ", too", damage: func() func() {
			return f.rewrite(func(r *imageRecord) { r.Tags = append(r.Tags, tag) })
		}},
		{name: "document", want: "a document of the image is missing or damaged", damage: func() func() {
			return f.aside(filepath.Join(f.recordPath(f.other.ID), configFile))
		}},
		{name: "layer that cannot be", want: `layer "sha256:x": `, damage: func() func() {
			return f.rewrite(func(r *imageRecord) { r.Layers = append(r.Layers, digest.Digest("sha256:x")) })
		}},
		{name: "layer gone", want: "image " + f.other.ID + " needs this layer: ", damage: func() func() {
			return f.aside(f.layerPath(f.other.Config.RootFS.DiffIDs[0]))
		}},
		{name: "layer of nobody", want: "this layer belongs to no image", damage: func() func() { return f.stray(f.path("layers", unknown)) }},
		{name: "leftover", want: "a pull or a removal has left this behind", damage: func() func() { return f.stray(f.path("ingest", "left")) }},
		{name: "leftover of a pull under way", damage: func() func() { return f.stray(f.path("ingest", "left")) }, memory: func(m *Memory) { m.Pulling = true }},
		{name: "known without a record", want: "the daemon knows this image, but there is no record of it", memory: func(m *Memory) { m.Images = append(m.Images, unknown) }},
		{name: "not known", want: "the daemon does not know this image", memory: func(m *Memory) { m.Images = []string{f.held.ID} }},
		{name: "used without a record", want: "containers [c d] are of this image, but there is no record of it", users: map[string][]string{f.held.ID: {"c"}, unknown: {"c", "d"}}},
		{name: "used without a hold", want: "container d is of this image, but does not hold it", users: map[string][]string{f.held.ID: {"c", "d"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.damage != nil {
				defer c.damage()()
			}
			if c.users == nil {
				c.users = users
			}
			memory := f.Memory()
			if c.memory != nil {
				c.memory(memory)
			}
			findings, err := Audit(f.config.Root, c.users, memory)
			if err != nil {
				t.Fatal(err)
			}
			wantFinding(t, findings, c.want)
		})
	}
	wantFinding(t, f.Memory().Unheld(func(string) bool { return false }), "it is held by c, of which there is neither")
	wantFinding(t, f.Memory().Unheld(func(string) bool { return true }), "")
	f.Release(f.held.ID, "c")
}

// wantFinding wants one that says so, or none at all.
func wantFinding(t *testing.T, findings ledger.Findings, want string) {
	t.Helper()
	found := want == ""
	for _, f := range findings {
		if found = found || strings.Contains(f.String(), want); want == "" || f.Path == "" || f.Remedy == "" {
			t.Errorf("found: %s", f)
		}
	}
	if !found {
		t.Errorf("not found: %q in %v", want, findings)
	}
}
