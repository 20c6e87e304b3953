package imageservice

import (
	"context"
	"math"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// emptyInodes are the directories of a store, and its lock.
const emptyInodes = 5

// TestUsage compares with du: with images that share layers, while a layer is
// being downloaded, after a restart, and with no image.
func TestUsage(t *testing.T) {
	r, s := newRegistry(t), openStore(t, nil)
	putChurn(r)
	wantUsage(t, s, "an empty store")
	for _, repo := range churnRepos() {
		for _, tag := range churnTags() {
			mustPull(t, s, r.ref(repo+":"+tag))
		}
	}
	wantUsage(t, s, "seven images")

	config, _ := r.putImage("slow", "1", testConfig(), gzipped(t, benchItems("slow", 200)...))
	stopped, goOn := make(chan struct{}), make(chan struct{})
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/slow/blobs/") && !strings.Contains(req.URL.Path, strings.TrimPrefix(config, "sha256:")) && req.Method == http.MethodGet {
			select {
			case stopped <- struct{}{}:
				<-goOn
			case <-goOn:
			}
		}
		return false
	})
	done := make(chan error)
	go func() {
		_, err := s.Pull(context.Background(), r.ref("slow:1"), nil)
		done <- err
	}()
	<-stopped
	wantUsage(t, s, "a pull under way")
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantUsage(t, s, "after the pull")
	for _, image := range s.Images() {
		if err := s.Remove(context.Background(), image.ID); err != nil {
			t.Fatal(err)
		}
	}
	wantUsage(t, s, "all removed")
}

func wantUsage(t *testing.T, s *Store, when string) {
	t.Helper()
	unix.Sync() // du and the store look at allocated blocks
	u, err := s.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if want := du(t, s.config.Root, "--inodes"); u.Inodes != want {
		t.Errorf("%s: %d inodes, du says %d", when, u.Inodes, want)
	}
	// A directory of many names has more than one block, and some file systems
	// allocate when they write.
	want := du(t, s.config.Root, "--block-size=1")
	if diff := math.Abs(float64(u.Bytes) - float64(want)); diff > float64(want)/100+64<<10 {
		t.Errorf("%s: %d bytes, du says %d", when, u.Bytes, want)
	}
	t.Logf("%s: %d bytes in %d inodes, du says %d", when, u.Bytes, u.Inodes, want)
}

func du(t *testing.T, dir, unit string) uint64 {
	t.Helper()
	out, err := exec.Command("du", "-s", unit, dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
