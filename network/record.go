package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/network/builtin"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// record is written before ADD and removed after DEL. It is what DEL needs if
// the daemon dies in the middle of ADD, when neither an Attachment nor
// libcni's cache exists. It needs no fsync: what a power cut takes away is
// also gone from the kernel, and DEL then runs with the current configuration.
type record struct {
	Network      string         `json:"network"`
	Config       []byte         `json:"config"`
	NetNS        string         `json:"netns"`
	Args         [][2]string    `json:"args"`
	Capabilities map[string]any `json:"capabilities,omitempty"`
	Lease        *builtin.Lease `json:"lease,omitempty"` // of the built-in network, or its host ports only
}

func newRecord(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) *record {
	return &record{Network: list.Name, Config: list.Bytes, NetNS: rt.NetNS, Args: rt.Args, Capabilities: rt.CapabilityArgs}
}

// recordDir returns the directory of the records; libcni has results/ beside it.
func (n *Network) recordDir() string { return filepath.Join(n.config.CacheDir, "attachments") }

func (n *Network) recordPath(id string) string { return filepath.Join(n.recordDir(), id+".json") }

// writeRecord fails with fs.ErrExist if an earlier ADD has had no DEL.
func (n *Network) writeRecord(id string, r *record) error {
	data, err := ledger.Marshal(r)
	if err != nil {
		return fmt.Errorf("write record of attachment: %w", err)
	}
	file, err := os.OpenFile(n.recordPath(id), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write record of attachment: %w", err)
	}
	_, err = file.Write(data)
	if err := errors.Join(err, file.Close()); err != nil {
		return errors.Join(fmt.Errorf("write record of attachment: %w", err), n.removeRecord(id))
	}
	return nil
}

// replaceRecord puts r in the place of the record, at once.
func (n *Network) replaceRecord(id string, r *record) error {
	next := id + ".next"
	if err := errors.Join(n.removeRecord(next), n.writeRecord(next, r)); err != nil {
		return err
	}
	fault.Point("attach.record.replacing")
	if err := os.Rename(n.recordPath(next), n.recordPath(id)); err != nil {
		return fmt.Errorf("write record of attachment: %w", err)
	}
	return nil
}

// dropUnfinished removes what a daemon that was killed in replaceRecord has left:
// the record in whose place it was to come is still true.
func (n *Network) dropUnfinished() error {
	left, err := filepath.Glob(n.recordPath("*.next"))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// readRecord returns nil if there is none, or if it is damaged.
func (n *Network) readRecord(id string) (*record, error) {
	data, err := os.ReadFile(n.recordPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record of attachment: %w", err)
	}
	r := &record{}
	err = ledger.Unmarshal(data, r)
	if err == nil && len(r.Config) == 0 && r.Lease == nil {
		err = fmt.Errorf("%w: it has neither a configuration nor a lease", ledger.ErrDamaged)
	}
	if err != nil {
		klog.ErrorS(err, "The record of an attachment is damaged: what else is known of it serves in its place", "file", n.recordPath(id))
		return nil, nil
	}
	return r, nil
}

func (n *Network) removeRecord(id string) error {
	if err := os.Remove(n.recordPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record of attachment: %w", err)
	}
	return nil
}

// attached returns the network namespaces of all sandboxes that have a record
// or are in libcni's cache, by id.
func (n *Network) attached() (map[string]string, error) {
	ids, err := n.cachedIDs()
	if err != nil {
		return nil, err
	}
	cached, err := n.cni.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("read libcni's cache: %w", err)
	}
	for _, c := range cached {
		if _, ok := ids[c.ContainerID]; ok {
			ids[c.ContainerID] = c.NetNS
		}
	}
	entries, err := os.ReadDir(n.recordDir())
	if err != nil {
		return nil, fmt.Errorf("read records of attachments: %w", err)
	}
	for _, entry := range entries {
		id, ok := strings.CutSuffix(entry.Name(), ".json")
		if !ok || strings.HasSuffix(id, ".next") {
			continue
		}
		rec, err := n.readRecord(id)
		if err != nil {
			return nil, err
		}
		if rec != nil {
			ids[id] = rec.NetNS
		} else if _, ok := ids[id]; !ok {
			ids[id] = ""
		}
	}
	return ids, nil
}
