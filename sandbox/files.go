package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/oci"
)

const worldReadable = 0o644

// writeFiles makes the files that the pod's containers have at /etc/hostname, /etc/hosts
// and /etc/resolv.conf.
func (b *Sandbox) writeFiles(att *network.Attachment) error {
	hosts, err := b.hosts(att)
	if err != nil {
		return err
	}
	resolv, err := b.resolvConf()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"hostname":    []byte(b.hostname() + "\n"),
		"hosts":       hosts,
		"resolv.conf": resolv,
	} {
		path := b.state(name)
		if err := os.WriteFile(path, content, worldReadable); err != nil {
			return fmt.Errorf("write pod file: %w", err)
		}
		if err := b.give(path); err != nil {
			return err
		}
	}
	return nil
}

// podFiles names what writeFiles and makeShm made.
func (b *Sandbox) podFiles() oci.PodFiles {
	f := oci.PodFiles{Hostname: b.state("hostname"), Hosts: b.state("hosts"), ResolvConf: b.state("resolv.conf"), Shm: "/dev/shm"}
	if b.ownIPC(b.Status().Config) {
		f.Shm = b.state("shm")
	}
	return f
}

// hosts is the host's own file with the host's network. A kubelet mounts its
// own file over either.
func (b *Sandbox) hosts(att *network.Attachment) ([]byte, error) {
	if att == nil {
		return readOptional("/etc/hosts")
	}
	var t strings.Builder
	t.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, ip := range att.IPs {
		fmt.Fprintf(&t, "%s\t%s\n", ip, b.hostname())
	}
	return []byte(t.String()), nil
}

// resolvConf is what the DNS configuration says, or without one the host's file.
func (b *Sandbox) resolvConf() ([]byte, error) {
	dns := b.Status().Config.GetDnsConfig()
	if len(dns.GetServers())+len(dns.GetSearches())+len(dns.GetOptions()) == 0 {
		return readOptional("/etc/resolv.conf")
	}
	var t strings.Builder
	if s := dns.GetSearches(); len(s) > 0 {
		fmt.Fprintf(&t, "search %s\n", strings.Join(s, " "))
	}
	for _, s := range dns.GetServers() {
		fmt.Fprintf(&t, "nameserver %s\n", s)
	}
	if o := dns.GetOptions(); len(o) > 0 {
		fmt.Fprintf(&t, "options %s\n", strings.Join(o, " "))
	}
	return []byte(t.String()), nil
}

func readOptional(path string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("copy for the pod: %w", err)
	}
	return content, nil
}
