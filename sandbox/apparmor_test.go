package sandbox

import (
	"os/exec"
	"strings"
	"testing"
)

// The compiler of profiles takes the default one; what it does is
// TestSeparationByAppArmor's of critest.
func TestDefaultProfile(t *testing.T) {
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		t.Skip("needs apparmor_parser, Debian's package apparmor")
	}
	text := defaultProfileText()
	if err := parseProfile(t.Context(), text, "--skip-kernel-load", "--skip-cache"); err != nil {
		t.Error(err)
	}
	err := parseProfile(t.Context(), text[:len(text)/2], "--skip-kernel-load", "--skip-cache")
	if err == nil || !strings.Contains(err.Error(), "parser error") {
		t.Error("half a profile:", err)
	}
}
