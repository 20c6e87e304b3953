package oci

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

func TestNewCgroupsDriver(t *testing.T) {
	if _, err := NewCgroups("nonsense"); !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v", err)
	}
	if exists("/run/systemd/system") {
		t.Skip("systemd runs here")
	}
	if _, err := NewCgroups("systemd"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("error %v", err)
	}
}

func TestCgroupPath(t *testing.T) {
	for _, tt := range []struct {
		in      string
		systemd bool
		want    string // "": an error
	}{
		{"/kubepods/pod1/c1", false, "/kubepods/pod1/c1"},
		{"/kubepods//pod1/", false, "/kubepods/pod1"},
		{"kubepods-burstable-pod1.slice:cri:c1", true, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-c1.scope"},
		{"kubepods.slice:cri:c1", true, "/kubepods.slice/cri-c1.scope"},
		{":cri:c1", true, "/system.slice/cri-c1.scope"},
		{"-.slice:cri:c1", true, "/cri-c1.scope"},
		{"a.slice::c1", true, "/a.slice/c1.scope"},
		{"a.slice:cri:a-b.slice", true, "/a.slice/a-b.slice"},
		{"kubepods-besteffort.slice", true, "/kubepods.slice/kubepods-besteffort.slice"},
		{"/a/b", true, "/a/b"},
		{"a.slice:cri:c1", false, ""},
		{"a.slice:cri", true, ""},
		{"a.slice:cri:c1:d", true, ""},
		{"a.slice:cri:", true, ""},
		{"a.slice:cri:../x", true, ""},
		{"a.slice:c/r:x", true, ""},
		{"a/b.slice:cri:x", true, ""},
		{"a:cri:x", true, ""},
		{"a--b.slice:cri:x", true, ""},
		{"-a.slice:cri:x", true, ""},
		{".slice:cri:x", true, ""},
		{"-.slice", true, ""},
		{"a\n.slice:cri:x", true, ""},
		{"/", true, ""},
		{"", true, ""},
	} {
		got, err := cgroupPath(tt.in, tt.systemd)
		if got := map[bool]string{true: got}[err == nil]; got != tt.want || (tt.want == "" && !errors.Is(err, ErrInvalid)) {
			t.Errorf("cgroupPath(%q, %v) = %q, %v; want %q", tt.in, tt.systemd, got, err, tt.want)
		}
	}
}

func FuzzCgroupPath(f *testing.F) {
	f.Add("kubepods-burstable-pod1.slice:cri:c1", true)
	f.Add("/a/../b", false)
	f.Fuzz(func(t *testing.T, in string, systemd bool) {
		got, err := cgroupPath(in, systemd)
		if err == nil && (!strings.HasPrefix(got, "/") || got == "/" || filepath.Clean(got) != got || strings.ContainsRune(got, 0)) {
			t.Errorf("cgroupPath(%q, %v) = %q", in, systemd, got)
		}
	})
}
