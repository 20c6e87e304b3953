package critest

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/images"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

// artifact is what the registry holds under that name.
func artifact(t *testing.T, name string) images.Artifact {
	t.Helper()
	all, err := catalog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range all {
		if n.Repository == "cri-runtime/"+name {
			return n.Artifact
		}
	}
	t.Fatalf("no image %s", name)
	return images.Artifact{}
}

func spec(ref string) *runtimeapi.ImageSpec { return &runtimeapi.ImageSpec{Image: ref} }

// pull pulls, and removes what it pulled after the test.
func pull(t *testing.T, ref string, auth *runtimeapi.AuthConfig) (string, error) {
	t.Helper()
	got, err := node.Images.PullImage(t.Context(), spec(ref), auth, nil)
	if err == nil {
		t.Cleanup(func() { forget(t, ref) })
	}
	return got, err
}

func forget(t *testing.T, ref string) {
	t.Helper()
	if err := node.Images.RemoveImage(context.Background(), spec(ref)); err != nil {
		t.Errorf("remove %s: %v", ref, err)
	}
}

func imageStatus(t *testing.T, ref string) *runtimeapi.Image {
	t.Helper()
	answer, err := node.Images.ImageStatus(t.Context(), spec(ref), false)
	if err != nil {
		t.Fatalf("status of %s: %v", ref, err)
	}
	return answer.Image
}

