package imageservice

import (
	"errors"
	"os"
	"testing"
)

func TestDetails(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	base := gzipped(t, file("base", "base"))
	r.putImage("base", "1", testConfig(), base)
	id, manifest := r.putImage("app", "1", testConfig(), base, gzipped(t, file("app", "app")))
	mustPull(t, s, r.ref("base:1"))
	image := mustPull(t, s, r.ref("app:1"))
	if err := s.Hold(id, "c1"); err != nil {
		t.Fatal(err)
	}
	d, err := s.Details(r.ref("app:1"))
	if err != nil {
		t.Fatal(err)
	}
	if d.ID != id || d.Manifest != manifest.Digest || d.Source != r.host || d.PulledAt.IsZero() || d.Size != image.Size ||
		len(d.Users) != 1 || d.Users[0] != "c1" || d.Config.Config.User != "1000:5" {
		t.Errorf("%+v", d)
	}
	if len(d.Layers) != 2 || d.Layers[0].SharedBy != 2 || d.Layers[1].SharedBy != 1 || d.Layers[0].Compressed == 0 ||
		d.Unshared >= d.Size || d.Unshared < d.Layers[1].Bytes {
		t.Errorf("layers %+v of %d bytes, %d unshared", d.Layers, d.Size, d.Unshared)
	}
	for _, l := range d.Layers {
		if _, err := os.Stat(l.Directory); err != nil || l.Blob.Validate() != nil {
			t.Errorf("%+v: %v", l, err)
		}
	}
	if _, err := s.Details("nothing:1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown image: %v", err)
	}
}
