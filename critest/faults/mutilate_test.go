package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// victim is a pod one of whose files is damaged, and what else there is of it.
type victim struct {
	*pod
	running, ended, lost *container
	image                string // an image of its own: the reference
	layer                string // the directory of its lower layer, below images/layers
	record               string // likewise, below images/records
}

// mutilation is one kind of file, and what damage to it may do.
type mutilation struct {
	name  string
	file  func(v *victim) string // below the node's directory
	cni   bool                   // of a pod that plugins have attached
	tells func(v *victim) string // what the check prints afterwards, if not nil
	// after says what is wrong with the victim, or nil.
	after func(ctx context.Context, n *node, v *victim) error
}

// mutilationsOf are all kinds of files that the daemon reads.
func mutilationsOf() []mutilation {
	box := func(file string) func(v *victim) string {
		return func(v *victim) string { return "root/sandboxes/" + v.id + "/" + file }
	}
	of := func(which func(v *victim) *container, file string) func(v *victim) string {
		return func(v *victim) string { return "root/containers/" + which(v).id + "/" + file }
	}
	fixed := func(path string) func(v *victim) string { return func(*victim) string { return path } }
	running := func(v *victim) *container { return v.running }
	ended := func(v *victim) *container { return v.ended }
	lost := func(v *victim) *container { return v.lost }
	record := func(file string) func(v *victim) string {
		return func(v *victim) string { return "root/images/records/" + v.record + "/" + file }
	}
	layer := func(file string) func(v *victim) string {
		return func(v *victim) string { return "root/images/layers/" + v.layer + "/" + file }
	}
	return []mutilation{
		{name: "sandbox.json", file: box("sandbox.json"), tells: func(v *victim) string { return "damaged/" + v.id }, after: podGone},
		{name: "sandbox.json of a plugin's pod", file: box("sandbox.json"), cni: true, tells: func(v *victim) string { return "damaged/" + v.id }, after: podGone},
		{name: "stopping", file: box("stopping"), after: podStopped},
		{name: "container.json", file: of(running, "container.json"), tells: func(v *victim) string { return "damaged/" + v.running.id }, after: containerGone},
		{name: "config.json", file: of(running, "config.json"), tells: of(running, "config.json"), after: unharmed},
		{name: "resources.json", file: of(running, "resources.json"), tells: of(running, "resources.json"), after: unharmed},
		{name: "exit", file: of(ended, "exit"), after: unharmed},
		{name: "lost.json", file: of(lost, "lost.json"), after: unharmed},
		{name: "attachment", file: func(v *victim) string { return "root/cni/attachments/" + v.id + ".json" }, after: unharmed},
		{name: "attachment of a plugin's pod", cni: true, file: func(v *victim) string { return "root/cni/attachments/" + v.id + ".json" }, after: unharmed},
		{name: "libcni's cache", cni: true, file: func(v *victim) string { return "root/cni/results/fake-" + v.id + "-eth0" }, after: unharmed},
		{name: "subnets.json", file: fixed("root/cni/subnets.json"), after: unharmed},
		{name: "lock", file: fixed("root/lock"), after: unharmed},
		{name: "lock of the state", file: fixed("state/lock"), after: unharmed},
		{name: "lock of the images", file: fixed("root/images/lock"), after: unharmed},
		{name: "monitors", file: fixed("state/monitors"), after: unharmed},
		{name: "image.json", file: record("image.json"), tells: record("image.json"), after: unharmed},
		{name: "image's config.json", file: record("config.json"), tells: func(v *victim) string { return "records/" + v.record }, after: unharmed},
		{name: "manifest.json", file: record("manifest.json"), after: unharmed},
		{name: "layer.json", file: layer("layer.json"), tells: func(v *victim) string { return "layers/" + v.layer }, after: unharmed},
		{name: "listing", file: layer("listing"), after: unharmed},
	}
}

// notRead are files that the daemon writes for others, or whose being there is all.
func notRead() *regexp.Regexp {
	return regexp.MustCompile(`^(root/(skeleton|trash|damaged)/|root/containers/[^/]+/(upper|work)/|root/images/(layers/[^/]+/diff|records/[^/]+/parents)/|` +
		`state/sandboxes/[^/]+/(ns/|hosts$|hostname$|resolv.conf$|shm))`)
}

