package sandbox

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/oci"
)

const (
	// defaultProfile is the AppArmor profile that RuntimeDefault stands for.
	defaultProfile = "cri-runtime-default"
	// loadedProfiles has a line for each profile that the kernel knows.
	loadedProfiles = "/sys/kernel/security/apparmor/profiles"
	// parserTimeout bounds the compiler of profiles, which takes a fraction of a second.
	parserTimeout = 20 * time.Second
)

// profileText is the default profile; the daemon's own label takes the place of %s. The well-known
// library's is a text/template, which calls methods by name: the linker then keeps every exported
// method of every type, 3.3 MiB of the program that are mapped as long as it runs.
const profileText = `# What a container may do that asks for no profile of its own.
profile ` + defaultProfile + ` flags=(attach_disconnected,mediate_deleted) {
  network,
  unix,
  capability,
  file,
  umount,

  # Signals and tracing stay among containers; the node may do both to them.
  signal (receive) peer=unconfined,
  signal (receive) peer=%s,
  signal (send, receive) peer=` + defaultProfile + `,
  ptrace (readby, tracedby) peer=unconfined,
  ptrace (read, trace, readby, tracedby) peer=` + defaultProfile + `,

  # Mounts are the runtime's.
  deny mount,

  # The kernel's controls and memory, should they not be hidden or read-only already.
  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwklx,
  deny /proc/{acpi,asound,bus,driver,fs,irq,latency_stats,scsi,timer_list}{,/**} wklx,
  deny /proc/sys/{abi,debug,dev,fs,user,vm}/** wklx,
  # All but shm* and sem, which belong to the pod.
  deny /proc/sys/kernel/{[^s]**,s[^eh]**,seccomp/**} wklx,
  deny /sys/{block,bus,class,dev,devices,hypervisor,kernel,module,power}/** wklx,
  # All but cgroup.
  deny /sys/fs/{[^c]**,c[^g]**} wklx,
  deny /sys/{firmware,kernel/security}/** rwklx,
}
`

// loadDefaultProfile gives the kernel the default profile once a boot. Without it only
// containers that ask for one are refused.
func loadDefaultProfile(ctx context.Context, host *oci.Host) {
	if !host.AppArmor {
		return
	}
	loaded, err := profileLoaded(defaultProfile)
	if err == nil && !loaded {
		err = parseProfile(ctx, defaultProfileText(), "--replace", "--skip-cache")
	}
	if err != nil {
		klog.ErrorS(err, "There is no default AppArmor profile: containers that ask for none are not confined, those that ask for it are refused",
			"profile", defaultProfile, "remedy", "install the command apparmor_parser and mount securityfs on /sys/kernel/security, then start again")
		return
	}
	host.AppArmorDefault = defaultProfile
}

// defaultProfileText lets the daemon signal containers though it may be confined itself.
func defaultProfileText() string {
	own := "unconfined"
	// A label, and the mode it is in.
	if label, err := os.ReadFile("/proc/self/attr/apparmor/current"); err == nil {
		if label, _, _ := strings.Cut(strings.TrimSpace(string(label)), " ("); label != "" {
			own = fmt.Sprintf("%q", label)
		}
	}
	return fmt.Sprintf(profileText, own)
}

// parseProfile has a profile compiled, and loaded when the options say so.
func parseProfile(ctx context.Context, text string, options ...string) error {
	ctx, cancel := context.WithTimeout(ctx, parserTimeout)
	defer cancel()
	parser := exec.CommandContext(ctx, "apparmor_parser", options...)
	parser.Stdin = strings.NewReader(text)
	if out, err := parser.CombinedOutput(); err != nil {
		return fmt.Errorf("apparmor_parser %s: %w: %s", strings.Join(options, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func profileLoaded(name string) (bool, error) {
	f, err := os.Open(loadedProfiles)
	if err != nil {
		return false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// A name may have blanks, the mode has none.
		if known, _, found := strings.Cut(lines.Text(), " ("); found && known == name {
			return true, nil
		}
	}
	return false, lines.Err()
}

// checkAppArmor refuses a profile that the kernel does not have: execve would
// fail with a bare ENOENT.
func checkAppArmor(profile string) error {
	if profile == "" || profile == defaultProfile || profile == "unconfined" {
		return nil
	}
	loaded, err := profileLoaded(profile)
	if err != nil {
		return fmt.Errorf("AppArmor profile %q: %w", profile, err)
	}
	if !loaded {
		return fmt.Errorf("AppArmor profile %q is not loaded on this node (apparmor_parser -r FILE loads one): %w", profile, ErrInvalid)
	}
	return nil
}
