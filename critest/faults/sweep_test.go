package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// verb is something that the daemon does, and that is cut off at each fault
// point on its way.
type verb struct {
	name string
	// prepare makes what the verb works on.
	prepare func(ctx context.Context, s *sweep, sub *subject) error
	// do is what the kubelet sends, and sends again after the cut.
	do func(ctx context.Context, s *sweep, sub *subject) error
	// done checks the outcome when the verb was repeated.
	done func(ctx context.Context, s *sweep, sub *subject) error
}

// subject is what a verb works on.
type subject struct {
	config *runtimeapi.PodSandboxConfig
	pod    *pod
	want   *runtimeapi.ContainerConfig // of the container that is made
	c      *container
	image  string
}

// cut is one kill: at the nth passing of point, and whether the verb is then
// repeated or everything cleaned up at once.
type cut struct {
	verb   *verb
	point  string
	nth    int
	repeat bool
}

func (c cut) String() string {
	then := "and cleaned up"
	if c.repeat {
		then = "and repeated"
	}
	return fmt.Sprintf("%s, killed at %s (%d), %s", c.verb.name, c.point, c.nth, then)
}

// sweep is a node that is killed again and again, with what must not notice.
type sweep struct {
	*node
	bystanders []*writer
	near       *pod   // in which a container ends while there is no daemon
	door       string // directory whose files tell containers to end
	images     []string
	layers     []string
	covered    map[string]bool
}

// newSweep starts the bystanders.
func newSweep(t *testing.T, n *node, bystanders int) *sweep {
	t.Helper()
	s := &sweep{node: n, door: t.TempDir(), covered: map[string]bool{}}
	ctx := t.Context()
	var err error
	if bystanders > 0 {
		if s.bystanders, err = n.writers(ctx, bystanders); err != nil {
			t.Fatal(err)
		}
		if s.near, err = n.run(ctx, hostNetwork); err != nil {
			t.Fatal(err)
		}
		// The cgroup of its pod is made with the first container.
		c, err := n.start(ctx, s.near, "exit 0")
		if err != nil {
			t.Fatal(err)
		}
		if err := n.CRI.RemoveContainer(ctx, c.id); err != nil {
			t.Fatal(err)
		}
	}
	if n.before, err = n.Residue(); err != nil {
		t.Fatal(err)
	}
	if s.images, s.layers, err = s.stored(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// stored lists the images that the daemon tells of, and what is on the disk of layers.
func (s *sweep) stored(ctx context.Context) (images, files []string, err error) {
	list, err := s.Images.ListImages(ctx, nil)
	if err != nil {
		return nil, nil, err
	}
	for _, i := range list {
		images = append(images, i.Id)
	}
	slices.Sort(images)
	for _, dir := range []string{"layers", "records", "ingest"} {
		entries, err := os.ReadDir(filepath.Join(s.Dir, "root", "images", dir))
		if err != nil {
			return nil, nil, err
		}
		for _, e := range entries {
			files = append(files, dir+"/"+e.Name())
		}
	}
	return images, files, nil
}

// points runs a verb undisturbed and returns what it passes, in order, with
// how often.
func (s *sweep) points(ctx context.Context, v *verb) (order []string, times map[string]int, err error) {
	sub := &subject{}
	if err := v.prepare(ctx, s, sub); err != nil {
		return nil, nil, fmt.Errorf("%s: prepare: %w", v.name, err)
	}
	s.trace()
	if err := v.do(ctx, s, sub); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", v.name, err)
	}
	pause(100 * time.Millisecond) // for what goes on in the background; a point that is too late is not among the cuts
	times = map[string]int{}
	for _, p := range s.trace() {
		if times[p]++; times[p] == 1 {
			order = append(order, p)
		}
	}
	if s.Ended() {
		s.again()
	}
	if err := v.done(ctx, s, sub); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", v.name, err)
	}
	return order, times, s.tidy(ctx, sub)
}

// cuts lists the kills of a verb: in the short form the first passing of each
// point that no verb before has been killed at, repeated and cleaned up in turn.
func (s *sweep) cuts(ctx context.Context, v *verb) ([]cut, error) {
	order, times, err := s.points(ctx, v)
	var out []cut
	for _, p := range order {
		if !long {
			if !s.covered[p] {
				out = append(out, cut{v, p, 1, len(out)%2 == 0})
			}
			continue
		}
		for nth := 1; nth <= min(times[p], 3); nth++ {
			out = append(out, cut{v, p, nth, true}, cut{v, p, nth, false})
		}
	}
	return out, err
}

