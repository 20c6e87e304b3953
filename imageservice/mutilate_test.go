package imageservice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// mutilations calls try with every cut of content, and with each byte flipped:
// one bit of it, chosen by a seed that is printed. Of a long content it takes a
// part. LONG=1 takes everything and flips each bit.
func mutilations(t *testing.T, what string, content []byte, try func(b []byte)) {
	t.Helper()
	seed := rand.Uint64()
	chance := rand.New(rand.NewPCG(seed, 0))
	bits, step := 1, 1+len(content)/400
	if os.Getenv("LONG") != "" {
		bits, step = 8, 1
	}
	n := 0
	for at := 0; at < len(content); at += step {
		try(content[:at])
		first := chance.IntN(8)
		for bit := range bits {
			b := bytes.Clone(content)
			b[at] ^= 1 << ((first + bit) % 8)
			try(b)
			n++
		}
		n++
	}
	t.Logf("%s: %d mutilations of %d bytes, seed %d", what, n, len(content), seed)
}

// mutilatedStore has an image with a layer of its own, and another one.
func mutilatedStore(t *testing.T) (*testRegistry, *Store, *Image) {
	t.Helper()
	r, s := newRegistry(t), openOnce(t)
	items := append(oddItems(), file("d/f", "x"))
	items[1] = file("bin/a", "content") // not a large one, it is read for each mutilation
	r.putImage("x", "1", testConfig(), gzipped(t, dir("d", 0o700)), gzipped(t, items...))
	r.putImage("y", "1", testConfig(), gzipped(t, file("h", "z")))
	mustPull(t, s, r.ref("y:1"))
	return r, s, mustPull(t, s, r.ref("x:1"))
}

// mutilatedFiles are the files of an image that the store reads.
func mutilatedFiles(s *Store, image *Image) map[string]string {
	record, layer := s.recordPath(image.ID), s.layerPath(image.Config.RootFS.DiffIDs[1])
	return map[string]string{
		"image's record":       filepath.Join(record, imageFile),
		"image's config":       filepath.Join(record, configFile),
		"image's manifest":     filepath.Join(record, manifestFile),
		"listing of parents":   filepath.Join(record, parentsListing),
		"layer's record":       filepath.Join(layer, layerFile),
		"listing of the layer": filepath.Join(layer, listingFile),
	}
}

// TestMutilatedFiles reads each file of an image cut anywhere and with any byte
// flipped: it is damage, or reads as what was written.
func TestMutilatedFiles(t *testing.T) {
	_, s, image := mutilatedStore(t)
	defer closeStore(t, s)
	dir, layer := s.recordPath(image.ID), s.layerPath(image.Config.RootFS.DiffIDs[1])
	asJSON := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	whole, err := readEntry(dir)
	if err != nil {
		t.Fatal(err)
	}
	wantLayer, err := readLayer(layer)
	if err != nil {
		t.Fatal(err)
	}
	manifest, config, err := s.Documents(image.ID)
	if err != nil {
		t.Fatal(err)
	}
	// damaged looks at the damage that the check finds, whatever else is read.
	damaged := func(c *checker) []Damage {
		c.layers = map[digest.Digest][]Damage{}
		c.report.Images = nil
		if err := c.image(context.Background(), image.ID); err != nil {
			t.Fatal(err)
		}
		return c.report.Images[0].Damage
	}
	for what, path := range mutilatedFiles(s, image) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		c := &checker{Store: s}
		mutilations(t, what, content, func(b []byte) {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			e, err := readEntry(dir)
			switch {
			case err != nil:
				t.Fatalf("%s: %v", what, err)
			case e.record.ID != image.ID || !e.unreadable && !slices.Equal(e.record.Layers, whole.record.Layers):
				t.Fatalf("%s: read as %s", what, asJSON(e.record))
			case !e.unreadable && len(e.record.Tags) > 0 && asJSON(e.record) != asJSON(whole.record):
				t.Fatalf("%s: read as %s", what, asJSON(e.record))
			case !e.torn && asJSON(e.config) != asJSON(whole.config):
				t.Fatalf("%s: the config is read as %s", what, asJSON(e.config))
			}
			if l, err := readLayer(layer); err == nil && asJSON(l) != asJSON(wantLayer) {
				t.Fatalf("%s: read as %s", what, asJSON(l))
			} else if err != nil && !strings.Contains(err.Error(), path) {
				t.Fatalf("%s: the error does not name it: %v", what, err)
			}
			if m, o, err := s.Documents(image.ID); err == nil && !(bytes.Equal(m, manifest) && bytes.Equal(o, config)) {
				t.Fatalf("%s: other documents are given out", what)
			}
			// Without its checksum's name a record is one of an older version, and true.
			if len(damaged(c)) == 0 && !(strings.HasSuffix(what, "record") && json.Valid(b)) {
				t.Fatalf("%s: the check does not find it: %q", what, b)
			}
		})
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if left := damaged(c); len(left) > 0 {
			t.Fatalf("%s: mended, and still found: %+v", what, left)
		}
	}
}

