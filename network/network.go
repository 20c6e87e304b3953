package network

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is what the network knows of a sandbox.
type Pod struct {
	ID, Name, Namespace, UID string
	NetNS                    string // path of the pinned network namespace; it may be gone on Detach
	PortMappings             []*runtimeapi.PortMapping
	DNS                      *runtimeapi.DNSConfig
	Annotations              map[string]string
	CgroupParent             string
}

// Attachment is the outcome of an ADD, kept in the sandbox's record as JSON
// so that CHECK, DEL and GC work after a restart, with another
// configuration in place, or after a reboot.
type Attachment struct {
	Network string   // name of the network configuration list
	IPs     []string // the addresses of the pod, primary first
	Config  []byte   // the configuration list that ADD ran with
	Result  []byte   // the plugin's result
}

// Config is what a Network is opened with.
type Config struct {
	ConfDir  string   // conflists
	BinDirs  []string // plugins
	CacheDir string   // libcni's cache
}

// Network runs CNI plugins.
type Network struct{ config Config }

// Open watches the configuration directory.
func Open(config Config) (*Network, error) { return &Network{config: config}, nil }

// Close ends the watch.
func (n *Network) Close() error { return nil }

// Ready tells why pods cannot be attached now, or nil.
func (n *Network) Ready() error { return nil }

// Attach runs ADD.
func (n *Network) Attach(ctx context.Context, pod Pod) (*Attachment, error) { return nil, nil }

// Detach runs DEL, until it is done or ctx ends; idempotent. att is nil when
// it isn't known whether ADD succeeded.
func (n *Network) Detach(ctx context.Context, pod Pod, att *Attachment) error { return nil }