// TestFilesMutilated damages one file of each kind, each of another pod or image,
// while no daemon runs. The next one starts, only what a file is of is concerned, the
// check tells it, and the kubelet's clean-up leaves nothing.
func TestFilesMutilated(t *testing.T) {
	p, writers := beginCNI(t)
	n := p.node
	ctx := t.Context()
	// The daemon has its subnets by its configuration and writes none, but reads them.
	const kept = "root/cni/subnets.json"
	if err := os.WriteFile(filepath.Join(n.Dir, kept), []byte(`{"subnets":["10.85.0.1/24"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	n.before.Files = append(n.before.Files, kept)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	chance := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test's, and repeatable
	rounds := 2
	if long {
		rounds = 40
	}
	for round := range rounds {
		kinds := mutilationsOf()
		victims := make([]*victim, len(kinds))
		for i := range kinds {
			victims[i] = n.victim(fmt.Sprintf("mutilated-%d-%d", round, i), &kinds[i])
		}
		n.kill()
		n.knowsFiles(kinds, victims)
		for i, k := range kinds {
			how := mutilate(t, chance, filepath.Join(n.Dir, k.file(victims[i])), round)
			t.Logf("round %d: %s: %s", round, k.name, how)
			count(recordsMutilated, 1)
		}
		n.again()
		n.mutilated(ctx, kinds, victims)
		for _, w := range writers {
			if err := n.checkWriter(ctx, w); err != nil {
				t.Error(err)
			}
		}
		n.mend(ctx, writers, victims)
		if err := errors.Join(n.check(ctx, writers...), n.checkImages(ctx), n.checkDaemonLog()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			break
		}
	}
	for _, w := range writers {
		if err := n.remove(ctx, w.pod); err != nil {
			t.Error(err)
		}
	}
	n.settled("all files are mended")
}

// victim makes what the file of that kind is of.
func (n *node) victim(name string, k *mutilation) *victim {
	n.t.Helper()
	ctx := n.t.Context()
	conflist := ""
	if k.cni {
		conflist = pluginConflist
	}
	if err := n.WriteConflist(conflist); err != nil {
		n.t.Fatal(err)
	}
	p, err := n.run(ctx)
	if err != nil {
		n.t.Fatal(err)
	}
	v := &victim{pod: p}
	if v.running, err = n.start(ctx, p, "sleep 1000"); err != nil {
		n.t.Fatal(err)
	}
	switch {
	case k.name == "resources.json":
		_, err = n.raw.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: v.running.id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 300},
		})
	case k.name == "exit":
		if v.ended, err = n.start(ctx, p, "exit 7"); err == nil {
			err = n.lostOrEnded(ctx, v.ended)
		}
	case k.name == "lost.json":
		if v.lost, err = n.start(ctx, p, "sleep 1000"); err == nil {
			killProcess(n.t, n.monitor(v.lost))
			err = n.lost(ctx, v.lost)
		}
	case k.name == "stopping":
		err = os.WriteFile(filepath.Join(n.Dir, k.file(v)), nil, 0o600) // a stop that was cut off
	case strings.Contains(k.file(v), "root/images/") && !strings.HasSuffix(k.name, "images"):
		err = n.ownImage(ctx, name, v)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return v
}

// ownImage pulls an image that nobody else has.
func (n *node) ownImage(ctx context.Context, name string, v *victim) error {
	v.image = noise(n.t, name, 4096)
	id, err := n.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: v.image}, nil, nil)
	if err != nil {
		return err
	}
	v.record = strings.TrimPrefix(id, "sha256:")
	var r struct{ Layers []string }
	data, err := os.ReadFile(filepath.Join(n.Dir, "root/images/records", v.record, "image.json"))
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil || len(r.Layers) == 0 {
		return fmt.Errorf("layers of %s: %w", v.image, errors.Join(err, errFault))
	}
	v.layer = strings.TrimPrefix(r.Layers[0], "sha256:")
	return nil
}

// lostOrEnded waits for the end of a container.
func (n *node) lostOrEnded(ctx context.Context, c *container) error {
	return harness.Until(ctx, patience, "the end of a container", func() bool {
		st, err := n.status(ctx, c.id)
		return err == nil && st.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
}

// knowsFiles wants each file of the daemon to be of a kind that is damaged here.
func (n *node) knowsFiles(kinds []mutilation, victims []*victim) {
	n.t.Helper()
	known := map[string]bool{"parents.listing": true} // imageservice has tests of that
	for i := range kinds {
		known[filepath.Base(kinds[i].file(victims[i]))] = true
	}
	for _, top := range []string{"root", "state"} {
		err := filepath.WalkDir(filepath.Join(n.Dir, top), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			rel, err := filepath.Rel(n.Dir, path)
			attachment := strings.HasPrefix(rel, "root/cni/attachments/") || strings.HasPrefix(rel, "root/cni/results/")
			if !known[filepath.Base(path)] && !attachment && !notRead().MatchString(rel) {
				n.t.Errorf("%s is a file of no known kind", rel)
			}
			return err
		})
		if err != nil {
			n.t.Fatal(err)
		}
	}
}

// mutilate damages a file, and says how. The checksum's last bytes are cut off only:
// without its name a record is one of an older version, and true.
func mutilate(t *testing.T, chance *rand.Rand, path string, round int) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var how string
	body := max(1, len(content)-30)
	switch way := (chance.IntN(5) + round) % 5; {
	case len(content) == 0:
		how, content = "rubbish", []byte("\x00\xff{")
	case way == 0:
		at := chance.IntN(body)
		how, content = fmt.Sprintf("cut at %d of %d", at, len(content)), content[:at]
	case way == 1 || way == 2:
		at, bit := chance.IntN(body), chance.IntN(8)
		how = fmt.Sprintf("bit %d of byte %d of %d flipped", bit, at, len(content))
		content[at] ^= 1 << bit
	case way == 3:
		how = fmt.Sprintf("%d zeros", len(content)) // as after a power cut
		clear(content)
	default:
		how = fmt.Sprintf("%d bytes of rubbish", len(content))
		for i := range content {
			content[i] = byte(chance.IntN(256))
		}
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return how
}

// mutilated checks what has become of each victim, and that the check tells of it.
func (n *node) mutilated(ctx context.Context, kinds []mutilation, victims []*victim) {
	n.t.Helper()
	var told string
	waited := harness.Until(ctx, patience, "the damaged objects to be taken away", func() bool {
		told, _ = n.CheckReport(ctx) // what it finds is an error
		for i, k := range kinds {
			if k.tells != nil && !strings.Contains(told, k.tells(victims[i])) {
				return false
			}
		}
		return true
	})
	for i, k := range kinds {
		if k.tells != nil && waited != nil && !strings.Contains(told, k.tells(victims[i])) {
			n.t.Errorf("%s: the check does not tell of %s:\n%s", k.name, k.tells(victims[i]), told)
		}
		if err := k.after(ctx, n, victims[i]); err != nil {
			n.t.Errorf("%s: %v", k.name, err)
		}
	}
}

// mend does what a kubelet and an administrator would.
func (n *node) mend(ctx context.Context, writers []*writer, victims []*victim) {
	n.t.Helper()
	for _, v := range victims {
		if err := n.remove(ctx, v.pod); err != nil {
			n.t.Error(err)
		}
		if v.image == "" {
			continue
		}
		if _, err := n.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: v.image}, nil, nil); err != nil {
			n.t.Errorf("pull a damaged image again: %v", err)
		}
	}
	out, err := exec.CommandContext(ctx, binary, "image", "--state", filepath.Join(n.Dir, "state"), "check", "--repair").CombinedOutput()
	if err != nil {
		n.t.Errorf("image check --repair: %v\n%s", err, out)
	}
	for _, v := range victims {
		if v.image != "" {
			if err := n.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: v.image}); err != nil {
				n.t.Error(err)
			}
		}
	}
	left, err := filepath.Glob(filepath.Join(n.Dir, "root/damaged/*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	pods, listErr := n.CRI.ListPodSandbox(ctx, nil)
	if err := errors.Join(err, listErr); err != nil || len(pods) != len(writers) {
		n.t.Errorf("%d pods are left, %v; want %d", len(pods), err, len(writers))
	}
}

// unharmed wants all containers of the victim as they were.
func unharmed(ctx context.Context, n *node, v *victim) error {
	answer, err := n.CRI.PodSandboxStatus(ctx, v.id, false)
	if err != nil {
		return err
	}
	st, err := n.status(ctx, v.running.id)
	if err != nil {
		return err
	}
	if answer.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("the pod is %s, its container %s: %w", answer.Status.State, st.State, errFault)
	}
	for _, c := range []*container{v.ended, v.lost} {
		if c == nil {
			continue
		}
		st, err := n.status(ctx, c.id)
		if err == nil && (st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode == 0 || st.Reason == "" || st.FinishedAt < st.CreatedAt) {
			err = fmt.Errorf("the container that had ended: %v: %w", st, errFault)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func podGone(ctx context.Context, n *node, v *victim) error {
	_, err := n.CRI.PodSandboxStatus(ctx, v.id, false)
	_, containerErr := n.status(ctx, v.running.id)
	if status.Code(err) != codes.NotFound || status.Code(errors.Unwrap(containerErr)) != codes.NotFound {
		return fmt.Errorf("the pod and its container: %w", errors.Join(errFault, err, containerErr))
	}
	return nil
}

func containerGone(ctx context.Context, n *node, v *victim) error {
	if _, err := n.status(ctx, v.running.id); status.Code(errors.Unwrap(err)) != codes.NotFound {
		return fmt.Errorf("the container: %w", errors.Join(errFault, err))
	}
	answer, err := n.CRI.PodSandboxStatus(ctx, v.id, false)
	if err == nil && answer.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		err = fmt.Errorf("its pod is %s: %w", answer.Status.State, errFault)
	}
	return err
}

func podStopped(ctx context.Context, n *node, v *victim) error {
	answer, err := n.CRI.PodSandboxStatus(ctx, v.id, false)
	if err == nil && answer.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		err = fmt.Errorf("the pod is %s: %w", answer.Status.State, errFault)
	}
	return err
}
