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
	"testing"
	"time"

	"go.uber.org/goleak"
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

func pullForever(root, host string) error {
	s, err := Open(Config{Root: root})
	if err != nil {
		return err
	}
	s.Collect()
	fmt.Println("open")
	for i := 0; ; i++ {
		ref := fmt.Sprintf("%s/x:%d", host, i%3)
		image, err := s.Pull(context.Background(), ref, nil)
		if err != nil {
			return err
		}
		if i < 3 {
			continue // two images stay while the third comes and goes
		}
		if err := s.Hold(image.ID, "c"); err != nil {
			return err
		}
		if err := s.Remove(context.Background(), ref); err != nil {
			return err
		}
		s.Release(image.ID, "c")
		if _, err := s.Pull(context.Background(), ref, nil); err != nil {
			return err
		}
	}
}

// TestKilled kills a process in the middle of its pulls and removals, and looks
// whether the next one finds whole images only, and mends the rest.
func TestKilled(t *testing.T) {
	needRoot(t)
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	r := newRegistry(t)
	shared := gzipped(t, benchItems("shared", 60)...)
	for i := range 3 {
		r.putImage("x", fmt.Sprint(i), testConfig(), shared, gzipped(t, benchItems("own", 30)...), gzipped(t, file("tag", fmt.Sprint(i))))
	}
	root := filepath.Join(t.TempDir(), "images")
	listed := 0
	for range rounds {
		killChild(t, root, r.host, rand.N(400*time.Millisecond))
		s, err := Open(Config{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		for _, image := range s.Images() {
			listed++
			checkItems(t, image.Layers[2], benchItems("shared", 60))
			checkItems(t, image.Layers[1], benchItems("own", 30))
		}
		if damaged := s.Damaged(); len(damaged) > 0 {
			for _, id := range damaged {
				if !s.images[id].record.Removed {
					t.Errorf("an image is damaged that nobody removed: %s", id)
				}
			}
		}
		s.Collect()
		closeStore(t, s)
	}
	t.Logf("%d kills, %d images found whole", rounds, listed)
	s, err := Open(Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	for i := range 3 {
		image := mustPull(t, s, fmt.Sprintf("%s/x:%d", r.host, i))
		wantFile(t, filepath.Join(image.Layers[0], "tag"), fmt.Sprint(i))
	}
}

// killChild runs the child and kills it some time after it is open.
func killChild(t *testing.T, root, host string, after time.Duration) {
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
		t.Errorf("the child says %q", lines.Text())
	}
	_ = cmd.Wait() // killed
}

func checkItems(t *testing.T, dir string, items []item) {
	t.Helper()
	for _, i := range items {
		if i.content != "" {
			wantFile(t, filepath.Join(dir, i.Name), i.content)
		}
	}
}
