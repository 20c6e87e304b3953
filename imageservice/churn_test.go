package imageservice

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const (
	unknown   = "?" // a tag whose pull or removal was under way
	nothing   = "-" // a tag that was removed
	roundsEnv = "IMAGESERVICE_TEST_ROUNDS"
)

// rounds is how often a test kills or cuts.
func rounds(t *testing.T, usual int) int {
	t.Helper()
	if text := os.Getenv(roundsEnv); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if testing.Short() {
		return 3
	}
	return usual
}

// churnRepos are worked on at once, each by one goroutine.
func churnRepos() []string { return []string{"w0", "w1"} }

// churnTags are a repository's images; "move" stands for one or another of them.
func churnTags() []string { return []string{"0", "1", "2", "move"} }

// putChurn uploads what churn pulls. Layers are shared in a repository and
// between the two.
func putChurn(r *testRegistry) {
	all := gzipped(r.t, benchItems("all", 40)...)
	for _, repo := range churnRepos() {
		shared := gzipped(r.t, append(benchItems(repo, 30), file(repo, repo))...)
		for _, tag := range churnTags()[:3] {
			r.putImage(repo, tag, testConfig(), all, shared, gzipped(r.t, file("tag", repo+tag)), gzipped(r.t, oddItems()...))
		}
	}
	r.setHook(func(_ http.ResponseWriter, req *http.Request) bool {
		if dir, ok := strings.CutSuffix(req.URL.Path, "/manifests/move"); ok {
			req.URL.Path = dir + "/manifests/" + strconv.Itoa(rand.IntN(2))
		}
		return false
	})
}

// churn pulls and removes the images of one repository until that fails. It
// tells what each tag is: unknown before a call, and after it what it did.
func churn(s *Store, host, repo string, note func(ref, id string)) error {
	ctx := context.Background()
	is := map[string]string{}
	set := func(ref, id string) {
		is[ref] = id
		note(ref, id)
	}
	for _, tag := range churnTags() {
		ref := host + "/" + repo + ":" + tag
		if image, err := s.Image(ref); err == nil {
			is[ref] = image.ID
		}
	}
	for {
		ref := host + "/" + repo + ":" + churnTags()[rand.IntN(len(churnTags()))]
		if id := is[ref]; strings.HasPrefix(id, "sha256:") && rand.IntN(2) == 0 {
			if err := churnRemove(s, ref, id, is, set); err != nil {
				return err
			}
			continue
		}
		note(ref, unknown)
		image, err := s.Pull(ctx, ref, nil)
		if err != nil {
			return err
		}
		set(ref, image.ID)
	}
}

func churnRemove(s *Store, ref, id string, is map[string]string, set func(ref, id string)) error {
	var refs []string
	for r, i := range is {
		if i == id {
			refs = append(refs, r)
		}
	}
	for _, r := range refs {
		set(r, unknown)
	}
	if rand.IntN(2) == 0 {
		if err := s.Hold(id, "c"); err != nil {
			return err
		}
		defer s.Release(id, "c")
	}
	if err := s.Remove(context.Background(), ref); err != nil {
		return err
	}
	for _, r := range refs {
		set(r, nothing)
	}
	return nil
}

// promises are what a store said of tags, which it has to keep.
type promises struct {
	mu  sync.Mutex
	ids map[string]string
}

func (p *promises) note(ref, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ids[ref] = id
}

// verify opens the store after a crash. It wants every listed image to be whole,
// every promise kept, nothing else on the disk, and pulls to work. It returns
// how many images were listed, and closes the store.
func (p *promises) verify(t *testing.T, config Config, host string) int {
	t.Helper()
	s, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	listed := len(s.Images())
	if report := wantWhole(t, s); len(report.Images) < listed {
		t.Errorf("%d of %d images were checked", len(report.Images), listed)
	}
	for ref, id := range p.ids {
		image, err := s.Image(ref)
		switch {
		case id == unknown:
		case id == nothing && !errors.Is(err, ErrNotFound):
			t.Errorf("%s was removed and is here: %v, %v", ref, image, err)
		case id != nothing && (err != nil || image.ID != id):
			t.Errorf("%s was %s: %v, %v", ref, id, image, err)
		}
	}
	for _, id := range s.Damaged() {
		if !s.images[id].record.Removed {
			t.Errorf("an image is damaged that nobody removed: %s", id)
		}
	}
	s.Collect()
	s.background.Wait()
	checkDisk(t, s)
	ref := host + "/" + churnRepos()[rand.IntN(2)] + ":" + strconv.Itoa(rand.IntN(3))
	image := mustPull(t, s, ref)
	wantFile(t, filepath.Join(image.Layers[1], "tag"), strings.ReplaceAll(strings.TrimPrefix(ref, host+"/"), ":", ""))
	if again, err := s.Image(image.ID); err != nil || !slices.Contains(again.RepoTags, ref) {
		t.Errorf("%s: %v, %v", ref, again, err)
	}
	for ref := range p.ids {
		if image, err := s.Image(ref); err == nil {
			p.ids[ref] = image.ID
		} else {
			p.ids[ref] = nothing
		}
	}
	return listed
}
