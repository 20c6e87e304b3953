package network

import (
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestParseQuantity(t *testing.T) {
	for text, want := range map[string]uint64{
		"0": 0, "1": 1, "+1": 1, "10M": 10e6, "1k": 1e3, "1.5G": 15e8, ".5k": 500, "5.": 5, "1Ki": 1024, "1.5Gi": 3 << 29,
		"1P": 1e15, "1E": 1e18, "1Ei": 1 << 60, "2e6": 2e6, "2E3": 2e3, "25e-1": 3, "1500m": 2, "1n": 1, "1u": 1, "00012": 12,
		"18446744073709551615": 1<<64 - 1,
	} {
		got, err := parseQuantity(text)
		if err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "+", ".", "-1", "M", "1 M", " 1", "1 ", "1x", "1KI", "1ki", "1i", "1KMi", "1e", "1e99", "1e-99", "1.2.3", "0x10", "1_000",
		"1/2", "100E", "18446744073709551616", "\xff", "1\x00", "1KiB", "e6", "1e+", "१", strings.Repeat("9", 1<<16), "1e999999999999",
	} {
		if got, err := parseQuantity(text); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func FuzzParseQuantity(f *testing.F) {
	for _, seed := range []string{"1.5Gi", "2e6", "1500m", "+.5E", "1e-18"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseQuantity(text)
		if err != nil {
			return
		}
		// A plain decimal number means itself.
		if want, ok := new(big.Int).SetString(text, 10); ok && want.Cmp(new(big.Int).SetUint64(got)) != 0 {
			t.Errorf("%q: %d", text, got)
		}
	})
}

func TestRuntimeConf(t *testing.T) {
	pod := Pod{
		ID: "abc", Name: "web", Namespace: "default", UID: "u1", NetNS: "/run/ns/net", CgroupParent: "/kubepods/pod1",
		PortMappings: []*runtimeapi.PortMapping{
			{ContainerPort: 80, HostPort: 8080, HostIp: "127.0.0.1"},
			{ContainerPort: 53, HostPort: 53, Protocol: runtimeapi.Protocol_UDP, HostIp: "::1"},
			{ContainerPort: 90, HostPort: 9090, Protocol: runtimeapi.Protocol_SCTP},
			{ContainerPort: 81},
			nil,
		},
		DNS:         &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"svc"}, Options: []string{"ndots:5"}},
		Annotations: map[string]string{ingressBandwidth: "10M"},
	}
	rt, err := runtimeConf(pod)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(rt)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"ContainerID":"abc","NetNS":"/run/ns/net","IfName":"eth0",` +
		`"Args":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","default"],["K8S_POD_NAME","web"],["K8S_POD_INFRA_CONTAINER_ID","abc"],["K8S_POD_UID","u1"]],` +
		`"CapabilityArgs":{"bandwidth":{"ingressRate":10000000,"ingressBurst":2147483647},"cgroupPath":"/kubepods/pod1",` +
		`"dns":{"servers":["10.0.0.10"],"searches":["svc"],"options":["ndots:5"]},` +
		`"io.kubernetes.cri.pod-annotations":{"kubernetes.io/ingress-bandwidth":"10M"},` +
		`"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"127.0.0.1"},` +
		`{"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"::1"},{"hostPort":9090,"containerPort":90,"protocol":"sctp"}]},"CacheDir":""}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestRuntimeConfRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Pod)
		want   string // the field that the error names
	}{
		"no id":           {func(p *Pod) { p.ID = "" }, "sandbox id"},
		"id climbs":       {func(p *Pod) { p.ID = "../x" }, "sandbox id"},
		"id dots":         {func(p *Pod) { p.ID = ".." }, "sandbox id"},
		"id newline":      {func(p *Pod) { p.ID = "a\n" }, "sandbox id"},
		"long id":         {func(p *Pod) { p.ID = strings.Repeat("a", 4096) }, "sandbox id"},
		"name smuggles":   {func(p *Pod) { p.Name = "a;IgnoreUnknown=0" }, "pod name"},
		"name with NUL":   {func(p *Pod) { p.Name = "a\x00" }, "pod name"},
		"namespace bytes": {func(p *Pod) { p.Namespace = "\xff" }, "pod namespace"},
		"uid pair":        {func(p *Pod) { p.UID = "a=b" }, "pod uid"},
		"netns NUL":       {func(p *Pod) { p.NetNS = "/a\x00b" }, "network namespace"},
		"host port": {func(p *Pod) {
			p.PortMappings = []*runtimeapi.PortMapping{{HostPort: 70000, ContainerPort: 1}}
		}, "70000"},
		"container port": {func(p *Pod) { p.PortMappings = []*runtimeapi.PortMapping{{HostPort: 7}} }, "7 to 0"},
		"protocol": {func(p *Pod) {
			p.PortMappings = []*runtimeapi.PortMapping{{HostPort: 7, ContainerPort: 7, Protocol: 9}}
		}, "protocol 9"},
		"host IP": {func(p *Pod) {
			p.PortMappings = []*runtimeapi.PortMapping{{HostPort: 7, ContainerPort: 7, HostIp: "localhost"}}
		}, "localhost"},
		"bandwidth":       {func(p *Pod) { p.Annotations = map[string]string{egressBandwidth: "fast"} }, egressBandwidth},
		"small bandwidth": {func(p *Pod) { p.Annotations = map[string]string{ingressBandwidth: "1"} }, "1k"},
		"large bandwidth": {func(p *Pod) { p.Annotations = map[string]string{ingressBandwidth: "2P"} }, "1P"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := Pod{ID: "abc"}
			test.change(&pod)
			_, err := runtimeConf(pod)
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestPodIPs(t *testing.T) {
	for name, test := range map[string]struct {
		result string
		want   string
	}{
		"dual stack": {`{"cniVersion":"1.0.0","interfaces":[{"name":"br0"},{"name":"v1"},{"name":"eth0","sandbox":"/n"}],
			"ips":[{"interface":2,"address":"10.1.0.2/16"},{"interface":2,"address":"fd00::2/64"}]}`, "10.1.0.2 fd00::2"},
		"others' addresses": {`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"},{"name":"net1","sandbox":"/n"},{"name":"eth0","sandbox":"/n"}],
			"ips":[{"interface":0,"address":"192.0.2.1/24"},{"interface":1,"address":"192.0.2.2/24"},{"interface":2,"address":"fd00::2/64"}]}`, "fd00::2"},
		"no interfaces":  {`{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.0.2/16"},{"version":"4","address":"10.1.0.2/16"}]}`, "10.1.0.2"},
		"old":            {`{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/16"},"ip6":{"ip":"fd00::2/64"}}`, "10.1.0.2 fd00::2"},
		"mapped":         {`{"cniVersion":"1.0.0","ips":[{"address":"::ffff:10.1.0.2/112"}]}`, "10.1.0.2"},
		"index too high": {`{"cniVersion":"1.0.0","interfaces":[],"ips":[{"interface":7,"address":"10.1.0.2/16"}]}`, ""},
		"negative index": {`{"cniVersion":"1.0.0","interfaces":[],"ips":[{"interface":-1,"address":"10.1.0.2/16"}]}`, ""},
		"no address":     {`{"cniVersion":"1.0.0"}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := create.CreateFromBytes([]byte(test.result))
			if err != nil {
				t.Fatal(err)
			}
			ips, err := podIPs(result)
			if got := strings.Join(ips, " "); got != test.want || (err == nil) != (test.want != "") {
				t.Errorf("%q, %v; want %q", got, err, test.want)
			}
		})
	}
}

// FuzzResult: no output of a plugin makes the daemon stumble.
func FuzzResult(f *testing.F) {
	for _, v := range version.All.SupportedVersions() {
		f.Add([]byte(`{"cniVersion":"` + v + `","ip4":{"ip":"10.0.0.1/8","routes":[{"dst":"0.0.0.0/0"}]},"interfaces":[{"name":"eth0","sandbox":"x"}],` +
			`"ips":[{"version":"4","interface":0,"address":"10.0.0.2/8","gateway":"10.0.0.1"}],"routes":[{"dst":"::/0"}],"dns":{"nameservers":["10.0.0.1"]}}`))
	}
	f.Add([]byte(`{"cniVersion":"0.4.0","ips":[null],"interfaces":[null],"routes":[null]}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":null}`))
	f.Fuzz(func(t *testing.T, stdout []byte) {
		if checkResult(stdout) != nil {
			return
		}
		result, err := create.CreateFromBytes(stdout)
		if err != nil {
			return
		}
		if ips, err := podIPs(result); err == nil && len(ips) == 0 {
			t.Error("neither addresses nor an error")
		}
		for _, v := range version.All.SupportedVersions() {
			_, _ = result.GetAsVersion(v)
		}
		_, _ = json.Marshal(result)
	})
}
