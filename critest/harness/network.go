package harness

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Subnet is the first three bytes of the pod network's addresses ("10.217.3").
func (r *Runtime) Subnet() string {
	sum := sha256.Sum256([]byte(r.Tag))
	return fmt.Sprintf("10.%d.%d", 200+sum[0]%50, sum[1])
}

// SubnetIPv6 is the same of the built-in network's IPv6 addresses ("fd77:a:b::").
func (r *Runtime) SubnetIPv6() string {
	sum := sha256.Sum256([]byte(r.Tag))
	return fmt.Sprintf("fd77:%x:%x::", 200+sum[0]%50, sum[1])
}

func (r *Runtime) makeNetwork(ctx context.Context) error {
	if r.options.CNIBin == "" {
		r.options.CNIBin = "/usr/lib/cni"
	}
	r.Bridge = r.Tag + "br"
	sum := sha256.Sum256([]byte(r.Tag))
	// Some kernels give a bridge without ports a zero address, which the
	// bridge plugin cannot set again: it gets one at birth.
	mac := fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", sum[2], sum[3], sum[4], sum[5], sum[6])
	out, err := exec.CommandContext(ctx, "ip", "link", "add", r.Bridge, "address", mac, "type", "bridge").CombinedOutput()
	if err != nil {
		return fmt.Errorf("make bridge %s: %w: %s", r.Bridge, err, out)
	}
	return r.WriteConflist(r.Conflist())
}

// Conflist is the network configuration that the pods get.
func (r *Runtime) Conflist() string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[
{"type":"bridge","bridge":%q,"isGateway":true,"ipMasq":true,"hairpinMode":true,
 "ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"%s.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
{"type":"portmap","capabilities":{"portMappings":true}}]}`,
		r.Tag+"net", r.Bridge, filepath.Join(r.Dir, "ipam"), r.Subnet())
}

// WriteConflist replaces the network configuration; "" removes it.
func (r *Runtime) WriteConflist(text string) error {
	path := filepath.Join(r.Dir, "cni", "10-test.conflist")
	if text == "" {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the network configuration: %w", err)
		}
		return nil
	}
	temp := path + ".tmp"
	if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write the network configuration: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("write the network configuration: %w", err)
	}
	return nil
}

func (r *Runtime) removeNetwork() error {
	if r.Bridge == "" {
		return nil
	}
	if r.options.Builtin {
		if _, err := os.Stat("/sys/class/net/" + r.Bridge); err == nil {
			return fmt.Errorf("bridge %s: %w", r.Bridge, ErrResidue)
		}
		return nil
	}
	//nolint:noctx // the clean-up runs also when the test's context has ended
	if out, err := exec.Command("ip", "link", "del", r.Bridge).CombinedOutput(); err != nil {
		return fmt.Errorf("remove bridge %s: %w: %s", r.Bridge, err, out)
	}
	return nil
}
