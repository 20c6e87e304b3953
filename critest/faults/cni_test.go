package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// plugins are CNI plugins made of a shell script, which does what the test says
// for a pod and a verb.
type plugins struct {
	*node
	dir string
}

const (
	pluginResult = `{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"interface":0,"address":"10.9.0.2/24"}]}`

	// What the two plugins do for every verb but as told by files.
	pluginScript = `#!/bin/sh
cat >/dev/null
me=${0##*/}
pod=${CNI_ARGS#*K8S_POD_NAME=}
pod=${pod%%%%;*}
echo "$me $CNI_COMMAND" >>'%[1]s/calls-'"$pod"
if [ -e '%[1]s/'"$me-$CNI_COMMAND-$pod" ]; then . '%[1]s/'"$me-$CNI_COMMAND-$pod"; fi
if [ $CNI_COMMAND = ADD ]; then echo '%[2]s'; fi
if [ $CNI_COMMAND = VERSION ]; then echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}'; fi
`
	pluginConflist = `{"cniVersion":"1.1.0","name":"fake","plugins":[{"type":"first","capabilities":{"portMappings":true}},{"type":"second"}]}`
)

// beginCNI runs a daemon whose pods of their own network get the fake plugins,
// with writers on the built-in one that were there before.
func beginCNI(t *testing.T) (*plugins, []*writer) {
	t.Helper()
	p := beginPlugins(t)
	if err := p.WriteConflist(""); err != nil {
		t.Fatal(err)
	}
	writers, err := p.writers(t.Context(), 2)
	if err == nil {
		err = p.WriteConflist(pluginConflist)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p, writers
}

// beginPlugins runs a daemon whose pods get the fake plugins.
func beginPlugins(t *testing.T, options ...func(o *harness.Options)) *plugins {
	t.Helper()
	dir := t.TempDir()
	n := begin(t, append(options, func(o *harness.Options) { o.Args = append(o.Args, "--cni-bin-dir", dir) })...)
	p := &plugins{node: n, dir: dir}
	for _, name := range []string{"first", "second"} {
		if err := os.WriteFile(filepath.Join(dir, name), fmt.Appendf(nil, pluginScript, dir, pluginResult), 0o700); err != nil { //nolint:gosec // a plugin is a program
			t.Fatal(err)
		}
	}
	n.configure("[network]\nplugin_timeout = \"2s\"\n")
	if err := n.WriteConflist(pluginConflist); err != nil {
		t.Fatal(err)
	}
	first, err := n.run(t.Context()) // libcni makes a directory that stays
	if err == nil {
		err = n.remove(t.Context(), first)
	}
	if err != nil {
		t.Fatal(err)
	}
	if n.before, err = n.Residue(); err != nil {
		t.Fatal(err)
	}
	return p
}

// configure restarts the daemon with more configuration.
func (n *node) configure(text string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.Dir, "config.toml.d", "50-test.toml"), []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.restart()
}

// misbehave makes a plugin run a script before, or instead of, what it should
// do for a verb and a pod; "" ends that.
func (p *plugins) misbehave(plugin, verb string, config *runtimeapi.PodSandboxConfig, script string) {
	p.t.Helper()
	file := filepath.Join(p.dir, plugin+"-"+verb+"-"+config.GetMetadata().GetName())
	err := os.Remove(file)
	if script != "" {
		err = os.WriteFile(file, []byte(script+"\n"), 0o600)
	}
	if err != nil {
		p.t.Error(err)
	}
}

// calls lists what the plugins were called for.
func (p *plugins) calls(config *runtimeapi.PodSandboxConfig) string {
	data, err := os.ReadFile(filepath.Join(p.dir, "calls-"+config.GetMetadata().GetName()))
	if err != nil {
		p.t.Error(err)
	}
	return strings.ReplaceAll(strings.TrimSpace(string(data)), "\n", ", ")
}

