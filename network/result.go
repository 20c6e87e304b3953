package network

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// podIPs returns the addresses of the pod's interface in the order of the
// result, of which the first is the primary one. Other addresses of the
// result belong to other interfaces of the pod or to the host.
func podIPs(from types.Result) ([]string, error) {
	result, err := types100.NewResultFromResult(from)
	if err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	var ips []string
	for _, ip := range result.IPs {
		// Configurations of before CNI 0.3 name no interfaces.
		if i := ip.Interface; i != nil {
			if *i < 0 || *i >= len(result.Interfaces) {
				continue
			}
			if link := result.Interfaces[*i]; link.Name != ifName || link.Sandbox == "" {
				continue
			}
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			continue
		}
		text := addr.Unmap().String()
		if !slices.Contains(ips, text) {
			ips = append(ips, text)
		}
	}
	if len(ips) == 0 {
		data, err := json.Marshal(result)
		if err != nil {
			data = []byte(err.Error())
		}
		return nil, fmt.Errorf("%w: result has no address for %s in the pod: %s", ErrInvalid, ifName, quote(data))
	}
	return ips, nil
}