// TestMutilatedStart starts with each file of an image damaged, while a container
// has the image or not: the store opens, the other image is there, what is wrong is
// told, and a pull or a repair mends it.
func TestMutilatedStart(t *testing.T) {
	r, s, image := mutilatedStore(t)
	for what, path := range mutilatedFiles(s, image) {
		for how, damage := range map[string]func(b []byte) []byte{
			"cut":     func(b []byte) []byte { return b[:len(b)/2] },
			"emptied": func([]byte) []byte { return nil },
			"flipped": func(b []byte) []byte { b[len(b)/2] ^= 4; return b },
		} {
			for _, held := range []bool{true, false} {
				t.Run(what+" "+how+map[bool]string{true: ", in use"}[held], func(t *testing.T) {
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					content, err := os.ReadFile(path)
					if err == nil {
						err = os.WriteFile(path, damage(content), 0o600)
					}
					if err != nil {
						t.Fatal(err)
					}
					s = s.openedAgain(t, image.ID, held)
					s.mended(t, r, image, path, held)
				})
			}
		}
	}
	wantWhole(t, s)
	closeStore(t, s)
}

func (s *Store) openedAgain(t *testing.T, imageID string, held bool) *Store {
	t.Helper()
	if held {
		return reopen(t, s, imageID)
	}
	again, err := Open(s.config)
	if err != nil {
		t.Fatal(err)
	}
	again.Collect()
	again.background.Wait()
	return again
}

// mended sees that the damage is told, mends it by what a user would do, and sees
// that all is as before.
func (s *Store) mended(t *testing.T, r *testRegistry, image *Image, path string, held bool) {
	t.Helper()
	if _, err := s.Image(r.ref("y:1")); err != nil {
		t.Errorf("the other image: %v", err)
	}
	users := map[string][]string{}
	if held {
		users[image.ID] = []string{"c"}
	}
	findings, err := Audit(s.config.Root, users, s.Memory())
	if err != nil {
		t.Fatal(err)
	}
	report := mustCheck(t, s, false)
	// What is read at a start the quick check finds; nothing but the names is lost with image.json.
	if quick := strings.HasSuffix(path, ".json") && filepath.Base(path) != manifestFile; quick && len(findings) == 0 {
		t.Error("the quick check finds nothing")
	}
	if len(findings) == 0 && report.Damaged() == 0 {
		t.Error("no check finds anything")
	}
	if _, err := s.Pull(context.Background(), r.ref("x:1"), nil); err != nil {
		t.Errorf("pull: %v", err)
	}
	if held {
		s.Release(image.ID, "c") // a repair waits for the container
	}
	if report := mustCheck(t, s, true); report.Damaged() > 0 {
		t.Errorf("not repaired: %+v", report)
	}
	wantWhole(t, s)
	again, err := s.Image(r.ref("x:1"))
	if err != nil || again.ID != image.ID || !slices.Equal(again.Layers, image.Layers) {
		t.Errorf("%+v, %v; before %+v", again, err, image)
	}
	if findings, err = Audit(s.config.Root, nil, s.Memory()); err != nil {
		t.Error(err)
	}
	wantFinding(t, findings, "")
}

