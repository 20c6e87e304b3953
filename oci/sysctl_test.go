package oci

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func sysctlPod(ns *runtimeapi.NamespaceOption, sysctls map[string]string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{
		Sysctls: sysctls, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ns},
	}}
}

func TestSandboxSysctls(t *testing.T) {
	hostNet := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}
	hostIPC := &runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_NODE}
	for _, tt := range []struct {
		name, value string
		ns          *runtimeapi.NamespaceOption
		ok          bool
	}{
		{"kernel.shm_rmid_forced", "1", nil, true},
		{"kernel.shmmax", "68719476736", nil, true},
		{"kernel.msgmax", "65536", nil, true},
		{"kernel.sem", "250 32000\t100 128", nil, true},
		{"fs.mqueue.msg_max", "10", nil, true},
		{"net.ipv4.ip_local_port_range", "1024 65535", nil, true},
		{"net.ipv4.conf.eth0-1.rp_filter", "0", nil, true},
		{"net.core.somaxconn", "1024", hostIPC, true},
		{"kernel.shmmax", "1", hostNet, true},
		{"net.core.somaxconn", "1024", hostNet, false},
		{"kernel.shmmax", "1", hostIPC, false},
		{"fs.mqueue.msg_max", "1", hostIPC, false},
		{"kernel.core_pattern", "|/bin/sh", nil, false},
		{"kernel.hostname", "x", nil, false},
		{"kernel.semaphore", "x", nil, false},
		{"fs.file-max", "1", nil, false},
		{"vm.overcommit_memory", "1", nil, false},
		{"net", "1", nil, false},
		{"net.", "1", nil, false},
		{".net.core", "1", nil, false},
		{"net..core", "1", nil, false},
		{"net/core/somaxconn", "1", nil, false},
		{"net.ipv4/../../kernel.core_pattern", "1", nil, false},
		{"net.ipv4.conf.eth0+kernel.core_pattern", "1", nil, false},
		{"net.ipv4.x\n", "1", nil, false},
		{"net.ipv4.x=y", "1", nil, false},
		{"net.\xff.x", "1", nil, false},
		{"net.ipv4.é", "1", nil, false},
		{"net." + strings.Repeat("a", maxNameBytes), "1", nil, false},
		{"", "1", nil, false},
		// CVE-2022-0811: the value carried a second sysctl.
		{"kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil #", nil, false},
		{"kernel.shm_rmid_forced", "1\nx", nil, false},
		{"kernel.shm_rmid_forced", "1\x00", nil, false},
		{"kernel.shm_rmid_forced", "1\xff", nil, false},
		{"kernel.shm_rmid_forced", strings.Repeat("1", maxSysctlBytes+1), nil, false},
	} {
		in := map[string]string{tt.name: tt.value}
		got, err := SandboxSysctls(sysctlPod(tt.ns, in))
		switch {
		case tt.ok && (err != nil || !reflect.DeepEqual(got, in)):
			t.Errorf("%.80q=%.80q: %v, %v", tt.name, tt.value, got, err)
		case !tt.ok && !errors.Is(err, ErrInvalid):
			t.Errorf("%.80q=%.80q: accepted (%v)", tt.name, tt.value, err)
		case !tt.ok && !strings.HasPrefix(err.Error(), "config.linux.sysctls"):
			t.Errorf("error %q names no field", err)
		}
	}
}

func FuzzSysctl(f *testing.F) {
	f.Add("net.ipv4.ip_forward", "1")
	f.Add("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil")
	f.Fuzz(func(t *testing.T, name, value string) {
		if checkSysctl(name, value, nil) != nil {
			return
		}
		if strings.ContainsAny(name, "/+= \n\x00") || strings.Contains(name, "..") || strings.ContainsAny(value, "+\n\x00") {
			t.Errorf("accepted %q=%q", name, value)
		}
	})
}
