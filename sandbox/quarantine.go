package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/ledger"
)

// reasonFile, in a directory that was moved aside, says why.
const reasonFile = "damaged.json"

const remedyAside = "what it was is gone from the list and from the host, and a kubelet makes it anew; look at the directory if you like, and remove it"

// Damaged is a sandbox or container whose record could not be read, and which
// was moved aside.
type Damaged struct {
	Dir    string    `json:"dir"`    // where it is now
	From   string    `json:"from"`   // where it was
	Reason string    `json:"reason"` // names the file
	Remedy string    `json:"remedy"`
	At     time.Time `json:"at,omitzero"`
}

// quarantine puts a directory whose record cannot be read aside, so that
// nothing is lost and nothing else suffers. One without a record is removed.
func (s *Store) quarantine(dir string, why error) {
	if errors.Is(why, os.ErrNotExist) {
		// A crash came before the record, and nothing has an effect before it.
		if err := s.discard(dir); err != nil {
			klog.ErrorS(err, "Remove a directory without a record", "dir", dir)
		}
		return
	}
	if errors.Is(why, errNewer) {
		klog.ErrorS(why, "Left as it is: start the version that wrote it again, or remove the pod with that", "dir", dir)
		return
	}
	d := Damaged{Dir: s.root("damaged", filepath.Base(dir)+"-"+newID()[:8]), From: dir, Reason: why.Error(), Remedy: remedyAside, At: time.Now()}
	if err := writeRecord(filepath.Join(dir, reasonFile), &d, false); err != nil {
		klog.ErrorS(err, "Note why a record is unusable", "dir", dir)
	}
	err := os.Rename(dir, d.Dir)
	klog.ErrorS(why, "Record is unusable, its directory was moved aside", "dir", dir, "to", d.Dir, "remedy", d.Remedy, "err", err)
}

// Damaged lists what was moved aside and is still there.
func (s *Store) Damaged() ([]Damaged, error) { return readDamaged(s.root("damaged")) }

func readDamaged(dir string) ([]Damaged, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Damaged
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var d Damaged
		if err := ledger.Read(filepath.Join(path, reasonFile), &d); err != nil {
			d = Damaged{Reason: "its record could not be read", Remedy: remedyAside}
		}
		d.Dir = path
		out = append(out, d)
	}
	return out, nil
}
