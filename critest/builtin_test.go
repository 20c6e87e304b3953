package critest

import (
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// elsewhere lets the rest of the test run on a daemon of its own.
func elsewhere(t *testing.T, change func(o *harness.Options)) {
	t.Helper()
	o, err := options(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	change(&o)
	other, err := harness.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	oldNode, oldRaw := node, raw
	node, raw = other, runtimeapi.NewRuntimeServiceClient(other.Conn)
	t.Cleanup(func() {
		node, raw = oldNode, oldRaw
		if err := other.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func freePort(t *testing.T) int32 {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

func TestBuiltinNetwork(t *testing.T) {
	differs(t, "has none")
	begin(t)
	elsewhere(t, func(o *harness.Options) { o.Builtin = true })
	port := freePort(t)
	a := run(t, podNetwork, func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 8080, HostPort: port}}
	})
	b := run(t, podNetwork)
	ips := a.status().Network
	if !strings.HasPrefix(ips.GetIp(), node.Subnet()+".") || len(ips.GetAdditionalIps()) != 1 || !strings.HasPrefix(ips.AdditionalIps[0].Ip, node.SubnetIPv6()) {
		t.Fatalf("addresses %v, want of %s.0/24 and %s/64", ips, node.Subnet(), node.SubnetIPv6())
	}
	a.start("", withImage(t, "web"))
	reach := func() {
		t.Helper()
		for _, address := range []string{
			ips.Ip + ":8080", "[" + ips.AdditionalIps[0].Ip + "]:8080",
			fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("%s.1:%d", node.Subnet(), port),
		} {
			if got := get(t, address); !strings.Contains(got, "It works") {
				t.Errorf("%s answers %q", address, got)
			}
		}
		for _, address := range []string{ips.Ip + ":8080", "[" + ips.AdditionalIps[0].Ip + "]:8080", fmt.Sprintf("%s.1:%d", node.Subnet(), port)} {
			for _, p := range []*pod{a, b} {
				if got := p.output("wget -qO- http://" + address + "/"); !strings.Contains(got, "It works") {
					t.Errorf("%s answers %q to a pod", address, got)
				}
			}
		}
	}
	reach()
	_, err := node.CRI.RunPodSandbox(t.Context(), podConfig(podNetwork, func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 1, HostPort: port}}
	}), "")
	if err == nil || !strings.Contains(err.Error(), a.id) {
		t.Errorf("a host port twice: %v, want an error that names %s", err, a.id)
	}
	if err := node.Restart(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	reach()
	c := run(t, podNetwork)
	if ip := c.status().Network.GetIp(); ip == ips.Ip || ip == b.status().Network.GetIp() {
		t.Errorf("address %s twice", ip)
	}
}

func TestUpdateRuntimeConfig(t *testing.T) {
	begin(t)
	for cidr, code := range map[string]codes.Code{
		"": codes.OK, "10.1.2.0/24": codes.OK, "10.1.2.0/24,fd00:1::/64": codes.OK, "nonsense": codes.InvalidArgument, "10.1.2.3": codes.InvalidArgument,
	} {
		_, err := raw.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{
			NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr},
		}})
		wantCode(t, err, code)
	}
}