// sweepVerb cuts a verb off at its points.
func (s *sweep) sweepVerb(t *testing.T, v *verb) {
	ctx := t.Context()
	cuts, err := s.cuts(ctx, v)
	if err != nil {
		t.Fatalf("%v\n%s", err, s.LogTail())
	}
	failed := 0
	for _, c := range cuts {
		err := s.cutOff(ctx, c)
		if errors.Is(err, errMissed) && c.nth == 1 {
			s.restart() // a new daemon passes what its first request passes
			err = s.cutOff(ctx, c)
		}
		if errors.Is(err, errMissed) {
			continue // what goes on at once passes it or not; another verb covers it, or the test fails
		}
		if err != nil {
			t.Errorf("%s: %v\n%s", c, err, s.LogTail())
			if s.Ended() {
				s.again()
			}
			if err := s.tidy(ctx, &subject{}); err != nil {
				t.Logf("and then: %v", err)
			}
			if failed++; failed > 3 {
				return
			}
			continue
		}
		s.covered[c.point] = true
	}
}

var errMissed = errors.New("the point was not passed")

// cutOff is one kill with all that is checked after it.
func (s *sweep) cutOff(ctx context.Context, c cut) error {
	sub := &subject{}
	ending, err := s.ending(ctx)
	if err != nil {
		return err
	}
	if err := c.verb.prepare(ctx, s, sub); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	s.arm(c.point, c.nth)
	doErr := c.verb.do(ctx, s, sub)
	limit := patience / 4
	if doErr == nil && !s.Ended() {
		limit = 3 * time.Second // what is left goes on in the background
	}
	if err := harness.Until(ctx, limit, "the daemon's end", s.Ended); s.disarm() {
		if s.Ended() {
			s.again()
		}
		return errors.Join(errMissed, doErr, s.forget(ctx, ending), s.tidy(ctx, sub))
	} else if err != nil {
		return err
	}
	count(daemonKills, 1)
	if err := s.without(ctx, ending); err != nil {
		return err
	}
	s.again()
	if err := s.noticed(ctx, ending); err != nil {
		return err
	}
	if c.repeat {
		if err := c.verb.do(ctx, s, sub); err != nil {
			return fmt.Errorf("repeated: %w", err)
		}
		if s.Ended() {
			s.again()
		}
		if err := c.verb.done(ctx, s, sub); err != nil {
			return fmt.Errorf("repeated: %w", err)
		}
	}
	return s.tidy(ctx, sub)
}

// ending is a container that ends while there is no daemon.
func (s *sweep) ending(ctx context.Context) (*container, error) {
	if s.near == nil {
		return nil, nil //nolint:nilnil // a node without pods has none
	}
	return s.startWaiting(ctx, s.near, 42)
}

// startWaiting starts a container in p that ends with code once open was called.
func (s *sweep) startWaiting(ctx context.Context, p *pod, code int) (*container, error) {
	config := containerConfig(p.config, "")
	config.Command[2] = fmt.Sprintf("while ! test -e /door/%s; do usleep 10000; done; exit %d", config.Metadata.Name, code)
	config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/door", HostPath: s.door, Readonly: true}}
	c, err := s.createConfig(ctx, p, config)
	if err != nil {
		return nil, err
	}
	return c, s.CRI.StartContainer(ctx, c.id)
}

func (s *sweep) open(c *container) error {
	return os.WriteFile(filepath.Join(s.door, c.config.Metadata.Name), nil, 0o600)
}

// without lets the container end, and waits for its monitor's record.
func (s *sweep) without(ctx context.Context, c *container) error {
	if c == nil {
		return nil
	}
	if err := s.open(c); err != nil {
		return err
	}
	return harness.Until(ctx, patience, "an exit record", func() bool {
		_, err := os.Stat(filepath.Join(s.Dir, "root", "containers", c.id, "exit"))
		return err == nil
	})
}

