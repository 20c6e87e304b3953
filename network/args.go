package network

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// ifName is what the pod's interface is called in the pod.
	ifName = "eth0"

	ingressBandwidth = "kubernetes.io/ingress-bandwidth"
	egressBandwidth  = "kubernetes.io/egress-bandwidth"
	// The rates in bit/s that make sense, the same as Kubernetes allows.
	minBandwidth = 1e3
	maxBandwidth = 1e15
)

// What plugins read under these names in runtimeConfig is fixed by CNI's
// conventions.
type (
	portMapping struct {
		HostPort      int32  `json:"hostPort"`
		ContainerPort int32  `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP,omitempty"`
	}
	dns struct {
		Servers  []string `json:"servers,omitempty"`
		Searches []string `json:"searches,omitempty"`
		Options  []string `json:"options,omitempty"`
	}
	bandwidth struct {
		IngressRate  uint64 `json:"ingressRate,omitempty"`
		IngressBurst uint64 `json:"ingressBurst,omitempty"`
		EgressRate   uint64 `json:"egressRate,omitempty"`
		EgressBurst  uint64 `json:"egressBurst,omitempty"`
	}
)

// runtimeConf returns what ADD passes to the plugins besides their
// configuration.
func runtimeConf(pod Pod) (*libcni.RuntimeConf, error) {
	rt, err := identity(pod)
	if err != nil {
		return nil, err
	}
	ports, err := portMappings(pod.PortMappings)
	if err != nil {
		return nil, err
	}
	rates, err := bandwidthOf(pod.Annotations)
	if err != nil {
		return nil, err
	}
	if len(ports) > 0 {
		rt.CapabilityArgs["portMappings"] = ports
	}
	if rates != nil {
		rt.CapabilityArgs["bandwidth"] = rates
	}
	if d := pod.DNS; d != nil {
		rt.CapabilityArgs["dns"] = dns{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	if pod.CgroupParent != "" {
		rt.CapabilityArgs["cgroupPath"] = pod.CgroupParent
	}
	if len(pod.Annotations) > 0 {
		rt.CapabilityArgs["io.kubernetes.cri.pod-annotations"] = pod.Annotations
	}
	return rt, nil
}

// identity returns the part of the runtime configuration that says which pod
// is meant. The id goes into file names, the rest into one variable of
// key=value pairs separated by semicolons, where a name may not smuggle in
// another pair.
func identity(pod Pod) (*libcni.RuntimeConf, error) {
	if err := utils.ValidateContainerID(pod.ID); err != nil {
		return nil, fmt.Errorf("%w: sandbox id %q: %s", ErrInvalid, quote([]byte(pod.ID)), err.Msg)
	}
	if len(pod.ID) > maxNameBytes {
		return nil, fmt.Errorf("%w: sandbox id has more than %d bytes", ErrInvalid, maxNameBytes)
	}
	for _, field := range [][2]string{{"name", pod.Name}, {"namespace", pod.Namespace}, {"uid", pod.UID}, {"network namespace", pod.NetNS}} {
		if strings.ContainsAny(field[1], ";=\x00\n\r") || !utf8.ValidString(field[1]) {
			return nil, fmt.Errorf("%w: pod %s %q holds a character that plugins cannot be given", ErrInvalid, field[0], quote([]byte(field[1])))
		}
	}
	return &libcni.RuntimeConf{
		ContainerID: pod.ID,
		NetNS:       pod.NetNS,
		IfName:      ifName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", pod.Namespace},
			{"K8S_POD_NAME", pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", pod.ID},
			{"K8S_POD_UID", pod.UID},
		},
		CapabilityArgs: map[string]any{},
	}, nil
}

// portMappings returns the mappings that ask for a port of the host.
func portMappings(from []*runtimeapi.PortMapping) ([]portMapping, error) {
	var to []portMapping
	for _, m := range from {
		if m.GetHostPort() <= 0 {
			continue
		}
		if m.HostPort > math.MaxUint16 || m.ContainerPort <= 0 || m.ContainerPort > math.MaxUint16 {
			return nil, fmt.Errorf("%w: port mapping %d to %d: ports are 1 to 65535", ErrInvalid, m.HostPort, m.ContainerPort)
		}
		name, ok := runtimeapi.Protocol_name[int32(m.Protocol)]
		if !ok {
			return nil, fmt.Errorf("%w: port mapping %d to %d: unknown protocol %d", ErrInvalid, m.HostPort, m.ContainerPort, m.Protocol)
		}
		if m.HostIp != "" {
			if _, err := netip.ParseAddr(m.HostIp); err != nil {
				return nil, fmt.Errorf("%w: port mapping %d to %d: host IP %q is not an address", ErrInvalid, m.HostPort, m.ContainerPort, quote([]byte(m.HostIp)))
			}
		}
		to = append(to, portMapping{HostPort: m.HostPort, ContainerPort: m.ContainerPort, Protocol: strings.ToLower(name), HostIP: m.HostIp})
	}
	return to, nil
}

// bandwidthOf returns the rates that the pod's annotations ask for, or nil.
func bandwidthOf(annotations map[string]string) (*bandwidth, error) {
	ingress, err := rate(annotations, ingressBandwidth)
	if err != nil {
		return nil, err
	}
	egress, err := rate(annotations, egressBandwidth)
	if err != nil {
		return nil, err
	}
	if ingress == 0 && egress == 0 {
		return nil, nil
	}
	b := &bandwidth{IngressRate: ingress, EgressRate: egress}
	// The plugin wants a burst with each rate; Kubernetes has no word for it,
	// and its runtimes give the largest.
	if ingress > 0 {
		b.IngressBurst = math.MaxInt32
	}
	if egress > 0 {
		b.EgressBurst = math.MaxInt32
	}
	return b, nil
}

func rate(annotations map[string]string, key string) (uint64, error) {
	text, ok := annotations[key]
	if !ok {
		return 0, nil
	}
	value, err := parseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("annotation %s: %w", key, err)
	}
	if value < minBandwidth || value > maxBandwidth {
		return 0, fmt.Errorf("%w: annotation %s: %s is not between 1k and 1P bit/s", ErrInvalid, key, quote([]byte(text)))
	}
	return value, nil
}

// liveNetNS returns the path if a network namespace is pinned there, and ""
// if there is none: then DEL is run without one.
func liveNetNS(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	var fs unix.Statfs_t
	err := unix.Statfs(path, &fs)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), err == nil && fs.Type != unix.NSFS_MAGIC && fs.Type != unix.PROC_SUPER_MAGIC:
		return "", nil
	case err != nil:
		return "", fmt.Errorf("network namespace %s: %w", path, err)
	}
	return path, nil
}