// badPlugins are ways to fail.
func badPlugins() map[string]string {
	return map[string]string{
		"hangs":                       "sleep 1000",
		"ignores signals":             "trap '' TERM INT HUP; while :; do sleep 1000; done",
		"fails":                       `echo '{"cniVersion":"1.1.0","code":11,"msg":"no luck"}'; exit 1`,
		"dies":                        "kill -9 $$",
		"prints rubbish":              `printf '\001\377{{{'; exit 1`,
		"prints a megabyte":           "head -c 1048576 /dev/zero; exit 1",
		"prints for ever":             "exec cat /dev/zero",
		"prints errors for ever":      "exec cat /dev/zero >&2",
		"closes its output and hangs": "exec >&- 2>&-; sleep 1000",
		"leaves a child and hangs":    "sleep 1000 & sleep 1000",
	}
}

// Each way to fail, in ADD and in DEL, of the first and the second plugin, with
// all pods at once: each fails within its deadline with the plugin's name in
// the error, the others go on, and all succeed once the plugin is mended.
func TestPluginsMisbehave(t *testing.T) {
	p, writers := beginCNI(t)
	var pods sync.WaitGroup
	for name, script := range badPlugins() {
		for _, plugin := range []string{"first", "second"} {
			if !long && plugin == "second" && name != "hangs" && name != "fails" {
				continue
			}
			pods.Go(func() {
				if err := p.misbehavesInADD(t.Context(), plugin, script); err != nil {
					t.Errorf("%s plugin, ADD %s: %v", plugin, name, err)
				}
			})
			pods.Go(func() {
				if err := p.misbehavesInDEL(t.Context(), plugin, script); err != nil {
					t.Errorf("%s plugin, DEL %s: %v", plugin, name, err)
				}
			})
			count("ways of a CNI plugin to misbehave", 2)
		}
	}
	patiently(t, "everything else", func(ctx context.Context) error { return p.unaffected(ctx, writers[0]) })
	pods.Wait()
	if err := p.check(t.Context(), writers...); err != nil {
		t.Error(err)
	}
}

// refuses wants an error within the deadline that names the plugin.
func refuses(ctx context.Context, plugin string, f func(ctx context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	switch err := f(limited); {
	case err == nil:
		return fmt.Errorf("no error: %w", errFault)
	case limited.Err() != nil:
		return fmt.Errorf("not in time: %w", err)
	case !strings.Contains(err.Error(), "plugin "+plugin):
		return fmt.Errorf("the plugin is not named: %w", err)
	}
	return nil
}

func (p *plugins) misbehavesInADD(ctx context.Context, plugin, script string) error {
	config := p.podConfig()
	p.misbehave(plugin, "ADD", config, script)
	if err := refuses(ctx, plugin, func(ctx context.Context) error {
		_, err := p.runConfig(ctx, config)
		return err
	}); err != nil {
		return fmt.Errorf("run: %w", err)
	}
	if calls := p.calls(config); !strings.HasSuffix(calls, "second DEL, first DEL") {
		return fmt.Errorf("after the failed ADD the calls were %s: %w", calls, errFault)
	}
	p.misbehave(plugin, "ADD", config, "")
	pod, err := p.runConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("run again: %w", err)
	}
	return p.remove(ctx, pod)
}

func (p *plugins) misbehavesInDEL(ctx context.Context, plugin, script string) error {
	config := p.podConfig()
	pod, err := p.runConfig(ctx, config)
	if err != nil {
		return err
	}
	c, err := p.start(ctx, pod, "sleep 1000")
	if err != nil {
		return err
	}
	p.misbehave(plugin, "DEL", config, script)
	for _, verb := range []func(context.Context, string) error{p.CRI.StopPodSandbox, p.CRI.RemovePodSandbox} {
		if err := refuses(ctx, plugin, func(ctx context.Context) error { return verb(ctx, pod.id) }); err != nil {
			return err
		}
	}
	if err := p.stopped(ctx, pod, c); err != nil {
		return err
	}
	p.misbehave(plugin, "DEL", config, "")
	if err := p.remove(ctx, pod); err != nil {
		return fmt.Errorf("stop and remove again: %w", err)
	}
	if calls := p.calls(config); !strings.HasSuffix(calls, "second DEL, first DEL") {
		return fmt.Errorf("the calls were %s: %w", calls, errFault)
	}
	return nil
}

