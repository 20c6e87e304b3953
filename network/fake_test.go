package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const fakeResult = `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"interface":0,"address":"10.9.0.2/24"}]}`

// fakes are plugins made of shell scripts: each notes its calls, keeps its
// input, and then does what the test gave it for the verb.
type fakes struct {
	t      testing.TB
	dir    string // conf, bin, cache
	config Config
}

func newFakes(t testing.TB) *fakes {
	t.Helper()
	dir := t.TempDir()
	f := &fakes{t: t, dir: dir, config: Config{ConfDir: dir + "/conf", BinDirs: []string{dir + "/bin"}, CacheDir: dir + "/cache"}}
	for _, d := range []string{"conf", "bin"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// plugin makes a plugin; body is the shell code run after its input was read.
func (f *fakes) plugin(name, body string) {
	f.t.Helper()
	script := fmt.Sprintf(`#!/bin/sh
d=%s
cat >"$d/%s.$CNI_COMMAND.stdin"
printf '%%s %s %%s\n' "$CNI_COMMAND" "$CNI_CONTAINERID" >>"$d/calls"
printf '%%s\n' "$CNI_NETNS" >"$d/%s.$CNI_COMMAND.netns"
printf '%%s\n' "$CNI_ARGS" >"$d/%s.$CNI_COMMAND.args"
%s
`, f.dir, name, name, name, name, body)
	if err := os.WriteFile(filepath.Join(f.dir, "bin", name), []byte(script), 0o755); err != nil {
		f.t.Fatal(err)
	}
}

// good is the body of a plugin that does its part.
const good = `[ "$CNI_COMMAND" != ADD ] || echo '` + fakeResult + `'`

func (f *fakes) conf(file, text string) { write(f.t, filepath.Join(f.dir, "conf", file), text) }

func (f *fakes) calls() string {
	data, err := os.ReadFile(f.dir + "/calls")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.t.Fatal(err)
	}
	return strings.ReplaceAll(strings.TrimSpace(string(data)), "\n", ", ")
}

func (f *fakes) read(name string) string {
	f.t.Helper()
	data, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// empty fails the test if a record or a file of libcni's cache is left.
func (f *fakes) empty() {
	f.t.Helper()
	for _, dir := range []string{"attachments", "results"} {
		entries, err := os.ReadDir(filepath.Join(f.config.CacheDir, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			f.t.Fatal(err)
		}
		for _, entry := range entries {
			f.t.Errorf("%s/%s is left", dir, entry.Name())
		}
	}
}

func (f *fakes) pod(id string) Pod {
	f.t.Helper()
	return Pod{ID: id, Name: "web", Namespace: "default", UID: "u-" + id, NetNS: newNetNS(f.t)}
}

func TestAttachDetach(t *testing.T) {
	f := newFakes(t)
	f.plugin("first", good)
	f.plugin("second", good)
	f.conf("10.conflist", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"first","capabilities":{"portMappings":true}},{"type":"second","capabilities":{"dns":true,"bandwidth":true}}]}`)
	n := open(t, f.config)
	pod := f.pod("a1")
	pod.PortMappings = []*runtimeapi.PortMapping{{HostPort: 8080, ContainerPort: 80}}
	pod.DNS = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}}
	pod.Annotations = map[string]string{egressBandwidth: "1M"}
	att, err := n.Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if att.Network != "net" || len(att.IPs) != 1 || att.IPs[0] != "10.9.0.2" {
		t.Errorf("%+v", att)
	}
	if got, want := f.read("first.ADD.args"), "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=a1;K8S_POD_UID=u-a1"; got != want {
		t.Errorf("args %s, want %s", got, want)
	}
	for file, want := range map[string]string{
		"first.ADD.stdin":  `"runtimeConfig":{"portMappings":[{"containerPort":80,"hostPort":8080,"protocol":"tcp"}]}`,
		"second.ADD.stdin": `"runtimeConfig":{"bandwidth":{"egressBurst":2147483647,"egressRate":1000000},"dns":{"servers":["10.0.0.10"]}}`,
	} {
		got := f.read(file)
		if want, got := normal(t, "{"+want+"}", "runtimeConfig"), normal(t, got, "runtimeConfig"); got != want {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
	}
	// Through JSON, as a sandbox's record keeps it, with the configuration gone.
	data, err := json.Marshal(att)
	if err != nil {
		t.Fatal(err)
	}
	att = nil
	if err := json.Unmarshal(data, &att); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(f.config.ConfDir); err != nil {
		t.Fatal(err)
	}
	for range 2 { // idempotent
		if err := n.Detach(t.Context(), pod, att); err != nil {
			t.Fatal(err)
		}
		f.empty()
		if got := normal(t, f.read("second.DEL.stdin"), "prevResult"); !strings.Contains(got, "10.9.0.2") {
			t.Errorf("DEL without the result: %s", got)
		}
	}
	if got := normal(t, f.read("first.DEL.stdin"), "runtimeConfig"); !strings.Contains(got, "8080") {
		t.Errorf("DEL without the ports: %s", got)
	}
	if got, want := f.calls(), "ADD first a1, ADD second a1, DEL second a1, DEL first a1, DEL second a1, DEL first a1"; got != want {
		t.Errorf("calls %s, want %s", got, want)
	}
}

// normal returns one member of a JSON object with its keys sorted.
func normal(t *testing.T, text, member string) string {
	t.Helper()
	var whole map[string]any
	if err := json.Unmarshal([]byte(text), &whole); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(whole[member])
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestAttachFails(t *testing.T) {
	for name, test := range map[string]struct {
		second string   // body of the second plugin
		want   []string // in the error
		undone bool     // by DEL
	}{
		"error object": {
			`[ $CNI_COMMAND = DEL ] || { echo '{"cniVersion":"1.0.0","code":11,"msg":"no addresses\u0007 left","details":"range is full"}'; echo 'a hint' >&2; exit 1; }`,
			[]string{"default/web", "network net of ", "ADD by plugin second after", "no addresses left", "details: range is full", "stderr: a hint"},
			true,
		},
		"only stderr": {`[ $CNI_COMMAND = DEL ] || { printf 'bad\377\033[31m thing' >&2; exit 3; }`, []string{"plugin second", "exit status 3", "stderr: bad? [31m thing"}, true},
		"nothing":     {`[ $CNI_COMMAND = DEL ] || exit 1`, []string{"plugin second", "exit status 1"}, true},
		"rubbish":     {`[ $CNI_COMMAND = DEL ] || echo hello`, []string{"plugin second", "hello", "not a result"}, true},
		"no output":   {`:`, []string{"plugin second", "not a result"}, true},
		"null":        {`echo null`, []string{"no address for eth0"}, true},
		"nulls":       {`echo '{"cniVersion":"1.0.0","ips":[null]}'`, []string{"plugin second", "null in a list"}, true},
		"version":     {`echo '{"cniVersion":"7.0.0"}'`, []string{"7.0.0"}, true},
		"no address":  {`echo '{"cniVersion":"1.0.0"}'`, []string{"no address for eth0"}, true},
		"flood":       {`[ $CNI_COMMAND = DEL ] || exec head -c 5000000 /dev/zero`, []string{"plugin second", "more than 4194304 bytes"}, true},
		"signal":      {`[ $CNI_COMMAND = DEL ] || kill -SEGV $$`, []string{"plugin second", "signal: segmentation fault"}, true},
		"hang":        {`[ $CNI_COMMAND = DEL ] || sleep 1000`, []string{"plugin second", "killed: not done within"}, true},
		"DEL fails":   {`exit 1`, []string{"ADD by plugin second", "and then to undo it", "DEL by plugin second"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakes(t)
			f.plugin("first", good)
			f.plugin("second", test.second)
			f.conf("10.conflist", listOf("net", "first", "second"))
			f.config.Timeout = time.Minute
			if name == "hang" {
				f.config.Timeout = 500 * time.Millisecond
			}
			n := open(t, f.config)
			pod := f.pod("a1")
			_, err := n.Attach(t.Context(), pod)
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range test.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is not in: %v", part, err)
				}
			}
			if len(err.Error()) > 3000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if got := n.Status().LastError; got != err.Error() {
				t.Errorf("last error %q", got)
			}
			if test.undone {
				if got, want := f.calls(), "ADD first a1, ADD second a1, DEL second a1, DEL first a1"; got != want {
					t.Errorf("calls %s, want %s", got, want)
				}
				f.empty()
				return
			}
			// What could not be undone is undone later, even in another configuration.
			f.plugin("second", good)
			f.conf("10.conflist", listOf("other", "first"))
			if err := n.Detach(t.Context(), pod, nil); err != nil {
				t.Error(err)
			}
			if got, want := f.calls(), "ADD first a1, ADD second a1, DEL second a1, DEL second a1, DEL first a1"; got != want {
				t.Errorf("calls %s, want %s", got, want)
			}
			f.empty()
		})
	}
}

func TestAttachRefuses(t *testing.T) {
	f := newFakes(t)
	f.plugin("p", good)
	n := open(t, f.config)
	pod := f.pod("a1")
	if _, err := n.Attach(t.Context(), pod); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), f.config.ConfDir) {
		t.Errorf("without a configuration: %v", err)
	}
	f.conf("10.conflist", listOf("net", "p"))
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	for _, path := range []string{"", file, file + "/x", "/nowhere"} {
		bad := pod
		bad.NetNS = path
		if _, err := n.Attach(t.Context(), bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("namespace %q: %v", path, err)
		}
	}
	bad := pod
	bad.Name = "a;b"
	if _, err := n.Attach(t.Context(), bad); !errors.Is(err, ErrInvalid) {
		t.Errorf("name: %v", err)
	}
	if err := n.Detach(t.Context(), bad, nil); err != nil {
		t.Errorf("detach what is never attached: %v", err)
	}
	if got := f.calls(); got != "" {
		t.Errorf("calls %s", got)
	}
	f.empty()
}

// TestHangHoldsUpOnePod: others attach meanwhile, and the one whose caller
// goes away is undone at once.
func TestHangHoldsUpOnePod(t *testing.T) {
	f := newFakes(t)
	f.plugin("p", `case "$CNI_COMMAND $CNI_CONTAINERID" in
'ADD slow') sleep 1000 & echo $! >"$d/child.new"; mv "$d/child.new" "$d/child"; wait;;
esac
`+good)
	f.conf("10.conflist", listOf("net", "p"))
	n := open(t, f.config)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow := make(chan error, 1)
	pod := f.pod("slow")
	go func() {
		_, err := n.Attach(ctx, pod)
		slow <- err
	}()
	child := waitFor(t, filepath.Join(f.dir, "child"))
	other := f.pod("fast")
	att, err := n.Attach(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(); err != nil {
		t.Error(err)
	}
	if err := n.GC(t.Context(), only("slow", "fast")); !errors.Is(err, ErrBusy) {
		t.Errorf("GC while attaching: %v", err)
	}
	if err := n.Detach(t.Context(), other, att); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-slow; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the caller has gone away") {
		t.Errorf("%v", err)
	}
	gone(t, child)
	if got, want := f.calls(), "ADD p slow, ADD p fast, DEL p fast, DEL p slow"; got != want {
		t.Errorf("calls %s, want %s", got, want)
	}
	f.empty()
}

// waitFor returns the number in a file once it exists.
func waitFor(t *testing.T, name string) int {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if data, err := os.ReadFile(name); err == nil {
			pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}

// gone waits until the process has ended, whoever reaps it.
func gone(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || ready == 0 {
			t.Errorf("process %d is still there: %v", pid, err)
		}
		return
	}
}

// TestOutputHeldOpen: a daemon that a plugin leaves behind holds up nobody.
func TestOutputHeldOpen(t *testing.T) {
	f := newFakes(t)
	f.plugin("p", `[ $CNI_COMMAND != ADD ] || { setsid sleep 1000 & echo $! >"$d/child"; }
`+good)
	f.conf("10.conflist", listOf("net", "p"))
	n := open(t, f.config)
	pod := f.pod("a1")
	att, err := n.Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(waitFor(t, f.dir+"/child"), unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := n.Detach(t.Context(), pod, att); err != nil {
		t.Error(err)
	}
}

func TestPluginsSayTheyCannotServe(t *testing.T) {
	f := newFakes(t)
	f.plugin("p", `[ $CNI_COMMAND != STATUS ] || { [ -e "$d/well" ] || { echo '{"cniVersion":"1.1.0","code":50,"msg":"agent is down"}'; exit 1; }; }`)
	f.conf("10.conflist", `{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"p"}]}`)
	n := open(t, f.config)
	for n.health.Load() == nil { // the watch's own first question
		runtime.Gosched()
	}
	n.checkHealth(t.Context())
	if err := n.Ready(); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "agent is down") {
		t.Errorf("%v", err)
	}
	write(t, f.dir+"/well", "")
	n.checkHealth(t.Context())
	if err := n.Ready(); err != nil {
		t.Error(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	f := newFakes(t)
	f.plugin("p", good)
	f.conf("10.conflist", listOf("net", "p"))
	n := open(t, f.config)
	const pods = 24
	var group sync.WaitGroup
	for i := range pods {
		pod := f.pod("pod" + strconv.Itoa(i))
		group.Go(func() {
			att, err := n.Attach(t.Context(), pod)
			if err != nil {
				t.Error(err)
				return
			}
			if err := n.Detach(t.Context(), pod, att); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if got := strings.Count(f.calls(), "ADD"); got != pods {
		t.Errorf("%d calls of ADD", got)
	}
	if got := strings.Count(f.calls(), "DEL"); got != pods {
		t.Errorf("%d calls of DEL", got)
	}
	f.empty()
}

// TestSeveralInterfaces: of what a plugin of several networks answers, eth0 of the
// pod counts; the whole result and each plugin's own capabilities go through.
func TestSeveralInterfaces(t *testing.T) {
	f := newFakes(t)
	const result = `[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0",
		"interfaces":[{"name":"br0"},{"name":"net1","sandbox":"x"},{"name":"eth0","sandbox":"x"}],
		"ips":[{"interface":1,"address":"192.0.2.7/24"},{"interface":2,"address":"fd00::2/64"},{"interface":2,"address":"10.9.0.2/24"},{"interface":0,"address":"10.9.0.1/24"}]}'`
	f.plugin("many", result)
	f.plugin("rates", result)
	f.conf("10.conflist", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"many","capabilities":{"cgroupPath":true,"io.kubernetes.cri.pod-annotations":true,"mac":true}},
		{"type":"rates","capabilities":{"bandwidth":true,"dns":false}}]}`)
	n := open(t, f.config)
	pod := f.pod("a1")
	pod.CgroupParent = "/kubepods/a1"
	pod.DNS = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}}
	pod.Annotations = map[string]string{ingressBandwidth: "2M", egressBandwidth: "1M"}
	att, err := n.Attach(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(att.IPs, " "); got != "fd00::2 10.9.0.2" {
		t.Errorf("addresses %s", got)
	}
	for file, want := range map[string]string{
		"many.ADD.stdin":  `"runtimeConfig":{"cgroupPath":"/kubepods/a1","io.kubernetes.cri.pod-annotations":{"kubernetes.io/ingress-bandwidth":"2M","kubernetes.io/egress-bandwidth":"1M"}}`,
		"rates.ADD.stdin": `"runtimeConfig":{"bandwidth":{"ingressRate":2000000,"ingressBurst":2147483647,"egressRate":1000000,"egressBurst":2147483647}}`,
	} {
		if want, got := normal(t, "{"+want+"}", "runtimeConfig"), normal(t, f.read(file), "runtimeConfig"); got != want {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
	}
	if err := n.Detach(t.Context(), pod, att); err != nil {
		t.Fatal(err)
	}
	if got := normal(t, f.read("many.DEL.stdin"), "prevResult"); !strings.Contains(got, "192.0.2.7") || !strings.Contains(got, "net1") {
		t.Errorf("DEL without the other interface: %s", got)
	}
	f.empty()
}
