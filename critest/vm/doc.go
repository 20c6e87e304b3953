// Command vm runs the project's tests on hosts that the machine at hand is
// not: cgroup v2 with systemd, SELinux enforcing, AppArmor, cgroup v1 with an
// old kernel. The guests are made and started by the programs mkimage and vm
// beside it; see README.md.
package main
