package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// recordFormat is the newest format of records that this version reads. A member
// that an older daemon may leave out needs no other one; what it must not
// misunderstand does.
const recordFormat = 1

// readFormat reads a record if this version can: in a later format any member may mean
// something else. Without one it is the first.
func readFormat(path string, record any) error {
	var r struct{ Format int }
	if err := ledger.Read(path, &r); err != nil {
		return err
	}
	if r.Format > recordFormat {
		return fmt.Errorf("record %s: %w: its format is %d, this version reads %d", path, errNewer, r.Format, recordFormat)
	}
	return ledger.Read(path, record)
}

// sandboxRecord is sandbox.json. It is written before the first effect, so
// that a daemon that finds it without Ready knows what to undo: everything
// that a sandbox of this config can have, by names that follow from its id.
type sandboxRecord struct {
	Format     int `json:",omitempty"`
	ID         string
	Handler    string `json:",omitempty"`
	CreatedAt  int64
	Config     json.RawMessage     // PodSandboxConfig
	Cgroup     string              // parent of the containers' cgroups
	OwnCgroup  bool                // Cgroup was made for this sandbox and goes with it
	Ready      bool                // Run ended well
	Stopping   bool                `json:"-"` // Stop has ended the containers; nothing is made in it any more. stoppingFile says so
	Stopped    bool                // Stop ended well: network and namespaces are gone
	Pause      *pauseRecord        `json:",omitempty"`
	Attachment *network.Attachment `json:",omitempty"`
	Boot       string              `json:",omitempty"` // the kernel's boot id when it was made
	Labels     oci.Labels          `json:",omitzero"`  // of SELinux, with the pod's own categories
}

// pauseRecord identifies the reaper of a shared PID namespace.
type pauseRecord struct {
	PID       int
	StartTime uint64 // of /proc/PID/stat, so that a reused pid is not taken for it
}

// containerRecord is container.json, written once, before the first effect. What
// happens later is in files beside it: config.json, `exit` by the monitor, and lost.json.
type containerRecord struct {
	Format       int `json:",omitempty"`
	ID           string
	SandboxID    string
	CreatedAt    int64
	Config       json.RawMessage // ContainerConfig
	ImageID      string
	VolumeImages []string `json:",omitempty"` // ids of the images that are mounted as volumes
	StopSignal   int      // Linux number
	Cgroup       string   // of this container
	LogPath      string   `json:",omitempty"`
	Boot         string   `json:",omitempty"` // the kernel's boot id when it was made
}

// The files of an object, below its directory.
const (
	sandboxFile   = "sandbox.json"
	stoppingFile  = "stopping" // empty: to replace the record would make ext4 write it out
	containerFile = "container.json"
	lostFile      = "lost.json"
	exitFile      = "exit" // written by the monitor
)

// config.json has its final name once CreateContainer has succeeded.
const (
	bundle           = "config.json"
	unfinishedBundle = "config.json.tmp"
)

func encodeMessage(m proto.Message) (json.RawMessage, error) {
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return b, nil
}

func decodeMessage(b json.RawMessage, m proto.Message) error {
	// A record of a newer version may have fields that this one does not know.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return fmt.Errorf("decode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return nil
}

// writeRecord replaces the file at path with v as JSON. The file is whole or
// absent at any moment; with durable, after a power cut too.
func writeRecord(path string, v any, durable bool) (err error) {
	b, err := ledger.Marshal(v)
	if err != nil {
		return fmt.Errorf("record %s: %w", path, err)
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("record: %w", err), os.Remove(tmp))
	}
	fault.Point("record.temporary")
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	fault.Point("record.renamed")
	if durable {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// readBundle reads what the container was made of.
func (c *Container) readBundle() (*specs.Spec, error) {
	path := c.root(bundle)
	data, err := os.ReadFile(path)
	if err == nil {
		err = ledger.Verify(data)
	}
	var spec *specs.Spec
	if err == nil {
		spec, err = oci.DecodeSpec(data)
	}
	if err == nil && (spec.Process == nil || spec.Linux == nil) {
		err = fmt.Errorf("process or linux is missing: %w", ErrInvalid)
	}
	if err != nil {
		return nil, fmt.Errorf("read bundle %s: %w", path, err)
	}
	return spec, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}
