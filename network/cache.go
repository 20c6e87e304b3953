package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"k8s.io/klog/v2"
)

// libcni keeps a file for each attachment, without a checksum, and gives plugins
// the result in it before any other. Its name is what can be relied on.

// cachedResult is such a file.
type cachedResult struct {
	Kind         string         `json:"kind"`
	ContainerID  string         `json:"containerId"`
	Config       []byte         `json:"config"`
	IfName       string         `json:"ifName"`
	Network      string         `json:"networkName"`
	NetNS        string         `json:"netns"`
	Args         [][2]string    `json:"cniArgs"`
	Capabilities map[string]any `json:"capabilityArgs"`
	Result       any            `json:"result"`
}

func (n *Network) resultDir() string { return filepath.Join(n.config.CacheDir, "results") }

// resultPath is the file's name, as libcni makes it.
func (n *Network) resultPath(network, id string) string {
	return filepath.Join(n.resultDir(), network+"-"+id+"-"+ifName)
}

// cachedID returns the sandbox that a file's name is about.
func cachedID(name string) (string, bool) {
	rest, ok := strings.CutSuffix(name, "-"+ifName)
	at := strings.LastIndexByte(rest, '-')
	return rest[at+1:], ok && at > 0 && at+1 < len(rest)
}

// cachedIDs returns the sandboxes that have a file, whatever is in it.
func (n *Network) cachedIDs() (map[string]string, error) {
	ids := map[string]string{}
	entries, err := os.ReadDir(n.resultDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read libcni's cache: %w", err)
	}
	for _, e := range entries {
		if id, ok := cachedID(e.Name()); ok {
			ids[id] = ""
		}
	}
	return ids, nil
}

// mendResult removes the file of an attachment if it is not as ADD left it: the
// sandbox's own copy of the result then serves in its place.
func (n *Network) mendResult(id string, r *record, att *Attachment) error {
	path := n.resultPath(att.Network, id)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if r.cachedAs(id, data, att.Result) {
		return nil
	}
	klog.InfoS("A file of libcni's cache is damaged and was removed, the sandbox's record has what it said", "file", path, "pod", id)
	return os.Remove(path)
}

// cachedAs tells whether a file has what the record has, and the result.
func (r *record) cachedAs(id string, data, result []byte) bool {
	var is cachedResult
	var want any
	if json.Unmarshal(data, &is) != nil || json.Unmarshal(result, &want) != nil {
		return false
	}
	capabilities, err := json.Marshal(r.Capabilities)
	if err != nil {
		return false
	}
	var granted map[string]any // as JSON has it
	if json.Unmarshal(capabilities, &granted) != nil {
		return false
	}
	return is.Kind == libcni.CNICacheV1 && is.ContainerID == id && is.IfName == ifName && is.Network == r.Network && is.NetNS == r.NetNS &&
		bytes.Equal(is.Config, r.Config) && len(is.Args) == len(r.Args) && (len(is.Args) == 0 || reflect.DeepEqual(is.Args, r.Args)) &&
		len(is.Capabilities) == len(granted) && (len(granted) == 0 || reflect.DeepEqual(is.Capabilities, granted)) &&
		reflect.DeepEqual(is.Result, want)
}

// dropResults removes a sandbox's files, of whatever network: after DEL nothing
// is true that they say.
func (n *Network) dropResults(id string) error {
	entries, err := os.ReadDir(n.resultDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read libcni's cache: %w", err)
	}
	for _, e := range entries {
		if of, ok := cachedID(e.Name()); !ok || of != id {
			continue
		}
		if err := os.Remove(filepath.Join(n.resultDir(), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove from libcni's cache: %w", err)
		}
	}
	return nil
}

// recorded tells whether there is a record, of whatever content.
func (n *Network) recorded(id string) bool {
	_, err := os.Lstat(n.recordPath(id))
	return err == nil
}
