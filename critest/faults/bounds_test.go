package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

const hostileCalls = "calls of hostile clients"

// TestHostileClients asks for too much of everything: each is refused, nobody
// else notices, and nothing of it stays.
func TestHostileClients(t *testing.T) {
	n := begin(t)
	ctx := t.Context()
	writers, err := n.writers(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.exec(ctx, writers[1].container, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := n.raw.Version(ctx, &runtimeapi.VersionRequest{}); err != nil { // this client's connection counts, too
		t.Fatal(err)
	}
	base, err := n.census(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, attack := range []struct {
		name string
		run  func(ctx context.Context, victim, other *container) error
	}{
		{"execs", n.manyExecs},
		{"output", n.muchOutput},
		{"subscribers", n.manySubscribers},
		{"strangers", n.manyStrangers},
		{"lists", n.longLists},
	} {
		if err := attack.run(ctx, writers[0].container, writers[1].container); err != nil {
			t.Errorf("%s: %v", attack.name, err)
		}
		if err := n.check(ctx, writers...); err != nil {
			t.Errorf("after %s: %v", attack.name, err)
		}
	}
	base.threads = 2048 // Go keeps those that many kills at once have needed
	var above []string
	if err := harness.Until(ctx, patience, "all counts to be as before", func() bool {
		now, err := n.census(ctx)
		above = now.above(base)
		return err == nil && len(above) == 0
	}); err != nil {
		stacks, stacksErr := n.control(ctx, "/debug/pprof/goroutine?debug=1")
		now, nowErr := n.Residue()
		t.Errorf("%v: %q\n%q %v\n%s %v", err, above, now.Processes, nowErr, stacks, stacksErr)
	}
}

// manyExecs wants more commands in one container than may be.
func (n *node) manyExecs(ctx context.Context, victim, other *container) error {
	const wanted, most = 300, 256
	impatient, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, wanted)
	for range wanted {
		go func() {
			_, err := n.raw.ExecSync(impatient, &runtimeapi.ExecSyncRequest{ContainerId: victim.id, Cmd: []string{"sleep", "1000"}})
			ended <- err
		}()
	}
	count(hostileCalls, wanted)
	var errs []error
	for range wanted - most {
		if err := <-ended; status.Code(err) != codes.ResourceExhausted {
			errs = append(errs, fmt.Errorf("a command too many: %w, %w", err, errFault))
		}
	}
	errs = append(errs, n.exec(ctx, other, 1))
	cancel()
	for range most {
		if err := <-ended; status.Code(err) != codes.Canceled {
			errs = append(errs, fmt.Errorf("a command that was left: %w, %w", err, errFault))
		}
	}
	// The clients have left; the daemon still kills what they had begun.
	errs = append(errs, harness.Until(ctx, patience, "room for a command", func() bool { return n.exec(ctx, victim, 1) == nil }))
	return errors.Join(errs...)
}

// muchOutput lets commands write more, together, than the daemon keeps.
func (n *node) muchOutput(ctx context.Context, victim, other *container) error {
	const commands = 24
	ended := make(chan error, commands)
	sizes := make(chan int, commands)
	for range commands {
		go func() {
			r, err := n.raw.ExecSync(ctx, &runtimeapi.ExecSyncRequest{
				ContainerId: victim.id, Cmd: []string{"dd", "if=/dev/zero", "bs=64k", "count=320"}, Timeout: 600,
			})
			sizes <- len(r.GetStdout())
			ended <- err
		}()
	}
	count(hostileCalls, commands)
	errs := []error{n.exec(ctx, other, 1)}
	for range commands {
		if size := <-sizes; size > 16<<20 || size < 64<<10 {
			errs = append(errs, fmt.Errorf("%d bytes of output: %w", size, errFault))
		}
		errs = append(errs, <-ended)
	}
	m, err := n.metrics(ctx)
	note("hostile clients: %d commands that wrote 20 MiB each, at once: daemon resident %d MiB", commands, int(m["process_resident_memory_bytes"])>>20)
	return errors.Join(append(errs, err)...)
}

// manySubscribers subscribes to the events more often than may be, and reads none.
func (n *node) manySubscribers(ctx context.Context, _, _ *container) error {
	const most = 32
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for i := range most + 1 {
		s, err := n.raw.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
		if err != nil {
			return err
		}
		count(hostileCalls, 1)
		if i < most {
			if _, err := s.Header(); err != nil {
				return fmt.Errorf("subscriber %d: %w", i, err)
			}
			continue
		}
		if _, err := s.Recv(); status.Code(err) != codes.ResourceExhausted {
			return fmt.Errorf("a subscriber too many: %w, %w", err, errFault)
		}
	}
	return nil
}

// manyStrangers connects to the streams' port, as pods on the host's network can.
func (n *node) manyStrangers(ctx context.Context, victim, _ *container) error {
	const strangers = 2000
	answer, err := n.raw.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: victim.id, Cmd: []string{"cat"}, Stdout: true})
	if err != nil {
		return err
	}
	address, err := url.Parse(answer.Url)
	if err != nil {
		return err
	}
	for i := range strangers {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address.Host)
		if err != nil {
			return fmt.Errorf("stranger %d: %w", i, err)
		}
		defer c.Close()
		if i%2 == 0 {
			_, _ = io.WriteString(c, "POST /exec/guessed HTTP/1.1\r\nX-Long: ")
		}
	}
	count(hostileCalls, strangers)
	m, err := n.metrics(ctx)
	if err == nil && m["process_open_fds"] > 1000 {
		err = fmt.Errorf("%.0f descriptors with %d strangers: %w", m["process_open_fds"], strangers, errFault)
	}
	return err
}

