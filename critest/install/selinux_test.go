package install

import (
	"os/exec"
	"slices"
	"testing"
)

// Both policy modules compile. Loading one needs a machine with that policy.
func TestPolicyModules(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"checkmodule", "semodule_package"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	dir := t.TempDir()
	run(t, nil, "deploy/selinux/build", dir)
	want := []string{"/container-selinux/cri-runtime.pp", "/refpolicy/cri-runtime.pp"}
	if got := tree(t, dir); !slices.Equal(got, want) {
		t.Errorf("the build makes %v, want %v", got, want)
	}
}
