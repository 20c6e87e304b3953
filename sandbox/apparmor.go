package sandbox

import (
	"fmt"

	"github.com/moby/profiles/apparmor"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/oci"
)

// defaultProfile is the AppArmor profile that RuntimeDefault stands for.
const defaultProfile = "cri-runtime-default"

// loadDefaultProfile gives the kernel the default profile once a boot. Without it only
// containers that ask for one are refused.
func loadDefaultProfile(host *oci.Host) {
	if !host.AppArmor {
		return
	}
	loaded, err := apparmor.IsLoaded(defaultProfile)
	if err == nil && !loaded {
		err = apparmor.InstallDefault(defaultProfile)
	}
	if err != nil {
		klog.ErrorS(err, "There is no default AppArmor profile: containers that ask for none are not confined, those that ask for it are refused",
			"profile", defaultProfile, "remedy", "install the command apparmor_parser and mount securityfs on /sys/kernel/security, then start again")
		return
	}
	host.AppArmorDefault = defaultProfile
}

// checkAppArmor refuses a profile that the kernel does not have: execve would
// fail with a bare ENOENT.
func checkAppArmor(profile string) error {
	if profile == "" || profile == defaultProfile || profile == "unconfined" {
		return nil
	}
	loaded, err := apparmor.IsLoaded(profile)
	if err != nil {
		return fmt.Errorf("AppArmor profile %q: %w", profile, err)
	}
	if !loaded {
		return fmt.Errorf("AppArmor profile %q is not loaded on this node (apparmor_parser -r FILE loads one): %w", profile, ErrInvalid)
	}
	return nil
}
