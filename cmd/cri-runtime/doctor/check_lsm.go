package doctor

import (
	"strings"
)

func (e *exam) selinux() string {
	if !e.exists("/sys/fs/selinux/enforce") {
		return "SELinux is off"
	}
	kind := "targeted"
	for _, line := range e.lines("/etc/selinux/config") {
		if value, ok := strings.CutPrefix(line, "SELINUXTYPE="); ok && value != "" && !strings.ContainsAny(value, "/\x00") {
			kind = strings.TrimSpace(value)
		}
	}
	file := "/etc/selinux/" + kind + "/contexts/lxc_contexts"
	if text, _ := e.text(file); !strings.Contains(text, "container_t") {
		e.warn("SELinux is on, and "+file+" has no container_t", "processes of containers run with the daemon's label: nothing more confines them, or they are denied everything",
			"install container-selinux")
	}
	return "SELinux is on, its policy knows containers"
}

func (e *exam) apparmor() string {
	if on, _ := e.text("/sys/module/apparmor/parameters/enabled"); on != "Y" {
		return "AppArmor is off"
	}
	if !e.exists("/sys/kernel/security/apparmor") {
		e.warn("AppArmor is on, and /sys/kernel/security/apparmor is not there", "which profiles are loaded cannot be seen: pods that name one are refused",
			"mount -t securityfs securityfs /sys/kernel/security")
	}
	for _, dir := range []string{"/sbin", "/usr/sbin", "/usr/bin", "/usr/local/sbin"} {
		if e.exists(dir + "/apparmor_parser") {
			return "AppArmor is on, with apparmor_parser"
		}
	}
	e.warn("AppArmor is on, and there is no apparmor_parser", "no profile can be loaded: pods with RuntimeDefault or a profile of the node are not confined or are refused", "install the package apparmor")
	return ""
}