// noticed checks what the daemon knows after its start: the exit of which it
// was not there, and that nobody else has noticed anything.
func (s *sweep) noticed(ctx context.Context, c *container) error {
	for _, w := range s.bystanders {
		if err := s.checkWriter(ctx, w); err != nil {
			return err
		}
	}
	if c == nil {
		return nil
	}
	st, err := s.status(ctx, c.id)
	if err != nil {
		return err
	}
	if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 42 || st.Reason != "Error" ||
		st.FinishedAt <= st.StartedAt || time.Since(time.Unix(0, st.FinishedAt)) > patience {
		return fmt.Errorf("the container that ended meanwhile: %v: %w", st, errFault)
	}
	return s.CRI.RemoveContainer(ctx, c.id)
}

func (s *sweep) forget(ctx context.Context, c *container) error {
	if c == nil {
		return nil
	}
	return s.CRI.RemoveContainer(ctx, c.id)
}

// bystanding lists the pods that stay.
func (s *sweep) bystanding() (pods []*pod) {
	for _, w := range s.bystanders {
		pods = append(pods, w.pod)
	}
	if s.near != nil {
		pods = append(pods, s.near)
	}
	return pods
}

// tidy is the kubelet's clean-up after all that is not a bystander's, and
// checks that nothing is left of it.
func (s *sweep) tidy(ctx context.Context, sub *subject) error {
	keep := map[string]bool{}
	for _, p := range s.bystanding() {
		keep[p.id], keep[filepath.Base(p.config.Linux.CgroupParent)] = true, true
	}
	pods, err := s.CRI.ListPodSandbox(ctx, nil)
	if err != nil {
		return err
	}
	for _, p := range pods {
		if keep[p.Id] {
			continue
		}
		if err := s.CRI.StopPodSandbox(ctx, p.Id); err != nil {
			return fmt.Errorf("clean up: stop pod: %w", err)
		}
		if err := s.CRI.RemovePodSandbox(ctx, p.Id); err != nil {
			return fmt.Errorf("clean up: remove pod: %w", err)
		}
	}
	for _, dir := range s.podCgroups() {
		if keep[filepath.Base(dir)] {
			continue
		}
		if err := harness.Until(ctx, patience/4, "cgroup "+dir+" to be empty", func() bool {
			err := os.Remove(dir)
			return err == nil || errors.Is(err, fs.ErrNotExist)
		}); err != nil {
			return fmt.Errorf("clean up: %w", err)
		}
	}
	if sub.image != "" {
		if err := s.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: sub.image}); err != nil {
			return fmt.Errorf("clean up: %w", err)
		}
	}
	if s.near != nil { // what a cut that failed has left in it
		list, err := s.CRI.ListContainers(ctx, &runtimeapi.ContainerFilter{PodSandboxId: s.near.id})
		if err != nil {
			return err
		}
		for _, c := range list {
			if err := s.CRI.RemoveContainer(ctx, c.Id); err != nil {
				return fmt.Errorf("clean up: %w", err)
			}
		}
	}
	// The store is whole only now: a verb that was cut off waits for its repetition.
	return errors.Join(s.collect(ctx), s.nothingLeft(ctx), s.check(ctx, s.bystanders...))
}

// collect removes the images that the bystanders do not use.
func (s *sweep) collect(ctx context.Context) error {
	list, err := s.Images.ListImages(ctx, nil)
	if err != nil {
		return err
	}
	for _, i := range list {
		if slices.Contains(s.images, i.Id) {
			continue
		}
		if err := s.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: i.Id}); err != nil {
			return fmt.Errorf("clean up: %w", err)
		}
	}
	return nil
}

// nothingLeft waits until there is no more on the host than the bystanders have.
func (s *sweep) nothingLeft(ctx context.Context) error {
	var left []string
	if err := harness.Until(ctx, patience/4, "the host to be as before", func() bool {
		left = s.left()
		images, files, err := s.stored(ctx)
		if err != nil {
			left = append(left, err.Error())
		}
		for _, x := range slices.Concat(images, files) {
			if !slices.Contains(s.images, x) && !slices.Contains(s.layers, x) {
				left = append(left, "image store: "+x)
			}
		}
		return len(left) == 0
	}); err != nil {
		count(thingsLeaked, len(left))
		return fmt.Errorf("left behind: %s: %w", strings.Join(left, ", "), errFault)
	}
	return nil
}