// TestMutilatedLock: the lock file's content means nothing.
func TestMutilatedLock(t *testing.T) {
	s := openOnce(t)
	closeStore(t, s)
	for _, content := range []string{"", "\x00\xff", strings.Repeat("x", 1<<20)} {
		if err := os.WriteFile(s.path("lock"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := Open(s.config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(s.config); !errors.Is(err, ErrLocked) {
			t.Errorf("opened twice: %v", err)
		}
		closeStore(t, again)
	}
	if err := errors.Join(os.Remove(s.path("lock")), unix.Mkdir(s.path("lock"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if again, err := Open(s.config); err == nil {
		closeStore(t, again) // a directory can be locked, too
	} else if !strings.Contains(err.Error(), s.path("lock")) {
		t.Errorf("a directory for a lock: %v", err)
	}
}

// TestMutilatedHosts: the configuration of a registry, cut anywhere or with a
// flipped bit, is another one or an error that names it; the store's other
// registries are not concerned.
func TestMutilatedHosts(t *testing.T) {
	root := t.TempDir()
	place := filepath.Join(root, "registry.example")
	if err := os.Mkdir(place, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(place, hostsFile)
	content := []byte(`server = "https://registry.example"
[host."https://mirror.example:5000"]
  capabilities = ["pull"]
  ca = ["/ca.crt"]
  client = [["/c.crt", "/c.key"]]
  dial_timeout = "3s"
[host."http://other.example"]
  capabilities = ["pull", "resolve"]
  skip_verify = true
`)
	refused := 0
	mutilations(t, hostsFile, content, func(b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		list, err := endpoints(root, "registry.example")
		switch {
		case err == nil && len(list) == 0:
			t.Fatalf("no host is left: %q", b)
		case err != nil && (!errors.Is(err, errHosts) || !strings.Contains(err.Error(), path)):
			t.Fatalf("%q: the error does not name the file: %v", b, err)
		case err != nil:
			refused++
		}
		if _, err := endpoints(root, "quay.example"); err != nil {
			t.Fatalf("another registry: %v", err)
		}
	})
	if refused == 0 {
		t.Error("nothing was refused")
	}
}

// TestMutilatedKey: a key of the image policy, cut anywhere or with a flipped bit,
// is refused, is another key or the same. It never becomes a rule without a key.
func TestMutilatedKey(t *testing.T) {
	for _, kind := range []string{"ecdsa", "ed25519", "rsa"} {
		one, other := newSigner(t, kind), newSigner(t, kind)
		first, err := os.ReadFile(one.file)
		if err != nil {
			t.Fatal(err)
		}
		second, err := os.ReadFile(other.file)
		if err != nil {
			t.Fatal(err)
		}
		mutilations(t, kind, slices.Concat(first, second), func(b []byte) {
			if err := os.WriteFile(one.file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			p, err := readPolicy(Policy{Default: PolicyReject, Rules: []PolicyRule{{Prefix: "a.example", Type: PolicySigstore, Keys: []string{one.file}}}})
			switch {
			case err == nil && len(p.rule("a.example/x").keys) == 0:
				t.Fatalf("a rule without a key: %q", b)
			case err != nil && !strings.Contains(err.Error(), one.file):
				t.Fatalf("the error does not name the file: %v", err)
			case err == nil && len(b) > len(first) && len(b) < len(first)+len(second)-1 && len(p.rule("a.example/x").keys) == 1 && bytes.Contains(b[len(first):], []byte("-----BEGIN")):
				t.Fatalf("half a key is passed over: %q", b)
			}
		})
	}
}