// longLists sends requests whose lists are far too long.
func (n *node) longLists(ctx context.Context, victim, _ *container) error {
	const many = 100_000
	pod := func(change func(*runtimeapi.PodSandboxConfig)) error {
		config := n.podConfig(hostNetwork)
		change(config)
		_, err := n.CRI.RunPodSandbox(ctx, config, "")
		return err
	}
	made := func(change func(*runtimeapi.ContainerConfig)) error {
		config := containerConfig(victim.pod.config, "true")
		change(config)
		_, err := n.CRI.CreateContainer(ctx, victim.pod.id, config, victim.pod.config)
		return err
	}
	var errs []error
	for what, err := range map[string]error{
		"labels": pod(func(c *runtimeapi.PodSandboxConfig) { c.Labels = map[string]string{"a": strings.Repeat("x", 5<<20)} }),
		"annotations": pod(func(c *runtimeapi.PodSandboxConfig) {
			c.Annotations = map[string]string{"a": strings.Repeat("x", 5<<20)}
		}),
		"port_mappings": pod(func(c *runtimeapi.PodSandboxConfig) {
			for i := range many {
				c.PortMappings = append(c.PortMappings, &runtimeapi.PortMapping{ContainerPort: int32(i%65535) + 1})
			}
		}),
		"dns_config": pod(func(c *runtimeapi.PodSandboxConfig) {
			c.DnsConfig = &runtimeapi.DNSConfig{}
			for range many {
				c.DnsConfig.Servers = append(c.DnsConfig.Servers, "192.0.2.1")
			}
		}),
		"devices": made(func(c *runtimeapi.ContainerConfig) {
			for i := range many {
				c.Devices = append(c.Devices, &runtimeapi.Device{HostPath: "/dev/null", ContainerPath: fmt.Sprint("/dev/x", i), Permissions: "r"})
			}
		}),
		"mounts": made(func(c *runtimeapi.ContainerConfig) {
			for i := range many {
				c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: "/tmp", ContainerPath: fmt.Sprint("/x", i)})
			}
		}),
		"masked_paths": made(func(c *runtimeapi.ContainerConfig) {
			for i := range many {
				c.Linux.SecurityContext.MaskedPaths = append(c.Linux.SecurityContext.MaskedPaths, fmt.Sprint("/proc/", i))
			}
		}),
		"envs": made(func(c *runtimeapi.ContainerConfig) {
			for i := range many {
				c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: fmt.Sprint("E", i), Value: []byte("x")})
			}
		}),
	} {
		count(hostileCalls, 1)
		if status.Code(err) != codes.InvalidArgument || len(err.Error()) > 16<<10 {
			errs = append(errs, fmt.Errorf("%s: %w, %w", what, err, errFault))
		}
	}
	return errors.Join(errs...)
}
