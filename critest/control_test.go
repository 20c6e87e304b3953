package critest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/images"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

// imageCommandLine runs "cri-runtime image" against the daemon of the tests.
func imageCommandLine(t *testing.T, args ...string) (string, error) {
	t.Helper()
	o, err := options(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), o.Binary, append([]string{"image", "--state", filepath.Join(node.Dir, "state")}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%q: %w: %s", args, err, stderr.String())
	}
	return stdout.String(), nil
}

// pullShown is what "image pulls --json" prints, as far as tests need it.
type pullShown struct {
	ID                                  int
	Reference, State                    string
	Clients                             int
	Downloaded, Total, Reused, Unpacked int64
	Layers                              []struct{ State string }
}

// lastPull is the newest pull of that name.
func lastPull(t *testing.T, ref string) pullShown {
	t.Helper()
	out, err := imageCommandLine(t, "pulls", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var list []pullShown
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	var last pullShown
	for _, p := range list {
		if p.Reference == ref && p.ID > last.ID {
			last = p
		}
	}
	return last
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := harness.Until(t.Context(), patience, what, ok); err != nil {
		t.Fatal(err)
	}
}

// slowly makes the registry slow for one test.
func slowly(t *testing.T) {
	t.Helper()
	depot.Break("/blobs/", localregistry.Slow)
	t.Cleanup(depot.Mend)
}

// metric reads one number off the control socket.
func metric(t *testing.T, name string) string {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(node.Dir, "state", "control.sock"))
	}}
	resp, err := (&http.Client{Transport: transport}).Get("http://control/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(text)
	if found == nil {
		return ""
	}
	return string(found[1])
}

// largeImage stores an image that shares no layer with any other.
func largeImage(t *testing.T, name string) string {
	t.Helper()
	noise := make([]byte, 1<<20)
	_, _ = rand.Read(noise)
	layer := images.Layer{Entries: []images.Entry{{Name: "noise", Body: noise}}}
	artifact, err := images.Spec{Layers: []images.Layer{layer}}.Build()
	if err == nil {
		err = depot.Push(t.Context(), images.Named{Repository: "cri-runtime/" + name, Tag: "latest", Artifact: artifact})
	}
	if err != nil {
		t.Fatal(err)
	}
	return depot.Address + "/cri-runtime/" + name + ":latest"
}

// A pull of the kubelet is seen while it goes on, and another client joins it.
func TestPullIsShownLive(t *testing.T) {
	begin(t)
	differs(t, "has no such command")
	ref := largeImage(t, "live")
	before := metric(t, `cri_runtime_image_pulls_total{reason="",result="done"}`)
	slowly(t)
	kubelet := make(chan error, 1)
	go func() {
		_, err := node.Images.PullImage(context.Background(), spec(ref), nil, nil)
		kubelet <- err
	}()
	t.Cleanup(func() { forget(t, ref) })
	var first pullShown
	until(t, "a part of the layer to be shown", func() bool {
		first = lastPull(t, ref)
		return first.State == "downloading" && first.Downloaded > 0
	})
	until(t, "the part to grow", func() bool { return lastPull(t, ref).Downloaded > first.Downloaded })
	joined := make(chan error, 1)
	go func() {
		_, err := imageCommandLine(t, "pull", ref)
		joined <- err
	}()
	until(t, "two clients", func() bool { return lastPull(t, ref).Clients == 2 })
	depot.Mend()
	if err := errors.Join(<-kubelet, <-joined); err != nil {
		t.Fatal(err)
	}
	last := lastPull(t, ref)
	if last.State != "done" || last.ID != first.ID || last.Downloaded+last.Reused != last.Total || last.Unpacked == 0 {
		t.Errorf("at the end %+v", last)
	}
	if after := metric(t, `cri_runtime_image_pulls_total{reason="",result="done"}`); after == "" || after == before {
		t.Errorf("pulls counted: %q, then %q", before, after)
	}
	for _, name := range []string{`cri_runtime_image_pull_bytes_total{source="registry"}`, `cri_runtime_rpcs_total{code="OK",method="PullImage"}`, "go_goroutines", "process_open_fds"} {
		if n := metric(t, name); n == "" || n == "0" {
			t.Errorf("%s is %q", name, n)
		}
	}
}

func TestPullIsCancelledByItsLastClient(t *testing.T) {
	begin(t)
	differs(t, "has no such command")
	ref := largeImage(t, "cancelled")
	slowly(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := node.Images.PullImage(ctx, spec(ref), nil, nil)
		done <- err
	}()
	until(t, "a part of the layer", func() bool { return lastPull(t, ref).Downloaded > 0 })
	cancel()
	if err := <-done; err == nil {
		t.Error("pulled")
	}
	until(t, "the pull to end", func() bool { return lastPull(t, ref).State == "cancelled" })
	if imageStatus(t, ref) != nil {
		t.Error("the image is there")
	}
}

// An image that is exported, removed and imported runs.
func TestExportedImageRuns(t *testing.T) {
	begin(t)
	differs(t, "has no such command")
	ref := image(t, "layers")
	file := filepath.Join(t.TempDir(), "image.tar")
	if _, err := imageCommandLine(t, "export", ref, "-o", file); err != nil {
		t.Fatal(err)
	}
	id := imageStatus(t, ref).Id
	forget(t, ref)
	out, err := imageCommandLine(t, "import", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { forget(t, ref) })
	s := imageStatus(t, ref)
	if s == nil || !strings.HasPrefix(out, s.Id+" ") {
		t.Fatalf("imported %q, status %v (the id was %s)", out, s, id)
	}
	if got := run(t).output("", func(c *runtimeapi.ContainerConfig) {
		c.Image, c.Command = spec(ref), []string{"echo", "runs"}
	}); got != "runs" {
		t.Errorf("%q", got)
	}
	// What cannot be imported changes nothing.
	if _, err := imageCommandLine(t, "import", "/dev/null"); err == nil || !strings.Contains(err.Error(), "malformed archive") {
		t.Errorf("import of nothing: %v", err)
	}
}