// stopped wants a pod that is stopped but for its network.
func (p *plugins) stopped(ctx context.Context, pod *pod, c *container) error {
	answer, err := p.CRI.PodSandboxStatus(ctx, pod.id, false)
	if err != nil {
		return err
	}
	st, err := p.status(ctx, c.id)
	if err != nil {
		return err
	}
	if answer.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		return fmt.Errorf("pod is %s, container %s: %w", answer.Status.State, st.State, errFault)
	}
	return nil
}

// A result comes, but a child keeps the pipe: the pod does not wait for it.
func TestPluginLeavesChild(t *testing.T) {
	p, writers := beginCNI(t)
	config := p.podConfig()
	p.misbehave("second", "ADD", config, "sleep 5 &")
	patiently(t, "run", func(ctx context.Context) error {
		pod, err := p.runConfig(ctx, config)
		if err != nil {
			return err
		}
		return errors.Join(p.unaffected(ctx, writers[0]), p.remove(ctx, pod))
	})
}

// STATUS hangs or fails: it says nothing of pods that can be attached.
func TestPluginStatusHangs(t *testing.T) {
	p, writers := beginCNI(t)
	for _, script := range []string{"sleep 1000", "exec cat /dev/zero", "kill -9 $$"} {
		p.misbehave("first", "STATUS", nil, script)
		p.configure("[network]\nplugin_timeout = \"2s\"\n") // asks at its start
		patiently(t, "everything else", func(ctx context.Context) error { return p.unaffected(ctx, writers[0]) })
	}
	p.misbehave("first", "STATUS", nil, "")
}

// The daemon is killed while plugins hang, and starts with plugins that hang.
func TestKilledWhilePluginsHang(t *testing.T) {
	p, writers := beginCNI(t)
	const pods = 6
	var configs []*runtimeapi.PodSandboxConfig
	var running sync.WaitGroup
	for range pods {
		config := p.podConfig()
		configs = append(configs, config)
		p.misbehave("second", "ADD", config, "sleep 1000")
		p.misbehave("first", "DEL", config, "sleep 1000")
		running.Go(func() {
			_, _ = p.runConfig(t.Context(), config) // the daemon dies
		})
	}
	if err := harness.Until(t.Context(), patience, "all plugins to hang", func() bool {
		for _, config := range configs {
			data, err := os.ReadFile(filepath.Join(p.dir, "calls-"+config.Metadata.Name))
			if err != nil || !strings.Contains(string(data), "second ADD") {
				return false
			}
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	p.restart()
	running.Wait()
	patiently(t, "everything else", func(ctx context.Context) error { return p.unaffected(ctx, writers[0]) })
	for _, config := range configs {
		p.misbehave("second", "ADD", config, "")
		p.misbehave("first", "DEL", config, "")
	}
	for _, config := range configs {
		patiently(t, "run again", func(ctx context.Context) error {
			pod, err := p.runConfig(ctx, config)
			if err != nil {
				return err
			}
			return p.remove(ctx, pod)
		})
	}
	if err := p.check(t.Context(), writers...); err != nil {
		t.Error(err)
	}
	// Those whose DEL hung when the daemon started are listed once it has given up.
	if err := harness.Until(t.Context(), patience, "the pods of before to be listed and removed", func() bool {
		if err := p.clean(t.Context()); err != nil {
			t.Error(err)
		}
		now, err := p.Residue()
		return err == nil && len(now.Since(p.before)) == 0
	}); err != nil {
		t.Error(err)
	}
}
