package imageservice

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
)

// childEnv makes the test binary pull and remove images until it is killed.
const childEnv = "IMAGESERVICE_TEST_CHILD"

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		root, host, _ := strings.Cut(text, " ")
		fmt.Println("child:", pullForever(root, host))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// pullForever says what it did in lines of a tag and an image id.
func pullForever(root, host string) error {
	s, err := Open(Config{Root: root})
	if err != nil {
		return err
	}
	s.Collect()
	fmt.Println("open")
	var mu sync.Mutex
	note := func(ref, id string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(ref, id)
	}
	var group errgroup.Group
	for _, repo := range churnRepos() {
		group.Go(func() error { return churn(s, host, repo, note) })
	}
	return group.Wait()
}

// TestKilled kills a process in the middle of its pulls, removals and moves of
// tags, and looks whether the next one finds whole images only, all that was
// promised, and mends the rest.
func TestKilled(t *testing.T) {
	needRoot(t)
	r := newRegistry(t)
	putChurn(r)
	config := Config{Root: filepath.Join(t.TempDir(), "images")}
	p := &promises{ids: map[string]string{}}
	kills, calls, listed := rounds(t, 15), 0, 0
	for range kills {
		calls += killChild(t, config.Root, r.host, rand.N(400*time.Millisecond), p)
		listed += p.verify(t, config, r.host)
		if t.Failed() {
			break
		}
	}
	t.Logf("%d kills in %d pulls and removals, %d images found whole", kills, calls, listed)
}

// killChild runs the child and kills it some time after it is open. It returns
// how many calls the child began.
func killChild(t *testing.T, root, host string, after time.Duration, p *promises) (calls int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+root+" "+host)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "open" {
		t.Errorf("the child says %q", lines.Text())
	}
	timer := time.AfterFunc(after, cancel)
	defer timer.Stop()
	for lines.Scan() {
		ref, id, _ := strings.Cut(lines.Text(), " ")
		if !strings.HasPrefix(ref, host) {
			t.Errorf("the child says %q", lines.Text())
			continue
		}
		if id == unknown {
			calls++
		}
		p.note(ref, id)
	}
	_ = cmd.Wait() // killed
	return calls
}
