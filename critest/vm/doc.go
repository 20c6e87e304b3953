// Package main is the command vm, which runs the project's tests on hosts that
// the machine at hand is not: cgroup v2 with systemd, SELinux enforcing,
// AppArmor, cgroup v1 with an old kernel. It prints passed, failed and skipped
// of each.
//
//	go run ./critest/vm [-modes selinux,apparmor,v2,v1] [-suites critest] [-run PATTERN] [-skip PATTERN] [-short]
//
// The guests are made and started by the programs mkimage and vm beside it; see README.md.
package main