func TestPullEveryForm(t *testing.T) {
	begin(t)
	for _, name := range []string{"web", "schema2", "plain", "zstd", "layers", "index", "index-docker"} {
		t.Run(name, func(t *testing.T) {
			a := artifact(t, name)
			digest, id := a.Digest(), a.ConfigID
			for _, c := range a.Children {
				if c.Arch == "amd64" {
					id = c.ConfigID
				}
			}
			tagged := depot.Address + "/cri-runtime/" + name + ":latest"
			forget(t, tagged) // another test may have pulled it
			if imageStatus(t, tagged) != nil {
				t.Fatal("there before the pull")
			}
			ref, err := pull(t, tagged, nil)
			if err != nil {
				t.Fatal(err)
			}
			byDigest := depot.Address + "/cri-runtime/" + name + "@" + digest
			for _, name := range []string{tagged, byDigest, id, ref} {
				s := imageStatus(t, name)
				if s == nil {
					t.Errorf("no status of %s", name)
					continue
				}
				if s.Id != id || !slices.Contains(s.RepoTags, tagged) || !slices.Contains(s.RepoDigests, byDigest) || s.Size == 0 {
					t.Errorf("status of %s: %v, want id %s", name, s, id)
				}
			}
			p := run(t)
			if got := p.output("", func(c *runtimeapi.ContainerConfig) {
				c.Image, c.Command = spec(tagged), []string{"sh", "-c", "echo runs; cat /etc/platform 2>/dev/null || true"}
			}); !strings.HasPrefix(got, "runs") || strings.HasPrefix(name, "index") && got != "runs\namd64" {
				t.Errorf("%q", got)
			}
			if got := p.output("", func(c *runtimeapi.ContainerConfig) {
				c.Image, c.Command = spec(ref), []string{"echo", "by the pull's answer"}
			}); got != "by the pull's answer" {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestPullByDigest(t *testing.T) {
	begin(t)
	ref := depot.Address + "/cri-runtime/schema2@" + artifact(t, "schema2").Digest()
	if _, err := pull(t, ref, nil); err != nil {
		t.Fatal(err)
	}
	s := imageStatus(t, ref)
	if s == nil || len(s.RepoTags) != 0 || !slices.Contains(s.RepoDigests, ref) {
		t.Errorf("%v", s)
	}
	wrong := depot.Address + "/cri-runtime/schema2@" + images.Digest([]byte("something else"))
	if _, err := pull(t, wrong, nil); err == nil {
		t.Error("a digest that nothing has was pulled")
	}
	if s := imageStatus(t, wrong); s != nil {
		t.Errorf("%v", s)
	}
}

func TestListAndRemoveImages(t *testing.T) {
	begin(t)
	ref := depot.Address + "/cri-runtime/zstd:latest"
	if _, err := pull(t, ref, nil); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		filter *runtimeapi.ImageFilter
		want   bool
	}{
		{"none", nil, true},
		{"empty", &runtimeapi.ImageFilter{}, true},
		{"name", &runtimeapi.ImageFilter{Image: spec(ref)}, true},
		{"id", &runtimeapi.ImageFilter{Image: spec(artifact(t, "zstd").ConfigID)}, true},
		{"other", &runtimeapi.ImageFilter{Image: spec(depot.Address + "/cri-runtime/other:latest")}, false},
	} {
		list, err := node.Images.ListImages(t.Context(), test.filter)
		if err != nil {
			t.Fatal(err)
		}
		found := slices.ContainsFunc(list, func(i *runtimeapi.Image) bool { return slices.Contains(i.RepoTags, ref) })
		if found != test.want && !peer { // it ignores the filter
			t.Errorf("filter %s: found %v, want %v", test.name, found, test.want)
		}
	}
	id := imageStatus(t, ref).Id
	for range 2 {
		if err := node.Images.RemoveImage(t.Context(), spec(id)); err != nil {
			t.Error(err)
		}
	}
	if s := imageStatus(t, ref); s != nil {
		t.Errorf("after the removal: %v", s)
	}
	if err := node.Images.RemoveImage(t.Context(), spec(depot.Address+"/never/seen:latest")); err != nil {
		t.Errorf("remove an unknown image: %v", err)
	}
}

func TestImageInUse(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("", withImage(t, "plain"), func(c *runtimeapi.ContainerConfig) { c.Command = []string{"sleep", "1000"} })
	forget(t, c.config.Image.Image)
	if got := strings.TrimSpace(c.exec(0, "echo", "alive")); got != "alive" {
		t.Errorf("after the image's removal: %q", got)
	}
	if s := c.status(); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("%v", s)
	}
}

func TestImageUser(t *testing.T) {
	begin(t)
	for name, want := range map[string]struct {
		uid  int64
		user string
	}{"user-numeric": {uid: 1000}, "user-uid-gid": {uid: 1001}, "user-name": {user: "alice"}, "user-name-group": {user: "web"}} {
		ref := image(t, name)
		s := imageStatus(t, ref)
		if s.Username != want.user || want.user == "" && s.GetUid().GetValue() != want.uid {
			t.Errorf("%s: user %q, uid %v, want %+v", name, s.Username, s.Uid, want)
		}
	}
}

func TestImageFsInfo(t *testing.T) {
	begin(t)
	image(t, "busybox")
	if err := harness.Until(t.Context(), patience, "a figure", func() bool {
		answer, err := node.Images.ImageFsInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f := answer.ImageFilesystems
		return len(f) == 1 && f[0].FsId.GetMountpoint() != "" && f[0].UsedBytes.GetValue() > 1<<20 && f[0].InodesUsed.GetValue() > 10 && f[0].Timestamp > 0
	}); err != nil {
		t.Error(err)
	}
}

func TestLayersAreStackedRight(t *testing.T) {
	begin(t)
	p := run(t)
	got := p.output("", withImage(t, "layers"), func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"sh", "-c", `cd /t; cat kept replaced part/kept part/added opaque/added file-to-dir/file dir-to-file
for gone in gone gone-dir part/gone opaque/gone dir-to-file/gone; do test -e $gone && echo $gone is there; done
for n in . part opaque; do ls -a $n | grep '^\.wh'; done
stat -c '%u:%g %a' owned kept fifo; test -p fifo && test -c null && echo special
test $(stat -c %i hard-1) = $(stat -c %i hard-2) && stat -c %h hard-1
for l in link absolute dangling; do readlink $l; done; ls | grep -c nnnnn; cat ünï-☃`}
	})
	want := `lower
upper
lower
upper
upper
upper
upper
4711:815 4755
0:0 640
0:0 600
special
2
kept
/t/kept
/nowhere/at/all
1
name`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPullWithCredentials(t *testing.T) {
	begin(t)
	for _, test := range []struct {
		name    string
		options localregistry.Options
	}{
		{"http basic", localregistry.Options{User: "me", Password: "sécret:x"}},
		{"https anonymous", localregistry.Options{TLS: true}},
		{"https basic", localregistry.Options{TLS: true, User: "me", Password: "secret"}},
		{"https token", localregistry.Options{TLS: true, User: "me", Password: "secret", Token: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			server, err := localregistry.Start(t.Context(), test.options)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			if err := server.Push(t.Context(), images.Named{Repository: "private/busybox", Tag: "1", Artifact: artifact(t, "busybox")}); err != nil {
				t.Fatal(err)
			}
			ref := server.Address + "/private/busybox:1"
			if test.options.TLS {
				other, err := localregistry.Start(t.Context(), localregistry.Options{TLS: true})
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
				if err := node.TrustRegistry(server.Address, other.CA); err != nil {
					t.Fatal(err)
				}
				if _, err := pull(t, ref, nil); err == nil {
					t.Error("an authority that is not the configured one was trusted")
				}
				if err := node.TrustRegistry(server.Address, server.CA); err != nil {
					t.Fatal(err)
				}
			}
			if test.options.User == "" {
				if _, err := pull(t, ref, nil); err != nil {
					t.Error(err)
				}
				return
			}
			for _, auth := range []*runtimeapi.AuthConfig{nil, {Username: "me", Password: "wrong"}, {Username: "other", Password: test.options.Password}} {
				if _, err := pull(t, ref, auth); err == nil {
					t.Errorf("credentials %v were accepted", auth)
				} else if auth != nil && strings.Contains(err.Error(), auth.Password) {
					t.Errorf("the error tells the password: %v", err)
				}
			}
			if _, err := pull(t, ref, &runtimeapi.AuthConfig{Username: "me", Password: test.options.Password}); err != nil {
				t.Error(err)
			}
		})
	}
}

// stored lists what is below the image store.
func stored(t *testing.T) (paths []string) {
	t.Helper()
	if peer {
		return nil
	}
	err := filepath.WalkDir(filepath.Join(node.Dir, "root", "images"), func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		paths = append(paths, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// wantStored waits until the image store holds what it held before.
func wantStored(t *testing.T, before []string) {
	t.Helper()
	var left []string
	if err := harness.Until(t.Context(), patience, "the image store to be as before", func() bool {
		left = left[:0]
		for _, path := range stored(t) {
			if !slices.Contains(before, path) {
				left = append(left, path)
			}
		}
		return len(left) == 0
	}); err != nil {
		t.Errorf("%v: %d left: %.800q", err, len(left), left)
	}
}

func TestBrokenRegistry(t *testing.T) {
	begin(t)
	image(t, "busybox")
	for _, test := range []struct {
		name, part string
		fault      localregistry.Fault
	}{
		{"manifest hangs", "/manifests/", localregistry.Hang},
		{"blob hangs", "/blobs/", localregistry.Hang},
		{"blob hangs in the middle", "/blobs/", localregistry.HangInBody},
		{"blob is cut short", "/blobs/", localregistry.Truncate},
		{"manifest is cut short", "/manifests/", localregistry.Truncate},
		{"blob is tampered with", "/blobs/", localregistry.Tamper},
		{"manifest is tampered with", "/manifests/", localregistry.Tamper},
		{"blob swells", "/blobs/", localregistry.Swell},
		{"manifest swells", "/manifests/", localregistry.Swell},
		{"unavailable", "/v2/", localregistry.Unavailable},
		{"redirects for ever", "/blobs/", localregistry.Loop},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.fault == localregistry.Hang || test.name == "blob is cut short" || test.fault == localregistry.HangInBody || test.fault == localregistry.Swell ||
				test.name == "manifest is tampered with" {
				differs(t, "waits for minutes, takes it or resumes")
			}
			server, err := localregistry.Start(t.Context(), localregistry.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			fresh := unique(t)
			if err := server.Push(t.Context(), fresh); err != nil {
				t.Fatal(err)
			}
			server.Break(test.part, test.fault)
			before := stored(t)
			ref := server.Address + "/" + fresh.Repository + "@" + fresh.Artifact.Digest()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			started := time.Now()
			_, err = node.Images.PullImage(ctx, spec(ref), nil, nil)
			if err == nil {
				forget(t, ref)
				t.Fatal("the pull succeeded")
			}
			if ctx.Err() != nil {
				t.Errorf("no answer for %s: %v", time.Since(started), err)
			}
			if s := imageStatus(t, ref); s != nil {
				t.Errorf("a status of what was not pulled: %v", s)
			}
			server.Mend()
			wantStored(t, before)
			if _, err := pull(t, ref, nil); err != nil {
				t.Errorf("after mending: %v", err)
			}
		})
	}
}

// unique is an image whose blobs nobody has pulled yet.
func unique(t *testing.T) images.Named {
	t.Helper()
	name := t.Name()
	body := strings.Repeat(name+"\n", 20_000)
	// Random enough not to vanish in the compression.
	for i := range 2000 {
		body += images.Digest([]byte(name + string(rune(i))))
	}
	a, err := images.Spec{Layers: []images.Layer{{Entries: []images.Entry{images.File("big", body, 0o644)}}}}.Build()
	if err != nil {
		t.Fatal(err)
	}
	return images.Named{Repository: "unique", Tag: "latest", Artifact: a}
}

func TestCancelledPull(t *testing.T) {
	differs(t, "goes on alone")
	begin(t)
	server, err := localregistry.Start(t.Context(), localregistry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	fresh := unique(t)
	if err := server.Push(t.Context(), fresh); err != nil {
		t.Fatal(err)
	}
	server.Break("/blobs/", localregistry.HangInBody)
	before := stored(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	ref := server.Address + "/unique:latest"
	go func() {
		_, err := node.Images.PullImage(ctx, spec(ref), nil, nil)
		done <- err
	}()
	await(t, "the blob's request", func() bool { return server.Requests("/blobs/") > 0 })
	cancel()
	if err := <-done; err == nil {
		t.Error("the pull succeeded")
	}
	wantStored(t, before)
}

func TestMissingImages(t *testing.T) {
	begin(t)
	before := stored(t)
	for _, ref := range []string{
		depot.Address + "/cri-runtime/busybox:no-such-tag",
		depot.Address + "/no/such/repository:latest",
		"127.0.0.1:1/nobody/listens:latest",
		"", " ", "UPPER/Case", "a b", "../../etc/passwd", "sha256:zz", "\xff\xfe", strings.Repeat("x", 100_000),
		depot.Address + "/cri-runtime/busybox@sha256:0000",
	} {
		_, err := node.Images.PullImage(t.Context(), spec(ref), nil, nil)
		if err == nil {
			t.Errorf("%.60q was pulled", ref)
		} else if len(err.Error()) > 5000 && !peer {
			t.Errorf("%.60q: an error of %d bytes", ref, len(err.Error()))
		}
	}
	_, err := node.Images.PullImage(t.Context(), spec(depot.Address+"/cri-runtime/busybox:no-such-tag"), nil, nil)
	wantCode(t, err, codes.NotFound)
	wantStored(t, before)
}

func TestSameImageAtOnce(t *testing.T) {
	begin(t)
	server, err := localregistry.Start(t.Context(), localregistry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	fresh := unique(t)
	if err := server.Push(t.Context(), fresh); err != nil {
		t.Fatal(err)
	}
	ref := server.Address + "/unique:latest"
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			_, err := node.Images.PullImage(t.Context(), spec(ref), nil, nil)
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	forget(t, ref)
}
