package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cri-runtime/cri-runtime/network/builtin"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// Expected is what a sandbox's record says of its network.
type Expected struct {
	ID         string
	NetNS      string
	Own        bool        // it has a network of its own
	Begun      bool        // it is being made or changed: the attachment may or may not be there
	Finished   bool        // it was stopped: the attachment is gone
	Attachment *Attachment // nil while it is being made
}

const (
	remedyRestart = "restart the daemon, which detaches what no sandbox has"
	remedyPod     = "stop and remove the sandbox"
	remedyResult  = "restart the daemon, which has another copy and removes this one"
)

// Memory is what a running Network knows, for a check from outside.
type Memory struct {
	Leases map[string]*builtin.Lease `json:"leases"` // of the built-in network, by sandbox
}

// Memory returns what the Network knows.
func (n *Network) Memory() *Memory {
	m := &Memory{}
	if n.builtin != nil {
		m.Leases = n.builtin.Snapshot()
	}
	return m
}

// Audit compares the records of attachments with the sandboxes and the host.
// Nothing is changed. memory is what the daemon knows, nil if none runs.
func Audit(config Config, pods []Expected, memory *Memory) (ledger.Findings, error) {
	a := &auditor{Network: &Network{config: config}, memory: memory, pods: map[string]Expected{}, leases: map[string]*builtin.Lease{}}
	for _, p := range pods {
		a.pods[p.ID] = p
	}
	for _, step := range []func() error{a.records, a.results, a.attachments, a.host} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("check the network: %w", err)
		}
	}
	return a.findings, nil
}

type auditor struct {
	*Network
	memory   *Memory
	pods     map[string]Expected
	recorded map[string]bool
	leases   map[string]*builtin.Lease
	findings ledger.Findings
}

// records reads attachments/.
func (a *auditor) records() error {
	a.recorded = map[string]bool{}
	entries, err := os.ReadDir(a.recordDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(a.recordDir(), e.Name())
		id, ok := strings.CutSuffix(e.Name(), ".json")
		pod := a.pods[strings.TrimSuffix(id, ".next")]
		if !ok || strings.HasSuffix(id, ".next") {
			if !pod.Begun && a.memory != nil {
				a.findings.Add(path, "it is not the name of a record", "remove it")
			}
			continue
		}
		a.recorded[id] = true
		r := &record{}
		if err := ledger.Read(path, r); err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.findings.Add(path, err.Error(), remedyPod)
		}
		if r.Lease != nil {
			a.leases[id] = r.Lease
		}
		switch {
		case pod.ID == "":
			a.findings.Add(path, "no sandbox has this id", remedyRestart)
		case pod.Finished && !pod.Begun:
			a.findings.Add(path, "its sandbox is stopped", remedyPod)
		}
	}
	return nil
}

// results reads libcni's cache.
func (a *auditor) results() error {
	dir := a.resultDir()
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		id, named := cachedID(e.Name())
		var cached cachedResult
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err == nil {
			err = json.Unmarshal(data, &cached)
		}
		pod := a.pods[id]
		switch {
		case !named:
			a.findings.Add(path, "it is not the name of a result", "remove it")
		case err != nil:
			a.findings.Add(path, err.Error(), remedyResult)
		case cached.ContainerID != id:
			a.findings.Add(path, fmt.Sprintf("it is about sandbox %q", cached.ContainerID), remedyResult)
		case pod.ID == "":
			a.findings.Add(path, fmt.Sprintf("no sandbox has the id %q", id), remedyRestart)
		case pod.Finished && !pod.Begun:
			a.findings.Add(path, "its sandbox is stopped", remedyPod)
		}
	}
	return nil
}

// attachments looks for those that sandboxes should have.
func (a *auditor) attachments() error {
	for _, id := range slices.Sorted(maps.Keys(a.pods)) {
		pod := a.pods[id]
		if !pod.Own || pod.Begun || pod.Finished {
			continue
		}
		path := a.recordPath(id)
		if !a.recorded[id] {
			a.findings.Add(path, "the sandbox is attached, but there is no record of it", remedyPod)
			continue
		}
		lease := a.leases[id]
		if pod.Attachment == nil || pod.Attachment.Network != builtinName || lease == nil {
			continue
		}
		var ips []string
		for _, p := range lease.Addresses {
			ips = append(ips, p.Addr().String())
		}
		if !slices.Equal(ips, pod.Attachment.IPs) {
			a.findings.Add(path, fmt.Sprintf("it has the addresses %v, the sandbox has %v", ips, pod.Attachment.IPs), remedyPod)
		}
	}
	return nil
}

// host compares the built-in network with the leases.
func (a *auditor) host() error {
	if a.config.Builtin.Bridge == "" {
		return nil
	}
	unsure := map[string]bool{}
	for id, pod := range a.pods {
		if pod.Begun || pod.Finished {
			unsure[id] = true
		}
	}
	if a.memory != nil {
		for id := range a.memory.Leases {
			if a.leases[id] == nil && !unsure[id] {
				a.findings.Add(a.recordPath(id), "the daemon has a lease for it, but there is no record of it", remedyPod)
			}
		}
		for id := range a.leases {
			if a.memory.Leases[id] == nil && !unsure[id] {
				a.findings.Add(a.recordPath(id), "the daemon does not know this lease: its address and its ports may be given away again", remedyPod)
			}
		}
	}
	found, err := builtin.Audit(a.config.Builtin, a.leases, unsure, a.memory != nil)
	a.findings = append(a.findings, found...)
	return err
}
