package oci

import (
	"errors"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCapabilities(t *testing.T) {
	all := capabilityNames()
	noResource := slices.DeleteFunc(capabilityNames(), func(n string) bool { return n == "CAP_SYS_RESOURCE" })
	without := func(from []string, names ...string) []string {
		return slices.DeleteFunc(slices.Clone(from), func(n string) bool { return slices.Contains(names, n) })
	}
	for _, tt := range []struct {
		name               string
		add, drop, ambient []string
		privileged         bool
		bounding           []string
		want, wantAmbient  []string
		missing            []string
	}{
		{name: "default", want: inOrder(defaultCapabilities())},
		{name: "add without prefix", add: []string{"net_admin"}, want: inOrder(append(defaultCapabilities(), "CAP_NET_ADMIN"))},
		{name: "add with prefix", add: []string{"Cap_Net_Admin"}, want: inOrder(append(defaultCapabilities(), "CAP_NET_ADMIN"))},
		{name: "drop", drop: []string{"NET_RAW", "cap_mknod"}, want: without(inOrder(defaultCapabilities()), "CAP_NET_RAW", "CAP_MKNOD")},
		{name: "drop all", drop: []string{"all"}},
		{name: "drop all, add one", drop: []string{"ALL"}, add: []string{"NET_BIND_SERVICE"}, want: []string{"CAP_NET_BIND_SERVICE"}},
		{name: "add all", add: []string{"ALL"}, want: all},
		{name: "add all, drop one", add: []string{"CAP_ALL"}, drop: []string{"SYS_ADMIN"}, want: without(all, "CAP_SYS_ADMIN")},
		{name: "add and drop the same", add: []string{"NET_ADMIN"}, drop: []string{"NET_ADMIN"}, want: inOrder(defaultCapabilities())},
		{name: "add all and drop all", add: []string{"ALL"}, drop: []string{"ALL"}},
		{
			name: "ambient only", drop: []string{"ALL"}, ambient: []string{"NET_BIND_SERVICE"},
			want: []string{"CAP_NET_BIND_SERVICE"}, wantAmbient: []string{"CAP_NET_BIND_SERVICE"},
		},
		{name: "ambient dropped", ambient: []string{"KILL"}, drop: []string{"KILL"}, want: without(inOrder(defaultCapabilities()), "CAP_KILL")},
		{name: "ambient all", ambient: []string{"ALL"}, want: all, wantAmbient: all},
		{name: "privileged", privileged: true, drop: []string{"ALL"}, want: all},
		{name: "privileged, daemon lacks one", privileged: true, bounding: noResource, want: noResource},
		{name: "add all, daemon lacks one", add: []string{"ALL"}, bounding: noResource, want: noResource},
		{
			name: "add what the daemon lacks", add: []string{"SYS_RESOURCE"}, bounding: noResource,
			want: inOrder(defaultCapabilities()), missing: []string{"CAP_SYS_RESOURCE"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.bounding == nil {
				tt.bounding = all
			}
			got, missing, err := capabilities(&runtimeapi.LinuxContainerSecurityContext{
				Privileged: tt.privileged,
				Capabilities: &runtimeapi.Capability{
					AddCapabilities: tt.add, DropCapabilities: tt.drop, AddAmbientCapabilities: tt.ambient,
				},
			}, &Host{Bounding: tt.bounding})
			if err != nil {
				t.Fatal(err)
			}
			for name, set := range map[string][]string{"bounding": got.Bounding, "effective": got.Effective, "permitted": got.Permitted} {
				if !slices.Equal(set, tt.want) {
					t.Errorf("%s = %v, want %v", name, set, tt.want)
				}
			}
			for name, set := range map[string][]string{"ambient": got.Ambient, "inheritable": got.Inheritable} {
				if !slices.Equal(set, tt.wantAmbient) {
					t.Errorf("%s = %v, want %v", name, set, tt.wantAmbient)
				}
			}
			if !slices.Equal(missing, tt.missing) {
				t.Errorf("missing = %v, want %v", missing, tt.missing)
			}
		})
	}
}

func TestCapabilitiesUnknown(t *testing.T) {
	for _, list := range []*runtimeapi.Capability{
		{AddCapabilities: []string{"CHOWN", "NONSENSE"}},
		{DropCapabilities: []string{"KILL", "CAP_CAP_CHOWN"}},
		{AddAmbientCapabilities: []string{"SETUID", ""}},
	} {
		_, _, err := capabilities(&runtimeapi.LinuxContainerSecurityContext{Capabilities: list}, &Host{Bounding: capabilityNames()})
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "_capabilities[1]: unknown capability") {
			t.Errorf("%v: %v", list, err)
		}
	}
}
